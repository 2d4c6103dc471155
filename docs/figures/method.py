"""Draw the method: what is frozen, what is trained, and what runs at the fit only.

Writes method.svg beside this file, or to the path given as first argument.
"""

import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FROZEN, TRAINED, PLAIN = "#cfd8e6", "#f6c98b", "#ffffff"
WIDTH, HEIGHT = 1.7, 0.74

# centre, colour, text
BOXES = {
    "image": (0.9, 2.9, PLAIN, "one normal image:\nviews x"),
    "encoder": (3.1, 2.9, FROZEN, "MedVAE encoder\nz"),
    "forward": (5.3, 2.9, PLAIN, "masked forward\nprocess: z_noisy"),
    "unet": (7.5, 2.9, TRAINED, "deviation network\npredicted η"),
    "anomaly": (9.7, 2.9, PLAIN, "z_anom = z + C·η"),
    "vision": (3.1, 1.4, FROZEN, "CLIP vision tower\nf"),
    "projection": (9.7, 1.4, TRAINED, "projection head P\nP(z_anom) − P(z)"),
    "moved": (7.5, 1.4, PLAIN, "f + P(z_anom) − P(z)"),
    "lesions": (0.9, 1.4, PLAIN, "views with lesions\ndrawn into pixels"),
    "adapters": (5.3, 0.0, TRAINED, "adapters: f and its\nnearest normal f"),
    "prompts": (7.5, 0.0, TRAINED, "text features of\nlearnable prompts"),
    "map": (9.7, 0.0, PLAIN, "map of abnormality\n→ heatmap, score"),
    "test": (0.9, 0.0, PLAIN, "a new image"),
}
# from, to; dashed where it happens at the fit only
ARROWS = [
    ("image", "encoder", True),
    ("encoder", "forward", True),
    ("forward", "unet", True),
    ("unet", "anomaly", True),
    ("anomaly", "projection", True),
    ("projection", "moved", True),
    ("vision", "moved", True),
    ("moved", "adapters", True),
    ("lesions", "vision", True),
    ("image", "vision", True),
    ("test", "vision", False),
    ("vision", "adapters", False),
    ("adapters", "prompts", False),
    ("prompts", "map", False),
]


def _box(axes: Axes, x: float, y: float, colour: str, text: str) -> None:
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    axes.add_patch(
        FancyBboxPatch(corner, WIDTH, HEIGHT, "round,pad=0,rounding_size=0.08", facecolor=colour, edgecolor="#445")
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def _arrow(axes: Axes, start: str, end: str, dashed: bool) -> None:
    """From the edge of one box to the edge of another; sideways where they stand in one row."""
    (x0, y0), (x1, y1) = BOXES[start][:2], BOXES[end][:2]
    if abs(y1 - y0) < 0.5:
        side = WIDTH / 2 if x1 > x0 else -WIDTH / 2
        ends = (x0 + side, y0), (x1 - side, y1)
    else:
        side = HEIGHT / 2 if y1 > y0 else -HEIGHT / 2
        ends = (x0 + (x1 - x0) * 0.15, y0 + side), (x1 - (x1 - x0) * 0.15, y1 - side)
    style = {"arrowstyle": "-|>", "linestyle": "--" if dashed else "-", "color": "#445", "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", ends[1], ends[0], arrowprops=style)


def draw() -> Figure:
    """The whole figure."""
    figure = Figure(figsize=(10.6, 4.3))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 10.6), ylim=(-0.5, 3.8))
    axes.axis("off")
    for start, end, dashed in ARROWS:
        _arrow(axes, start, end, dashed)
    for x, y, colour, text in BOXES.values():
        _box(axes, x, y, colour, text)
    for x, colour, text in ((0.2, FROZEN, "frozen"), (1.4, TRAINED, "trained at the fit"), (3.4, PLAIN, "data")):
        axes.add_patch(FancyBboxPatch((x, 3.5), 0.14, 0.12, "round,pad=0", facecolor=colour, edgecolor="#445"))
        axes.text(x + 0.24, 3.56, text, va="center", fontsize=9)
    axes.text(4.4, 3.56, "dashed: at the fit only; solid: at every prediction too", va="center", fontsize=9)
    return figure


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".svg")
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "method", "font.family": "sans-serif"}):
        draw().savefig(path, format="svg", metadata={"Date": None}, facecolor="white")
