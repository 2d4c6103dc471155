"""An image with some of its places redrawn as the references have them, from tissue of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from oneshot_medad.nn.adapters import pooled
from oneshot_medad.nn.matching import References, as_rows

DRIFT = 2.0
"""What a source at the other end of the image costs, in the unit of the distance of features."""


def expected(features: Sequence[torch.Tensor], references: References) -> torch.Tensor:
    """(C, h, w) finest features of the reference that is closest to the first of (B, C_l, h_l, w_l) as a whole."""
    closest = torch.cdist(pooled([f[:1] for f in features]), pooled(references.levels)).argmin()
    return references.levels[0][closest]


@torch.no_grad()
def redrawn(field: torch.Tensor, own: torch.Tensor, normal: torch.Tensor | None, hot: torch.Tensor) -> torch.Tensor:
    """Fill places of one image with others of it, or of its mirror image, that look like what is normal there.

    Parameters
    ----------
    field
        (3, p·h, p·w) the image; p is even.
    own
        (2, C, h, w) features of the image and of its mirror image.
    normal
        (C, h, w) features that are normal at each place; None takes the nearest tissue, often that of the
        other side, whatever it looks like.
    hot
        (h, w) bool, the places to fill.

    Returns
    -------
    (3, p·h, p·w), the image itself where no place near is hot, or where all of them are.
    """
    h, w = hot.shape
    p = field.shape[-1] // w
    wide, wider = (_grown(hot, n) for n in (1, 2))  # a patch covers half of its neighbours, whose edges are blended
    hidden = torch.cat([wider.flatten(), wider.flip(-1).flatten()])
    if not hot.any() or hidden.all():
        return field.clone()
    places = wide.flatten().nonzero()[:, 0]
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    grid = torch.stack([y.flatten(), x.flatten()], dim=1).to(field.device)
    cost = DRIFT * torch.cdist(grid[places], grid).repeat(1, 2)
    if normal is not None:
        cost += torch.cdist(as_rows(normal[None])[places], as_rows(own)).square() / len(normal)
    source = cost.masked_fill(hidden, torch.inf).argmin(dim=1)
    both = F.pad(torch.stack([field, field.flip(-1)]), [p // 2] * 4, mode="reflect")
    patches = F.unfold(both, 2 * p, stride=p).transpose(0, 1).flatten(1)  # (3·4·p², 2·h·w)
    window = torch.hann_window(2 * p, device=field.device)
    weights = torch.outer(window, window).flatten()
    chosen = patches.new_zeros(3, 4 * p * p, h * w)
    chosen[:, :, places] = patches[:, source].reshape(3, 4 * p * p, -1) * weights[:, None]
    share = patches.new_zeros(1, 4 * p * p, h * w)
    share[:, :, places] = weights[:, None]
    size = ((h + 1) * p, (w + 1) * p)  # windows are half a place larger on every side
    inner = (..., slice(p // 2, -(p // 2)), slice(p // 2, -(p // 2)))
    fill, alpha = (F.fold(part, size, 2 * p, stride=p)[inner][:, 0] for part in (chosen, share))
    return field * (1 - alpha) + fill


def _grown(hot: torch.Tensor, by: int) -> torch.Tensor:
    return F.max_pool2d(hot.float()[None], 2 * by + 1, 1, by)[0].bool()
