"""Connected regions of a heatmap above a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Region:
    """One connected region of a heatmap whose pixels all exceed a limit; pixels that touch by a corner connect.

    The limit is the one that the score of the whole image has passed; see `Predictions.regions`.

    Attributes
    ----------
    score
        Highest value in it, on the scale of `Predictions.scores`; at most the threshold in an uncertain image, where
        heatmaps are shown up to it.
    mean
        Mean value in it.
    area_px
        Pixels.
    area_mm2
        Square millimetres; None where the pixel spacing is not known.
    centroid
        (row, column) of its centre, pixels, from the top left.
    box
        (top, left, bottom, right), pixels; the last two are the first outside.
    """

    score: float
    mean: float
    area_px: int
    area_mm2: float | None
    centroid: tuple[float, float]
    box: tuple[int, int, int, int]


def find_regions(heatmap: np.ndarray, threshold: float, spacing: tuple[float, float] | None = None) -> list[Region]:
    """The regions of one heatmap, highest score first.

    Parameters
    ----------
    heatmap
        (H, W) raw values.
    threshold
        What all pixels of a region exceed.
    spacing
        Height and width of a pixel in millimetres.

    Examples
    --------
    >>> heatmap = np.zeros((8, 8))
    >>> heatmap[2:4, 5:8] = 0.9
    >>> find_regions(heatmap, 0.5, spacing=(0.5, 2.0))[0]
    Region(score=0.9, mean=0.9, area_px=6, area_mm2=6.0, centroid=(2.5, 6.0), box=(2, 5, 4, 8))
    """
    from skimage.measure import label, regionprops

    if not heatmap.size:
        return []
    found = [
        Region(
            score=float(region.intensity_max),
            mean=float(region.intensity_mean),
            area_px=int(region.area),
            area_mm2=float(region.area) * spacing[0] * spacing[1] if spacing else None,
            centroid=(float(region.centroid[0]), float(region.centroid[1])),
            box=tuple(map(int, region.bbox)),  # type: ignore[arg-type]
        )
        for region in regionprops(label(heatmap > threshold, connectivity=2), intensity_image=heatmap)
    ]
    return sorted(found, key=lambda region: (region.score, region.mean), reverse=True)
