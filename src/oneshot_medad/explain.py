"""Why one image got its score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from oneshot_medad.calibration import shown
from oneshot_medad.results.pictures import STRIP, blend, colours, strength
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
        (H, W, 3) uint8: the image, and where pictures colour its heatmap, other tissue of the same image or of its
        mirror image whose features come closest to what the closest reference has at that place.
    difference
        (H, W) float32 in [0, 1]: mean absolute difference between the image and ``normal``.
    score, threshold, verdict
        As in `Predictions`.
    regions
        As in `Predictions`: the connected places that make the image abnormal or uncertain, highest first.

    Notes
    -----
    ``normal`` shows what the comparison would have taken for normal, in the patient's own greys. It is a drawing in
    patches, no estimate of how this patient looked before. Where the heatmap is calm it is the image itself.
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
        """Image, heatmap over it, ``normal`` and ``difference`` (0 to 0.25 on the colour scale), each with its title.

        The heatmap looks as `Predictions.pictured` says.
        """
        held = held_back(self.heatmap, self.verdict, self.threshold)
        panels = {
            "image": self.image,
            f"heatmap, {self.verdict}": self.image if not held.size else blend(self.image, held, self.threshold),
            "normal there": self.normal,
            "difference": colours((self.difference * 4).clip(0, 1)),
        }
        return titled({title: Image.fromarray(panel) for title, panel in panels.items()})


def coloured(heatmap: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W) bool: where `visualize.blend` covers the image; nowhere in an empty heatmap."""
    return strength(shown(heatmap, threshold)) > 0


def titled(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures of one size side by side, each with its title above, white on black and cut to its width."""
    first = next(iter(panels.values()))
    sheet = Image.new("RGB", (first.width * len(panels), first.height + STRIP))
    for i, (title, panel) in enumerate(panels.items()):
        line = Image.new("RGB", (first.width, STRIP))
        ImageDraw.Draw(line).text((4, 3), title, fill="white")
        sheet.paste(line, (i * first.width, 0))
        sheet.paste(panel, (i * first.width, STRIP))
    return sheet
