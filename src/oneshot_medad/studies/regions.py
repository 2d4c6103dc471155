"""Connected regions of a volume's heatmap above a limit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class VolumeRegion:
    """One region of a volume, connected over its slices, whose voxels all exceed a limit; corners connect.

    Attributes
    ----------
    score
        Highest value in it, on the scale of `Predictions.scores`.
    mean
        Mean value in it.
    voxels
        How many.
    ml
        Millilitres.
    peak
        (x, y, z) voxel of the highest value, on the stored grid.
    peak_slice
        Slice of that voxel, along the axis that was predicted.
    slices
        First and last slice that it shows on.
    centroid
        (x, y, z) of its centre in millimetres to the right, anterior and superior, as in NIfTI; in DICOM's coordinates
        the first two have the other sign.
    box
        ((x, y, z), (x, y, z)) voxels on the stored grid; the second are the first outside.
    """

    score: float
    mean: float
    voxels: int
    ml: float
    peak: tuple[int, int, int]
    peak_slice: int
    slices: tuple[int, int]
    centroid: tuple[float, float, float]
    box: tuple[tuple[int, ...], tuple[int, ...]]


def find_volume_regions(
    heatmap: np.ndarray, limit: float, affine: np.ndarray, along: int, backwards: bool
) -> list[VolumeRegion]:
    """The regions of a volume, highest score first.

    Parameters
    ----------
    heatmap
        (X, Y, Z) raw values on the stored grid.
    limit
        What all voxels of a region exceed.
    affine
        (4, 4) from voxels to millimetres.
    along, backwards
        Which stored axis the slices follow each other along, and whether they are counted against it.

    Examples
    --------
    >>> heatmap = np.zeros((8, 8, 4))
    >>> heatmap[2:4, 5:8, 1], heatmap[3, 7, 2] = 0.9, 1.0
    >>> found = find_volume_regions(heatmap, 0.5, np.diag([0.5, 2.0, 10.0, 1.0]), along=2, backwards=False)
    >>> [(region.voxels, region.ml, region.peak_slice, region.slices) for region in found]
    [(7, 0.07, 2, (1, 2))]
    """
    from skimage.measure import label, regionprops

    if not np.isfinite(limit) or not heatmap.size:
        return []
    per_voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    last = heatmap.shape[along] - 1
    found = []
    for region in regionprops(label(heatmap > limit, connectivity=3), intensity_image=heatmap):
        low, high = region.bbox[:3], region.bbox[3:]
        inside = np.where(region.image, region.image_intensity, -np.inf)
        peak = np.array(np.unravel_index(int(inside.argmax()), inside.shape)) + low
        ends = [low[along], high[along] - 1]
        first, end = (last - ends[1], last - ends[0]) if backwards else ends
        centre = affine @ [*region.centroid, 1.0]
        found.append(
            VolumeRegion(
                score=float(region.intensity_max),
                mean=float(region.intensity_mean),
                voxels=int(region.area),
                ml=float(region.area) * per_voxel,
                peak=(int(peak[0]), int(peak[1]), int(peak[2])),
                peak_slice=int(last - peak[along] if backwards else peak[along]),
                slices=(int(first), int(end)),
                centroid=(float(centre[0]), float(centre[1]), float(centre[2])),
                box=(tuple(map(int, low)), tuple(map(int, high))),
            )
        )
    return sorted(found, key=lambda region: (region.score, region.mean), reverse=True)
