"""Hits and failures of the default detector on the packaged sample, for the documentation.

python -m benchmarks.heatmaps docs/figures/heatmaps.png
"""

import sys
from pathlib import Path

import numpy as np

from oneshot_medad import AnomalyDetector, datasets, visualize

COUNT = 3


def draw(path: Path) -> None:
    """Fit on the sample's normal slice and draw the extremes of both kinds, true outlines in green."""
    sample = datasets.load_sample()
    found = AnomalyDetector(random_state=0).fit(sample.support).predict(sample.images)
    order, abnormal = np.argsort(found.scores), np.asarray(sample.labels) == 1
    chosen = [
        ("abnormal, highest score", order[abnormal[order]][::-1][:COUNT]),
        ("abnormal, lowest score", order[abnormal[order]][:COUNT]),
        ("normal, highest score", order[~abnormal[order]][::-1][:COUNT]),
    ]
    pictures, captions = [], []
    for rank in range(COUNT):
        for words, rows in chosen:
            i = int(rows[rank])
            picture = visualize.overlay(sample.images[i], found.heatmaps[i], found.threshold, sample.masks[i])
            pictures.append(picture.resize((picture.width // 2, picture.height // 2)))
            captions.append(f"{words}: {found.shown[i]:.2f}, {found.verdicts[i]}")
    visualize.contact_sheet(pictures, captions, columns=len(chosen)).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
