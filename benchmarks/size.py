"""What an installation takes on the disk, and what of it a fit, a prediction and a report import.

python -m benchmarks size --out benchmarks/results/size.json

Run it in the environment to be measured, which holds nothing but the package. Of PyTorch's build for GPUs the parts
that its build for CPUs lacks are counted apart: the packages of CUDA, and the libraries in torch's own folder.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from importlib.metadata import Distribution, distributions, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCRIPT = """
import json, sys, tempfile
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions

class Without(PathFinder):
    hidden = set(json.loads(sys.argv[1]))
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in cls.hidden else super().find_spec(name, path, target)

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from oneshot_medad import AnomalyDetector, Recipe, datasets
sample = datasets.load_sample(n_normal=1, n_abnormal=1)
recipe = Recipe(n_views=4, n_lesions=4, n_held=3, n_steps=2, batch_size=3)
detector = AnomalyDetector(recipe=recipe, random_state=0).fit(sample.support)
with tempfile.TemporaryDirectory() as folder:
    detector.save_pretrained(f"{folder}/detector")
    AnomalyDetector.from_pretrained(f"{folder}/detector").predict(sample.images).to_html(f"{folder}/report.html")
of = packages_distributions()
print(json.dumps(sorted({d for name in sys.modules for d in of.get(name.split(".")[0], [])} | {"medvae", "nilearn"})))
"""
"""Runs as if what the short list leaves out were not installed, so that it fails if any of that is needed.

medvae's modules are a copy of our own in ``sys.modules``, and nilearn holds the sample's brain, a file.
"""

LIGHT = Path(__file__).parents[1] / "requirements-light.txt"
ALONE = ("oneshot-medad", "medvae", "open_clip_torch", "pip")
"""Installed beside the short list, without what they declare."""

CUDA = re.compile(r"(nvidia|cuda|triton)\b")
CUDA_PARTS = re.compile(r"torch/lib/lib(torch_cuda|torch_nvshmem|c10_cuda|caffe2_nvrtc)")
MIB = 2**20


def sizes(distribution: Distribution) -> dict[str, float]:
    """MiB of a distribution's files: code and data, bytecode, and what serves GPUs alone."""
    found = {"files": 0.0, "bytecode": 0.0, "cuda": 0.0}
    whole = CUDA.match(distribution.metadata["Name"])
    for file in distribution.files or []:
        path = Path(str(file.locate()))
        if path.is_file():
            kind = "cuda" if whole or CUDA_PARTS.search(str(file)) else "files"
            found["bytecode" if path.suffix == ".pyc" and not whole else kind] += path.stat().st_size / MIB
    return found


def light(installed: dict[str, Distribution]) -> set[str]:
    """Names of what the short list and PyTorch bring, with all that those require here."""
    asked = [line for line in LIGHT.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    left, found = [Requirement(line) for line in ["torch", "torchvision", *asked]], set(map(canonicalize_name, ALONE))
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and name in installed and name not in found:
            found.add(name)
            left += map(Requirement, installed[name].requires or [])
    return found


def measure() -> dict[str, object]:
    """Sizes of all distributions of this environment, which are imported, and which the short list brings."""
    installed = {canonicalize_name(d.metadata["Name"]): d for d in distributions()}
    kept = light(installed)
    of = packages_distributions()
    left_out = [name for name, owners in of.items() if not kept & set(map(canonicalize_name, owners))]
    absent = [name for name in left_out if name not in sys.stdlib_module_names]  # one is named as Python's argparse
    command = [sys.executable, "-c", SCRIPT, json.dumps(absent)]
    imported = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {
        "python": sys.version.split()[0],
        "platform": sys.platform,
        "imported": sorted(map(canonicalize_name, imported)),
        "light": sorted(kept),
        "sizes": {name: {k: round(v, 2) for k, v in sizes(d).items()} for name, d in sorted(installed.items())},
    }


def table(found: dict) -> str:
    """Markdown: totals, and the largest distributions that nothing imports."""
    of = found["sizes"]

    def total(names, *kinds):
        return sum(of[name][kind] for name in names for kind in kinds)

    used, kept = ([name for name in of if name in found[key]] for key in ("imported", "light"))
    rest = [name for name in of if name not in found["imported"] and not CUDA.match(name)]
    lines = ["| what | MiB |", "|---|---|"]
    lines += [
        f"| all, with PyTorch's build for GPUs | {total(of, 'files', 'bytecode', 'cuda'):.0f} |",
        f"| the same without what serves GPUs alone | {total(of, 'files', 'bytecode'):.0f} |",
        f"| and without bytecode (`--no-compile`) | {total(of, 'files'):.0f} |",
        f"| with `requirements-light.txt` | {total(kept, 'files', 'bytecode'):.0f} |",
        f"| with it and without bytecode | {total(kept, 'files'):.0f} |",
        f"| of that imported by fit, predict, save, load and report | {total(used, 'files'):.0f} |",
        f"| what none of these imports | {total(rest, 'files'):.0f} |",
    ]
    largest = sorted(rest, key=lambda name: -of[name]["files"])[:6]
    lines += [f"| - {name} | {of[name]['files']:.0f} |" for name in largest]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks size", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found = measure()
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(found))
