"""Lesions drawn in pixel space: the training anomalies that need a second encoding (MediCLIP's way)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from oneshot_medad.images.augment import smooth_noise
from oneshot_medad.synthesis.masks import blob_masks, local_contrast

MIN_CHANGE = 0.06
"""Mean change of the grey value inside a lesion below which it is drawn again."""


def soften(mask: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of an (H, W) mask."""
    radius = max(1, int(3 * sigma))
    line = torch.exp(-(torch.arange(-radius, radius + 1).float() ** 2) / (2 * sigma**2))
    line = line / line.sum()
    x = F.pad(mask[None, None], (radius,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, line[None, None, None, :]), line[None, None, :, None])
    return x[0, 0]


def add_lesions(
    images: torch.Tensor, generator: torch.Generator, max_area: float = 0.15
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one lesion of a random kind into every image.

    Brighter or darker tissue with soft or hard edges, texture, a patch from elsewhere, or a loss of detail; the
    strength is drawn as well.

    Parameters
    ----------
    images
        (B, 3, H, W) in [0, 1].
    generator
        Source of all randomness.
    max_area
        Largest share of the field a lesion covers.

    Returns
    -------
    images (B, 3, H, W) in [0, 1] and masks (B, H, W) of 0 and 1, 1 where the image was changed visibly.
    """
    b, _, h, w = images.shape
    grid = (max(8, h // 4), max(8, w // 4))
    blobs = blob_masks(local_contrast(images, grid), generator, max_area=max_area)
    blobs = F.interpolate(blobs[:, None], (h, w), mode="bilinear", align_corners=False)[:, 0]
    changed = torch.empty_like(images)
    masks = torch.empty(b, h, w)
    for i in range(b):
        for _ in range(5):  # another kind or strength if this one can hardly be seen
            changed[i], masks[i] = _one(images[i], (blobs[i] > 0.5).float(), generator)
            change = (changed[i] - images[i]).abs().mean(0)
            if float((change * masks[i]).sum() / masks[i].sum()) > MIN_CHANGE:
                break
    return changed, masks


def _one(image: torch.Tensor, blob: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand(1, generator=generator))

    h, w = blob.shape
    soft = soften(blob, uniform(0.6, 0.03 * h))
    soft = soft / soft.max().clamp(min=1e-6)
    sign = 1.0 if uniform(0, 1) < 0.5 else -1.0
    kind = int(torch.randint(5, (1,), generator=generator))
    if kind == 0:  # brighter or darker
        new = image + sign * uniform(0.1, 0.6)
    elif kind == 1:  # the same with texture
        cells = int(torch.randint(h // 16, h // 4, (1,), generator=generator))
        texture = smooth_noise((1, 1, h, w), cells, generator)[0]
        new = image + sign * uniform(0.0, 0.4) + uniform(0.05, 0.25) * texture
    elif kind == 2:  # a uniform mass of some grey value
        new = torch.full_like(image, uniform(0, 1)) + 0.3 * (image - image.mean())
    elif kind == 3:  # a patch from elsewhere, possibly turned
        dy = int(torch.randint(h // 6, h - h // 6, (1,), generator=generator))
        dx = int(torch.randint(w // 6, w - w // 6, (1,), generator=generator))
        new = image.roll((dy, dx), dims=(1, 2)).flip(2) * uniform(0.7, 1.3)
    else:  # detail lost, slightly shifted in brightness
        side = max(2, int(uniform(0.03, 0.1) * h))
        new = F.interpolate(
            F.adaptive_avg_pool2d(image[None], max(2, h // side)), (h, w), mode="bicubic", align_corners=False
        )[0]
        new = new + sign * uniform(0.05, 0.25)
    result = (image + soft * (new - image)).clamp(0, 1)
    visible = (result - image).abs().mean(0) > 0.02
    mask = ((soft > 0.3) & visible) if visible.any() else soft > 0.3
    return result, mask.float()
