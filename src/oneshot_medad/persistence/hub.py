"""Detectors on the Hugging Face Hub, with huggingface_hub's own calls."""

from __future__ import annotations

from pathlib import Path

from oneshot_medad._hub import calling
from oneshot_medad.persistence.folder import BACKBONE, FILES


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


def upload(folder: Path, repo_id: str, private: bool | None, token: str | bool | None, message: str) -> str:
    """Create the repository if need be and commit the folder to it in one commit; returns the commit's address."""
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="oneshot-medad")
    full = calling(f"create {repo_id}", lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
    commit = calling(
        f"upload to {full}", lambda: api.upload_folder(repo_id=full, folder_path=folder, commit_message=message)
    )
    return str(commit.commit_url)
