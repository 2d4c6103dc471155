"""Whether a sick and a healthy volume separate: simulated heads, judged by detectors fitted on another head.

python -m benchmarks volumes --out benchmarks/results/volumes.json

A detector is fitted on one slice, on the middle, or on all of one healthy head, and judges others whole.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.heads import KINDS, Head, simulate
from benchmarks.run import _tiny, environment
from oneshot_medad import AnomalyDetector
from oneshot_medad.evaluation import auroc, bootstrap_interval

REFERENCES = {"one slice": "[axial 12]", "the middle": "[axial 8:16]", "the volume": ""}
"""What of the reference head a detector is fitted on."""
TESTED, FITTED = 1000, 5000
"""First seeds of the heads that are judged and of those fitted on."""


def remember(vision: torch.nn.Module, folder: Path) -> Callable:
    """Let the frozen vision tower keep what it made of a batch: every detector sees the same heads."""
    compute = type(vision).forward_all

    def forward_all(images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        path = folder / f"{sha256(images.numpy().tobytes()).hexdigest()}.pt"
        if not path.exists():
            torch.save(compute(vision, images), path)
        return torch.load(path)

    return forward_all


def tested(count: int, folder: Path) -> dict[Path, Head]:
    """``count`` healthy heads and as many sick ones, as files."""
    heads = {f"healthy{i}": simulate(TESTED + i) for i in range(count)}
    heads |= {f"{KINDS[i % 4]}{i}": simulate(TESTED + count + i, KINDS[i % 4]) for i in range(count)}
    return {head.save(folder / f"{name}.nii"): head for name, head in heads.items()}


def measure(detector: AnomalyDetector, heads: dict[Path, Head]) -> dict[str, object]:
    """How well volume scores part the sick from the healthy."""
    found = {path: detector.predict(path).volumes()[0] for path in heads}
    labels = [int(head.lesion.any()) for head in heads.values()]
    scores = [volume.score for volume in found.values()]
    sick = [(found[path], head.lesion) for path, head in heads.items() if head.lesion.any()]
    return {
        "auroc": auroc(labels, scores),
        "interval": bootstrap_interval(auroc, labels, scores),
        "peak_on_lesion": float(np.mean([lesion[volume.peak_slice] for volume, lesion in sick])),
        "judged": float(np.mean([np.isfinite(volume.slice_scores).mean() for volume in found.values()])),
        "flagged": {
            str(label): float(np.mean([v.flag for v, y in zip(found.values(), labels, strict=True) if y == label]))
            for label in (0, 1)
        },
        "scores": {path.stem: [round(float(s), 4) for s in volume.slice_scores] for path, volume in found.items()},
    }


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: one row for each way to fit, means over the reference heads."""
    lines = [
        "| fitted on | volume AUROC | lowest | healthy flagged | sick flagged | peak on the lesion | slices judged |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, draws in found.items():
        areas = [draw["auroc"] for draw in draws]
        rest = [[d["flagged"]["0"] for d in draws], [d["flagged"]["1"] for d in draws]]
        rest += [[d[key] for d in draws] for key in ("peak_on_lesion", "judged")]
        lines.append(
            f"| {name} | {np.mean(areas):.3f} ± {np.std(areas):.3f} | {min(areas):.3f} | "
            + " | ".join(f"{np.mean(values):.0%}" for values in rest)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it, anew after every detector."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks volumes", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="healthy heads, and as many sick ones")
    parser.add_argument("--seeds", type=int, default=3, help="heads to fit on, one at a time")
    parser.add_argument("--steps", type=int, help="training steps of each fit; default the recipe's")
    parser.add_argument("--cache", type=Path, help="folder for what the frozen networks give; default a passing one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found: dict[str, list[dict]] = {name: [] for name in REFERENCES}
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        cache = args.cache or folder / "cache"
        cache.mkdir(exist_ok=True)
        vision = _tiny().vision
        vision.forward_all = remember(vision, cache)
        try:
            heads = tested(args.count, folder)
            for seed in range(args.seeds):
                path = simulate(FITTED + seed).save(folder / f"reference{seed}.nii")
                for name, chosen in REFERENCES.items():
                    detector = AnomalyDetector(random_state=seed, n_steps=args.steps).fit(f"{path}{chosen}")
                    found[name].append(measure(detector, heads))
                    print(seed, name, f"{found[name][-1]['auroc']:.3f}", flush=True)
                    shown = {name: draws for name, draws in found.items() if draws}
                    args.out.write_text(json.dumps({"environment": environment(), "found": shown}, indent=1) + "\n")
                    args.out.with_suffix(".md").write_text(table(shown))
        finally:
            del vision.forward_all
