"""Draw accuracy against the number of normal images, from the stored results.

Writes shots.svg beside this file, or to the path given as first argument.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "transfer.json"
NAMES = {
    "headct": "head CT",
    "lgg": "FLAIR MRI",
    "covidx": "chest radiographs",
    "lungus": "lung ultrasound",
    "photo_eardrum": "otoscopy",
    "mias": "mammograms",
    "papsmear": "cytology",
}
COLOURS = ("#2b5c8a", "#3d7a3d", "#b8621b", "#7a4a7a", "#8a7a2b", "#4a6b7a", "#8a2b3d")
APART = 0.03
"""Least distance of two labels, in units of AUROC."""


def draw() -> Figure:
    """One line a collection: mean image AUROC, and the standard deviation over the draws as a bar."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["found"]
    counts = [1, 4, 16]
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    lines = []
    for (name, label), colour in zip(NAMES.items(), COLOURS, strict=True):
        of = [[draw["image_auroc"] for draw in found[name][f"default {k}"]["draws"]] for k in counts]
        means, spread = [np.mean(values) for values in of], [np.std(values) for values in of]
        axes.errorbar(range(len(counts)), means, spread, color=colour, marker="o", capsize=3)
        lines.append((means[-1], f"{label} {means[0]:.3f} → {means[-1]:.3f}", colour))
    height = 1.0
    for value, label, colour in sorted(lines, reverse=True):
        height = min(value, height - APART)
        axes.annotate(label, (len(counts) - 0.9, height), color=colour, va="center", fontsize=9)
    axes.axhline(0.5, color="#999", linewidth=1, linestyle=":")
    axes.set(xlim=(-0.2, len(counts) + 0.55), ylim=(0.35, 1.0), ylabel="image AUROC")
    axes.set_xticks(range(len(counts)), [str(k) for k in counts])
    axes.set_xlabel("normal images fitted on", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shots", "font.family": "sans-serif"}):
        draw().savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
