"""Detectors on the Hugging Face Hub, with huggingface_hub's own calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from oneshot_medad._hub import calling
from oneshot_medad.persistence.folder import BACKBONE, FILES
from oneshot_medad.persistence.space import write_space


def download(repo_id: str, revision: str | None, token: str | bool | None, local_files_only: bool) -> Path:
    """Folder of a detector's files in the Hub's cache; other files of the repository are left where they are.

    Raises
    ------
    HubError
        Any refusal or broken connection; the cache keeps nothing half-transferred.
    """
    from huggingface_hub import snapshot_download

    return Path(
        calling(
            f"download {repo_id}",
            lambda: snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=[*FILES, f"{BACKBONE}/*"],
            ),
        )
    )


def upload(
    folder: Path, repo_id: str, private: bool | None, token: str | bool | None, message: str, space: bool = False
) -> str:
    """Create the repository if need be and commit the folder to it in one commit; returns the commit's address.

    Parameters
    ----------
    space
        Whether the repository is a Space of gradio, not a model.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="oneshot-medad")
    kind, sdk = ("space", "gradio") if space else ("model", None)
    full = calling(
        f"create {repo_id}",
        lambda: api.create_repo(repo_id, private=private, exist_ok=True, repo_type=kind, space_sdk=sdk),
    ).repo_id
    commit = calling(
        f"upload to {full}",
        lambda: api.upload_folder(repo_id=full, folder_path=folder, commit_message=message, repo_type=kind),
    )
    return str(commit.commit_url)


def upload_space(address: str, versions: Mapping[str, str], private: bool | None, token: str | bool | None) -> str:
    """Create the Space of a detector, under the name of its repository, and commit its files; returns the address.

    Parameters
    ----------
    address
        Of the commit of the detector, which the Space loads.
    versions
        Of the packages that it was fitted with.
    """
    *_, owner, name, _, commit = address.split("/")
    with TemporaryDirectory() as scratch:
        folder = write_space(Path(scratch) / "space", f"{owner}/{name}", commit, versions)
        return upload(folder, f"{owner}/{name}", private, token, "Upload app", space=True)
