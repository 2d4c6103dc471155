"""Draw accuracy against the number of normal images, from the stored results.

Writes shots.svg beside this file, or to the path given as first argument.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "shots.json"
NAMES = {
    "headct": "head CT, haemorrhage",
    "covidx": "chest radiographs, pneumonia",
    "lgg": "FLAIR MRI, glioma",
    "mias": "mammograms",
}
COLOURS = ("#2b5c8a", "#b8621b", "#3d7a3d", "#7a4a7a")

SHIFTS = {"headct": 4, "lgg": -6}
"""Points by which labels are moved apart."""


def draw() -> Figure:
    """One line a collection: mean image AUROC, and the standard deviation over the draws as a bar."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"]
    counts = sorted({run["shots"] for run in runs})
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (name, label), colour in zip(NAMES.items(), COLOURS, strict=True):
        of = {run["shots"]: [s["image_auroc"] for s in run["seeds"]] for run in runs if run["set"] == name}
        means, spread = [np.mean(of[k]) for k in counts], [np.std(of[k]) for k in counts]
        axes.errorbar(range(len(counts)), means, spread, color=colour, marker="o", capsize=3)
        axes.annotate(
            f"{label} {means[0]:.3f} → {means[-1]:.3f}",
            (len(counts) - 1, means[-1]),
            (10, SHIFTS.get(name, 0)),
            textcoords="offset points",
            color=colour,
            va="center",
            fontsize=9,
        )
    axes.axhline(0.5, color="#999", linewidth=1, linestyle=":")
    axes.set(xlim=(-0.2, len(counts) + 0.55), ylim=(0.45, 1.0), ylabel="image AUROC")
    axes.set_xticks(range(len(counts)), [str(k) for k in counts])
    axes.set_xlabel("normal images fitted on", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "shots", "font.family": "sans-serif"}):
        draw().savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
