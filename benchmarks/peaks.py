"""Where heatmaps point, and which abnormal images are missed whatever the reference.

python -m benchmarks peaks --data DIR --out results/peaks.json

On chest radiographs: the share of flagged pneumonias whose heatmap is highest inside a box around both lungs, drawn by
hand (``lung_boxes.csv``, as shares of width and height). On head CT: haemorrhages that every draw of the one normal
image leaves below the score that one normal image in twenty exceeds.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.data import DEFAULT_DATA
from benchmarks.run import DEFAULT, Collection, draw_support, environment, networks, read_collection, score
from oneshot_medad.images.preprocess import from_field

BOXES = Path(__file__).parent / "lung_boxes.csv"
FALSE_POSITIVES = 0.05


def boxes() -> dict[str, tuple[float, ...]]:
    """(left, top, right, bottom) around the lungs by file name."""
    with BOXES.open(newline="") as file:
        return {
            Path(row["path"]).name: tuple(float(row[side]) for side in ("left", "top", "right", "bottom"))
            for row in csv.DictReader(file)
        }


def inside(heatmap: np.ndarray, box: tuple[float, ...]) -> bool:
    """Whether an (H, W) heatmap is highest inside a box."""
    (y, x), (h, w) = np.unravel_index(heatmap.argmax(), heatmap.shape), heatmap.shape
    left, top, right, bottom = box
    return bool(left <= (x + 0.5) / w <= right and top <= (y + 0.5) / h <= bottom)


def peaks(collection: Collection, seed: int) -> list[bool]:
    """Of each flagged image with a box, whether its heatmap points into the lungs; one normal image drawn."""
    support, test = draw_support(collection, 1, seed)
    known = boxes()
    test = np.array([i for i in test if collection.items[i].path.name in known])
    found = score(collection, DEFAULT, support, test, seed)
    assert found.maps is not None
    side = networks().spec.image_px
    return [
        inside(from_field(heatmap, side, collection.sizes[i]).numpy(), known[collection.items[i].path.name])
        for i, heatmap, value in zip(test, found.maps, found.scores, strict=True)
        if value > found.threshold
    ]


def missed(collection: Collection, seed: int) -> tuple[list[str], list[str]]:
    """Abnormal images tested, and those below the score that `FALSE_POSITIVES` of the normal ones exceed."""
    support, test = draw_support(collection, 1, seed)
    scores = score(collection, DEFAULT, support, test, seed).scores.numpy()
    abnormal = collection.labels[test] == 1
    threshold = np.quantile(scores[~abnormal], 1 - FALSE_POSITIVES)
    names = np.array([collection.items[i].path.name for i in test])
    return names[abnormal].tolist(), names[abnormal & (scores <= threshold)].tolist()


def table(found: dict) -> str:
    """Markdown."""
    chest, head = found["chest"], found["head"]
    lines = [
        "| what | result |",
        "|---|---|",
        f"| chest: flagged images of the {chest['boxes']} with a box, all draws | {chest['flagged']} |",
        f"| of them, heatmap highest inside the box | {chest['inside']:.0%} |",
        f"| by chance (mean area of a box) | {chest['area']:.0%} |",
        f"| head CT: haemorrhages missed at {FALSE_POSITIVES:.0%} false positives, mean | {head['mean']:.0%} |",
        f"| missed in every draw | {len(head['always'])} of {head['abnormal']} |",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks peaks", description=__doc__)
    parser.add_argument("--data", default=DEFAULT_DATA)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    chest = read_collection(args.data, "covidx", latents=False)
    pointed = [p for seed in range(args.seeds) for p in peaks(chest, seed)]
    head = read_collection(args.data, "headct", latents=False)
    draws = [missed(head, seed) for seed in range(args.seeds)]
    counts = Counter(name for _, names in draws for name in names)
    found = {
        "environment": environment(),
        "seeds": args.seeds,
        "chest": {
            "boxes": len(boxes()),
            "flagged": len(pointed),
            "inside": float(np.mean(pointed)),
            "area": float(np.mean([(r - x) * (b - y) for x, y, r, b in boxes().values()])),
        },
        "head": {
            "abnormal": len(draws[0][0]),
            "mean": float(np.mean([len(names) / len(tested) for tested, names in draws])),
            "always": sorted(name for name, n in counts.items() if n == args.seeds),
        },
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(found))
