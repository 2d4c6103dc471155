"""Pictures of predictions, all on the shown scale: 0 to 1, the threshold in the middle, the same for every image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from oneshot_medad._names import written
from oneshot_medad.calibration import shown
from oneshot_medad.errors import ImageError, OneShotError
from oneshot_medad.results.predictions import Predictions
from oneshot_medad.verdicts import places_from

COLOUR_MAP = "inferno"
# Perceptually uniform, and its lightness rises all the way, which every kind of colour blindness sees. Cividis does
# that too but turns grey in the middle: at the threshold it would vanish over grey anatomy.

OPACITY = 0.75
"""Of the heatmap over an image, where it is strongest."""

OUTLINE, TRUTH = (64, 255, 255), (51, 255, 102)
"""Colours of the edges of regions and of known lesions; neither is in the colour map."""

UNREADABLE = "heatmap only: image cannot be read again"
UNJUDGED = "cannot judge: unlike the images fitted on"
STRIP = 18
"""Height of a line of text below a picture, pixels."""


def strength(level: np.ndarray) -> np.ndarray:
    """How strongly a heatmap covers the image: not at all up to 0.25 on the shown scale, fully from 0.75 on."""
    return ((level - 0.25) * 2).clip(0, 1)


def colours(level: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 colours of values in [0, 1] on the shown scale."""
    from matplotlib import colormaps

    return (colormaps[COLOUR_MAP](level)[..., :3] * 255).astype(np.uint8)


def blend(image: np.ndarray, heatmap: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W, 3) uint8: the image under its translucent heatmap; arguments as for `overlay`."""
    level = shown(heatmap, threshold)
    share = OPACITY * strength(level)[..., None]
    return (_rgb(image) * (1 - share) + colours(level) * share).astype(np.uint8)


def overlay(
    image: np.ndarray,
    heatmap: np.ndarray,
    threshold: float,
    mask: np.ndarray | None = None,
    limit: float = float("inf"),
) -> Image.Image:
    """The image, its heatmap, and both blended, side by side.

    Parameters
    ----------
    image
        (H, W) or (H, W, 3) uint8.
    heatmap
        (H, W) as `Predictions` holds it.
    threshold
        As `Predictions` holds it; it gets the middle of the colour scale, so that a normal image stays calm.
    mask
        (H, W) bool lesion outline to draw in green, where the truth is known.
    limit
        Places of the heatmap above it are outlined in cyan where both are blended.

    Returns
    -------
    An RGB image three times as wide as the input.

    Examples
    --------
    >>> overlay(np.zeros((20, 30), "uint8"), np.zeros((20, 30)), threshold=0.5).size
    (90, 20)
    """
    panels = [_rgb(image), colours(shown(heatmap, threshold)), blend(image, heatmap, threshold)]
    panels[2] = outlined(panels[2], np.asarray(heatmap) > limit, OUTLINE)
    if mask is not None:
        panels = [outlined(panel, mask, TRUTH) for panel in panels]
    return Image.fromarray(np.concatenate(panels, axis=1))


def outlined(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(H, W, 3) uint8 with the inner edge of (H, W) regions drawn in a colour."""
    if not mask.any():
        return image
    from skimage.segmentation import find_boundaries

    drawn = image.copy()
    drawn[find_boundaries(np.pad(mask, 1), mode="inner")[1:-1, 1:-1]] = colour
    return drawn


def picture(predictions: Predictions, i: int) -> Image.Image:
    """`overlay` of one prediction as `Predictions.pictured` lets it look, its regions outlined.

    The heatmap alone, with a note below, if the image cannot be read again; the image alone, with a note, if it cannot
    be judged.

    Raises
    ------
    ImageError
        There is neither a heatmap to show nor an image.
    """
    heatmap, image = predictions.pictured(i), image_again(predictions, i)
    if not heatmap.size:
        if image is None:
            said = predictions.reasons[i] if predictions.reasons else ""
            raise ImageError(f"Got image {i}, which has no heatmap ({said}); wanted one that was read.")
        outside = predictions.outside(i)
        return captioned(Image.fromarray(image), [f"cannot judge: {outside}" if outside else UNJUDGED])
    if image is None:
        return captioned(Image.fromarray(colours(shown(heatmap, predictions.threshold))), [UNREADABLE])
    limit = places_from(predictions.verdict(i), predictions.threshold, predictions.uncertain_from)
    return overlay(image, heatmap, predictions.threshold, limit=limit)


def image_again(predictions: Predictions, i: int) -> np.ndarray | None:
    """`Predictions.image`, or None if the source can no longer be read or has become another image."""
    try:
        image = predictions.image(i)
    except OneShotError:
        return None
    return image if image.shape[:2] == predictions.heatmaps[i].shape else None


def captioned(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture, wide enough for lines of text below it, white on black."""
    draw = ImageDraw.Draw(picture)
    width = max([picture.width, *(int(draw.textlength(line)) + 9 for line in lines)])
    sheet = Image.new("RGB", (width, picture.height + STRIP * len(lines)))
    sheet.paste(picture, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for n, line in enumerate(lines):
        draw.text((4, picture.height + STRIP * n + 3), line, fill="white")
    return sheet


def plot(predictions: Predictions, n: int = 12, columns: int = 4) -> Any:
    """A matplotlib figure of the first ``n`` images: heatmaps over them, regions outlined, scores and a colour bar.

    Parameters
    ----------
    predictions
        What to draw.
    n, columns
        How many images, and how many of them in a row.

    Returns
    -------
    A `matplotlib.figure.Figure` of its own, unknown to pyplot. Notebooks show it, whatever matplotlib is set to
    there; elsewhere call its ``savefig``.
    """
    from matplotlib.cm import ScalarMappable

    n = min(n, len(predictions))
    columns = max(1, min(columns, n))
    rows = max(1, -(-n // columns))
    figure = _figure_class()(figsize=(2.6 * columns + 1, 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    values = predictions.shown
    for i, axes in zip(range(n), grid.flat, strict=False):
        name, heatmap = predictions.names[i].replace("\\", "/").rsplit("/", 1)[-1], predictions.pictured(i)
        title = written(name)[-28:]
        image, verdict = image_again(predictions, i), predictions.verdict(i)
        if heatmap.size:
            level = shown(heatmap, predictions.threshold)
            drawn = colours(level) if image is None else blend(image, heatmap, predictions.threshold)
            limit = places_from(verdict, predictions.threshold, predictions.uncertain_from)
            axes.imshow(outlined(drawn, heatmap > limit, OUTLINE))
            title += f"\n{values[i]:.2f} {verdict.replace('abnormal', 'ABNORMAL')}"
            title += " (heatmap only)" if image is None else ""
        elif image is not None:
            axes.imshow(image)
            title += f"\n{verdict}"
        else:
            axes.text(0.5, 0.5, verdict, ha="center", va="center")
        axes.set_title(title, fontsize=8, parse_math=False)
    bar = figure.colorbar(ScalarMappable(cmap=COLOUR_MAP), ax=grid, shrink=0.8)
    bar.ax.axhline(0.5, color="white", linewidth=2)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "0.25", "0.5 threshold", "0.75", "1"])
    return figure


@cache
def _figure_class() -> Any:
    """A figure that draws itself in notebooks, which know to draw matplotlib's own only after its inline magic."""
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            file = BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    return Shown


def contact_sheet(pictures: Sequence[Image.Image], captions: Sequence[str], columns: int = 2) -> Image.Image:
    """All pictures on one sheet, each with a caption right below; rows are as high as their highest picture."""
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    width = max(picture.width for picture in pictures)
    heights = [max(pictures[i].height for i in row) + STRIP for row in rows]
    sheet = Image.new("RGB", (columns * width, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        for column, i in enumerate(row):
            x, y = column * width, sum(heights[:number])
            sheet.paste(pictures[i], (x, y))
            draw.text((x + 4, y + pictures[i].height + 3), captions[i], fill="black")
    return sheet


def _rgb(image: np.ndarray) -> np.ndarray:
    grey = np.asarray(image)
    return np.repeat(grey[..., None], 3, axis=2) if grey.ndim == 2 else grey
