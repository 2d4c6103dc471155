"""Predictions of one detector by torch and by the runtimes that read its exported file, in turn.

python -m benchmarks engines --times 10 --out results/engines.json

On one core, from pixels to heatmap on the image's own grid; each figure is the median. Exported files take one image
at a time; torch also takes eight.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.parts import in_turn
from benchmarks.run import environment
from oneshot_medad import AnomalyDetector, load_exported
from oneshot_medad.datasets import load_sample
from oneshot_medad.export.engines import ENGINES


def table(found: dict) -> str:
    """Markdown."""
    lines = ["| engine | ms an image | beside torch's eight | largest difference of a score |", "|---|---|---|---|"]
    slow = found["engines"]["torch, eight images at a time"]["ms"]
    for name, row in found["engines"].items():
        lines.append(f"| {name} | {row['ms']:.0f} | {slow / row['ms']:.2f} times as fast | {row['difference']:.0e} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Write JSON and a Markdown table beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks engines", description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):  # the runtimes take as many threads as they may use cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    sample = load_sample()
    detector = AnomalyDetector(random_state=0).fit(sample.support)
    images = sample.images[:8]

    def one_by_one(predict: Callable) -> np.ndarray:
        return np.array([predict([image]).scores[0] for image in images])

    with TemporaryDirectory() as folder:
        file = detector.export("onnx", Path(folder) / "detector.onnx")
        engines = {"torch": detector.predict}
        engines |= {name: load_exported(file, name).predict for name in ENGINES if find_spec(name)}
        calls = {"torch, eight images at a time": lambda: detector.predict(images).scores}
        calls |= {name: partial(one_by_one, predict) for name, predict in engines.items()}
        wanted, seconds = detector.predict(images).scores, in_turn(calls, args.times)
        rows = {
            name: {
                "ms": round(1000 * seconds[name] / len(images), 1),
                "difference": float(np.abs(call() - wanted).max()),
            }
            for name, call in calls.items()
        }
    found = {"environment": environment(), "engines": rows}
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(table(found))
