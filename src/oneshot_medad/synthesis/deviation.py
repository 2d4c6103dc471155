"""The masked forward process and the synthesis of anomalies in latent space (DeCo-Diff, CVPR 2025).

Here a mask is 1 where the latent is disturbed; DeCo-Diff's code has the opposite sign.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from oneshot_medad.images.augment import smooth_noise

N_TIMES = 10
"""Timesteps of the forward process; DeCo-Diff trains and corrects in ten."""


def alphas_bar(n_times: int = N_TIMES) -> torch.Tensor:
    """ᾱ_0 … ᾱ_{T−1} of the cosine schedule (Nichol & Dhariwal 2021, eq. 17), betas capped at 0.999."""

    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / n_times) / level(i / n_times), 0.999) for i in range(n_times)]
    return torch.cumprod(1 - torch.tensor(betas), dim=0)


def strengths(n_times: int = N_TIMES) -> torch.Tensor:
    """√(1−ᾱ_t) of every timestep."""
    return (1 - alphas_bar(n_times)).sqrt()


@dataclass(frozen=True)
class Disturbed:
    """What the masked forward process makes of clean latents.

    Attributes
    ----------
    z_noisy, eta
        (B, C, h, w) disturbed latent and true deviation: z_noisy = z + √(1−ᾱ_t)·eta, and eta is 0 where the mask is.
    mask
        (B, h, w), 1 where disturbed.
    t, strength
        (B,) timestep and √(1−ᾱ_t).
    """

    z_noisy: torch.Tensor
    eta: torch.Tensor
    mask: torch.Tensor
    t: torch.Tensor
    strength: torch.Tensor


def masked_forward(z: torch.Tensor, mask: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> Disturbed:
    """z_noisy = (1−m)·z + m·(√ᾱ_t·z + √(1−ᾱ_t)·ε) and its deviation eta = m·(ε − (1−√ᾱ_t)/√(1−ᾱ_t)·z).

    Parameters
    ----------
    z
        (B, C, h, w) standardised clean latents.
    mask
        (B, h, w), 1 where disturbed.
    t
        (B,) integers in [0, T).
    noise
        (B, C, h, w): ε.
    """
    kept = alphas_bar().to(z.device)[t].sqrt()[:, None, None, None]
    strength = (1 - kept**2).sqrt()
    m = mask[:, None]
    z_noisy = (1 - m) * z + m * (kept * z + strength * noise)
    eta = m * (noise - (1 - kept) / strength * z)
    return Disturbed(z_noisy, eta, mask, t, strength[:, 0, 0, 0])


def draw_noise(z: torch.Tensor, kinds: Mapping[str, float], generator: torch.Generator) -> torch.Tensor:
    """ε for every latent of a batch, each of one kind drawn with the weights of ``kinds``.

    ``white``: Gaussian. ``shuffle``: the latent's own patches in random order. ``smooth``: Gaussian with spatial
    structure. ``shift``: the latent of another batch member, rolled to another place.
    """
    names = list(kinds)
    picks = torch.multinomial(torch.tensor([float(kinds[k]) for k in names]), len(z), True, generator=generator)
    noise = torch.empty_like(z)
    for i, pick in enumerate(picks.tolist()):
        noise[i] = _NOISES[names[pick]](z, i, generator)
    return noise


def _white(z: torch.Tensor, i: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(z.shape[1:], generator=generator)


def _smooth(z: torch.Tensor, i: int, generator: torch.Generator) -> torch.Tensor:
    scales = torch.randint(2, 9, (2,), generator=generator).tolist()
    fine, coarse = (smooth_noise((1, *z.shape[1:]), cells, generator)[0] for cells in scales)
    offset = torch.randn(z.shape[1], 1, 1, generator=generator)
    return offset + 0.5 * (fine + coarse) / math.sqrt(2)


def _shuffle(z: torch.Tensor, i: int, generator: torch.Generator) -> torch.Tensor:
    c, h, w = z.shape[1:]
    fitting = [s for s in (1, 2, 4, 8, 16) if h % s == 0 and w % s == 0 and s < max(h, w)]
    side = fitting[int(torch.randint(len(fitting), (1,), generator=generator))]
    rows, columns = h // side, w // side
    patches = z[i].reshape(c, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(rows * columns, c, side, side)
    patches = patches[torch.randperm(len(patches), generator=generator)]
    return patches.reshape(rows, columns, c, side, side).permute(2, 0, 3, 1, 4).reshape(c, h, w)


def _shift(z: torch.Tensor, i: int, generator: torch.Generator) -> torch.Tensor:
    h, w = z.shape[-2:]
    donor = z[int(torch.randint(len(z), (1,), generator=generator))]
    dy = int(torch.randint(h // 6, h - h // 6, (1,), generator=generator))
    dx = int(torch.randint(w // 6, w - w // 6, (1,), generator=generator))
    moved = donor.roll((dy, dx), dims=(1, 2))
    return moved.flip(2) if torch.rand(1, generator=generator) < 0.5 else moved


_NOISES = {"white": _white, "shuffle": _shuffle, "smooth": _smooth, "shift": _shift}
