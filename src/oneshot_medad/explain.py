"""Why one image got its score."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from oneshot_medad.results.pictures import blend, colours
from oneshot_medad.results.regions import Region
from oneshot_medad.verdicts import held_back


@dataclass(frozen=True, repr=False)
class Explanation:
    """What `AnomalyDetector.explain` returns.

    Attributes
    ----------
    image
        (H, W, 3) uint8, as the detector read it.
    heatmap
        (H, W) float32, as in `Predictions`.
    normal
        (H, W, 3) uint8: the decoded latent after the deviation network took away what it sees as deviation.
    difference
        (H, W) float32 in [0, 1]: mean absolute difference between the decoded latent and ``normal``. The autoencoder's
        own error is in both and cancels.
    score, threshold, verdict
        As in `Predictions`.
    regions
        As in `Predictions`: the connected places that make the image abnormal or uncertain, highest first.

    Notes
    -----
    ``normal`` shows what the deviation network reacts to. It is a drawing at the resolution of the latent grid, no
    estimate of how this patient looked before.
    """

    image: np.ndarray
    heatmap: np.ndarray
    normal: np.ndarray
    difference: np.ndarray
    score: float
    threshold: float
    verdict: str
    regions: list[Region] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Explanation: {self.verdict}, score {self.score:.3f}, {len(self.regions)} region(s)>"

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()

    def picture(self) -> Image.Image:
        """Image, heatmap over it, ``normal`` and ``difference`` (0 to 0.25 on the colour scale), side by side.

        The heatmap looks as `Predictions.pictured` says.
        """
        held = held_back(self.heatmap, self.verdict, self.threshold)
        panels = [
            self.image,
            self.image if not held.size else blend(self.image, held, self.threshold),
            self.normal,
            colours((self.difference * 4).clip(0, 1)),
        ]
        return Image.fromarray(np.concatenate(panels, axis=1))
