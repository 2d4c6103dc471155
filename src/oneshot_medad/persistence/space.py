"""The files of a Hugging Face Space that shows a detector: an app of a few lines, pinned requirements, front matter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Template

from oneshot_medad import __version__

GRADIO = "6.31.0"
"""Version of gradio that the page is tested with."""
PYTHON = "3.11"
PINNED = ("torch", "open_clip_torch", "medvae", "safetensors")
"""Packages at the versions that the detector was fitted with; numpy's follows from Python's and theirs."""

APP = Template('''"""Research use only: not a medical device, not for diagnosis."""

from oneshot_medad import space

page = space.app($repo, revision=$revision)

if __name__ == "__main__":
    page.launch()
''')

REQUIREMENTS = Template("""# Builds of PyTorch for CPUs; on a Space with a GPU, leave this line out.
--extra-index-url https://download.pytorch.org/whl/cpu
oneshot-medad[dicom,space]==$version
$pins
""")

README = Template("""---
title: $quoted
emoji: 🩻
colorFrom: gray
colorTo: indigo
sdk: gradio
sdk_version: $gradio
python_version: "$python"
app_file: app.py
models:
- $repo
tags:
- oneshot-medad
- anomaly-detection
- medical-imaging
short_description: What differs from normal? Research use only.
---

# $title

Upload images or DICOM files of the kind that the detector [$repo](https://huggingface.co/$repo) was fitted on; the page
shows a heatmap, a score and a verdict for each, and lets you move the threshold. What the detector was fitted on, what
was measured, and its licence are on its card.

**Research use only. This is not a medical device and must not be used for diagnosis.** Upload no image from which a
patient could be known: a Space runs on somebody else's machine. Files are removed from it after an hour.

On your own machine nothing leaves it:

    pip install -r requirements.txt
    python app.py

If the detector is private, give the Space a secret `HF_TOKEN` that may read it.
""")


def space_files(repo_id: str, revision: str, versions: Mapping[str, str]) -> dict[str, str]:
    """Names and content of the files.

    Parameters
    ----------
    repo_id
        ``"owner/name"`` of the detector.
    revision
        Its commit, which the app loads, so that a later upload does not change what the page says.
    versions
        Of the packages that it was fitted with; a part behind ``+``, which names a build, is left out.

    Examples
    --------
    >>> files = space_files("me/brain", "main", {"torch": "2.14.1+cpu"})
    >>> sorted(files), "torch==2.14.1" in files["requirements.txt"].splitlines()
    (['README.md', 'app.py', 'requirements.txt'], True)
    """
    pins = [f"{name}=={versions[name].split('+')[0]}" for name in PINNED if name in versions]
    title = repo_id.split("/")[-1]
    names = {"title": title, "quoted": json.dumps(title), "repo": repo_id}
    return {
        "app.py": APP.substitute(repo=json.dumps(repo_id), revision=json.dumps(revision)),
        "requirements.txt": REQUIREMENTS.substitute(version=__version__, pins="\n".join(pins)),
        "README.md": README.substitute(names, gradio=GRADIO, python=PYTHON),
    }


def write_space(folder: Path, repo_id: str, revision: str, versions: Mapping[str, str]) -> Path:
    """Write `space_files` into a new folder."""
    folder.mkdir(parents=True)
    for name, content in space_files(repo_id, revision, versions).items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder
