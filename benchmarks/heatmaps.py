"""Hits and failures of the default detector on the packaged sample, for the documentation.

python -m benchmarks.heatmaps docs/figures/heatmaps.png
python -m benchmarks.heatmaps docs/figures/three.png --three
"""

import sys
from pathlib import Path

import numpy as np

from oneshot_medad import AnomalyDetector, datasets, visualize

COUNT = 3


def draw(path: Path, three: bool = False) -> None:
    """Fit on the sample's normal slice and draw the extremes of both kinds, true outlines in green.

    ``three`` draws the median normal slice and the abnormal ones with the highest and the lowest score, in full size.
    """
    sample = datasets.load_sample()
    found = AnomalyDetector(random_state=0).fit(sample.support).predict(sample.images)
    order, abnormal = np.argsort(found.scores), np.asarray(sample.labels) == 1
    hits, normals = order[abnormal[order]][::-1], order[~abnormal[order]]
    if three:
        median = normals[[len(normals) // 2]]
        chosen = [("normal, median", median), ("abnormal, highest", hits), ("abnormal, lowest", hits[::-1])]
    else:
        chosen = [
            ("abnormal, highest score", hits),
            ("abnormal, lowest score", hits[::-1]),
            ("normal, highest score", normals[::-1]),
        ]
    pictures, captions = [], []
    for rank in range(1 if three else COUNT):
        for words, rows in chosen:
            i = int(rows[rank])
            picture = visualize.overlay(sample.images[i], found.pictured(i), found.threshold, sample.masks[i])
            pictures.append(picture if three else picture.resize((picture.width // 2, picture.height // 2)))
            captions.append(f"{words}: {found.shown[i]:.2f}, {found.verdicts[i]}")
    visualize.contact_sheet(pictures, captions, columns=1 if three else len(chosen)).save(path, optimize=True)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), "--three" in sys.argv)
