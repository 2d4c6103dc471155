"""Whether a sick and a healthy volume separate: simulated heads, judged by detectors fitted on another head.

python -m benchmarks volumes --out benchmarks/results/volumes.json

A detector is fitted on one slice or on all of one healthy head, or on four, and judges others whole, once with the
positions of the slices and once without, as version 0.1 did. A volume's score is the mean of its three highest slice
scores. ``--tested`` takes other heads, for development.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.heads import KINDS, Head, simulate
from benchmarks.run import environment, networks
from oneshot_medad import AnomalyDetector, Predictions
from oneshot_medad.evaluation import auroc, bootstrap_interval
from oneshot_medad.images.read import expand, read_image
from oneshot_medad.studies.volume import TOP

REFERENCES = {"the volume": (1, ""), "four volumes": (4, ""), "one slice": (1, "[axial 6]")}
"""How many reference heads a detector is fitted on, and what of each."""
TESTED, FITTED, APART = 1000, 5000, 100
"""First seeds of the heads that are judged and of those fitted on, and from one head of a fit to the next."""


def remember(vision: torch.nn.Module) -> Callable:
    """Let the frozen vision tower keep what it made of an image: every detector sees the same heads."""
    compute, known = type(vision).forward_all, {}

    def forward_all(images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        keys = [hash(image.numpy().tobytes()) for image in images]
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            levels, embedded = compute(vision, images[list(new.values())])
            for row, key in enumerate(new):
                known[key] = [level[row].clone() for level in levels], embedded[row].clone()
        found = [known[key] for key in keys]
        return [torch.stack(level) for level in zip(*(f[0] for f in found), strict=True)], torch.stack(
            [f[1] for f in found]
        )

    return forward_all


def tested(first: int, count: int, folder: Path) -> dict[Path, Head]:
    """``count`` healthy heads and as many sick ones, as files; ``first`` is the first one's seed."""
    heads = {f"healthy{i}": simulate(first + i) for i in range(count)}
    heads |= {f"{KINDS[i % 4]}{i}": simulate(first + count + i, KINDS[i % 4]) for i in range(count)}
    return {head.save(folder / f"{name}.nii"): head for name, head in heads.items()}


def slices_of(path: str, positions: bool) -> list:
    """The slices of a volume, if wanted as if nobody knew where they lie."""
    sources = expand(path)
    return sources if positions else [read_image(source).pixels for source in sources]


def judged(predictions: Predictions) -> np.ndarray:
    """(N,) slice scores, NaN where a slice is not judged."""
    return np.where(predictions.judged, predictions.scores, np.nan)


def measure(detector: AnomalyDetector, heads: dict[Path, Head], positions: bool) -> dict[str, object]:
    """How well volume scores part the sick from the healthy."""
    found = [judged(detector.predict(slices_of(str(path), positions))) for path in heads]
    scores = [float(np.sort(values[~np.isnan(values)])[-TOP:].mean()) for values in found]
    sick = np.array([head.lesion.any() for head in heads.values()])
    peaks = [head.lesion[np.nanargmax(values)] for values, head in zip(found, heads.values(), strict=True)]
    above = np.array(scores) > detector.threshold_
    return {
        "auroc": auroc(sick, scores),
        "interval": bootstrap_interval(auroc, sick.astype(int), scores),
        "peak_on_lesion": float(np.mean(np.array(peaks)[sick])),
        "judged": float(np.mean([np.isfinite(values).mean() for values in found])),
        "healthy_flagged": float(above[~sick].mean()),
        "sick_flagged": float(above[sick].mean()),
        "scores": {
            path.stem: [None if np.isnan(value) else round(float(value), 4) for value in values]
            for path, values in zip(heads, found, strict=True)
        },
    }


def table(found: dict[str, list[dict]]) -> str:
    """Markdown: one row for each way to fit, means over the reference heads."""
    lines = [
        "| fitted on | volume AUROC | lowest | healthy flagged | sick flagged | peak on the lesion | slices judged |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, draws in found.items():
        areas = [draw["auroc"] for draw in draws]
        keys = ("healthy_flagged", "sick_flagged", "peak_on_lesion", "judged")
        rest = " | ".join(f"{np.mean([draw[key] for draw in draws]):.0%}" for key in keys)
        lines.append(f"| {name} | {np.mean(areas):.3f} ± {np.std(areas):.3f} | {min(areas):.3f} | {rest} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it, anew after every detector."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks volumes", description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="healthy heads, and as many sick ones")
    parser.add_argument("--seeds", type=int, default=3, help="heads to fit on, one at a time")
    parser.add_argument("--steps", type=int, help="training steps of each fit; default the recipe's")
    parser.add_argument("--tested", type=int, default=TESTED, help="first seed of the heads that are judged")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    found: dict[str, list[dict]] = {}
    vision = networks().vision
    vision.forward_all = remember(vision)
    try:
        with TemporaryDirectory() as scratch:
            heads = tested(args.tested, args.count, Path(scratch))
            for seed in range(args.seeds):
                for (part, (count, where)), positions in product(REFERENCES.items(), (True, False)):
                    name = f"{part}, {'' if positions else 'no '}positions"
                    seeds = [FITTED + seed + APART * i for i in range(count)]
                    paths = [simulate(one).save(Path(scratch) / f"reference{one}.nii") for one in seeds]
                    detector = AnomalyDetector(random_state=seed, n_steps=args.steps)
                    detector.fit([image for path in paths for image in slices_of(f"{path}{where}", positions)])
                    found.setdefault(name, []).append(measure(detector, heads, positions))
                    print(seed, name, f"{found[name][-1]['auroc']:.3f}", flush=True)
                    args.out.write_text(json.dumps({"environment": environment(), "found": found}, indent=1) + "\n")
                    args.out.with_suffix(".md").write_text(table(found))
    finally:
        del vision.forward_all
