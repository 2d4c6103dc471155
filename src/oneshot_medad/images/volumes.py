"""Scores and heatmaps of whole volumes, from those of their slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oneshot_medad.errors import ConfigError
from oneshot_medad.images.files import File, Series, Slice
from oneshot_medad.images.kinds import NIFTI
from oneshot_medad.images.open import open_stack

TOP = 3
"""Highest slice scores that make the score of a volume: unlike artefacts, lesions seldom show on one slice alone."""


@dataclass(frozen=True)
class Volume:
    """What was found in one volume.

    Attributes
    ----------
    name
        Its file.
    score
        Mean of its three highest slice scores; NaN if no slice has one. A volume has many slices, so the threshold for
        single images is not one for volumes: compare with the scores of normal volumes.
    heatmap
        (X, Y, Z) float32 on the file's own grid and orientation, on the scale of the scores; 0 where a slice has none.
    affine
        (4, 4) of the file, completed where it lacks the direction across a single slice.
    """

    name: str
    score: float
    heatmap: np.ndarray
    affine: np.ndarray

    def save(self, path: str | Path) -> Path:
        """Write the heatmap as NIfTI; it lies on the volume in any viewer.

        Raises
        ------
        ConfigError
            A path that does not end in ``.nii`` or ``.nii.gz``.
        """
        import nibabel

        if not str(path).lower().endswith(NIFTI):
            raise ConfigError(f"Got path {str(path)!r}; wanted one that ends in .nii or .nii.gz.")
        nibabel.save(nibabel.Nifti1Image(self.heatmap, self.affine), path)
        return Path(path)


def assemble(sources: Sequence[Any], scores: np.ndarray, heatmaps: Sequence[np.ndarray]) -> list[Volume]:
    """One `Volume` for every volume and axis among the sources, in their order."""
    found: dict[tuple[File | Series, str], dict[int, int]] = {}
    for i, source in enumerate(sources):
        if isinstance(source, Slice) and source.axis != "frame":
            found.setdefault((source.path, source.axis), {})[source.index] = i
    volumes = []
    for (file, axis), places in found.items():
        grid = open_stack(file).grid  # type: ignore[attr-defined]
        heatmap = grid.stored({z: heatmaps[i] for z, i in places.items() if heatmaps[i].size}, axis)
        known = np.sort([scores[i] for i in places.values() if not np.isnan(scores[i])])
        score = float(known[-TOP:].mean()) if len(known) else float("nan")
        volumes.append(Volume(str(file), score, heatmap, grid.affine))
    return volumes
