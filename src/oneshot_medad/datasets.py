"""Sample data that needs no download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from oneshot_medad._brain import load_template


@dataclass(frozen=True)
class Sample:
    """Images to try a detector on.

    Attributes
    ----------
    support
        One normal image, (H, W) uint8: what to fit on.
    images
        Normal and abnormal images, (H, W) uint8, none of them in ``support``.
    labels
        (N,) 0 for normal, 1 for abnormal.
    masks
        (H, W) bool per image, True on the lesion.
    names
        Label, kind of lesion and number.
    """

    support: np.ndarray
    images: list[np.ndarray]
    labels: np.ndarray
    masks: list[np.ndarray]
    names: list[str]


def load_sample(n_normal: int = 12, n_abnormal: int = 12, random_state: int = 0) -> Sample:
    """Axial brain MRI slices with and without simulated lesions.

    The anatomy is the ICBM 152 nonlinear T1 average brain (Fonov et al. 2011), which ``nilearn`` ships. Normal images
    are neighbouring slices of it as different scans of one head would show them: turned, shifted, bent, with another
    exposure, coil shading and noise. Abnormal ones get one lesion in turn of four kinds: a bright one with a soft rim,
    a dark cavity, a textured infiltration, and a mass that pushes tissue aside. None of the code that draws training
    anomalies is used here.

    Parameters
    ----------
    n_normal, n_abnormal
        How many images of each label.
    random_state
        Seed of all variation.

    Raises
    ------
    ImageFileError
        The installed ``nilearn`` does not hold the template.

    Examples
    --------
    >>> sample = load_sample(n_normal=2, n_abnormal=2)
    >>> sample.support.dtype, sample.labels.tolist(), sample.names[2]
    (dtype('uint8'), [0, 0, 1, 1], 'abnormal-bright-0')
    """
    rng = np.random.default_rng(random_state)
    volume = load_template()
    images, labels, masks, names = [], [], [], []
    kinds = list(_LESIONS)
    for i in range(n_normal + n_abnormal):
        head = _head(volume, rng)
        if i < n_normal:
            mask, name = np.zeros(head.shape, bool), f"normal-{i}"
        else:
            kind = kinds[(i - n_normal) % len(kinds)]
            brain = head > 0.05
            head, mask = _LESIONS[kind](head, *_place(head, rng), rng)
            if kind != "mass":  # a mass bulges, everything else stays inside
                head = np.where(brain, head, 0)
                mask = mask & brain
            name = f"abnormal-{kind}-{i - n_normal}"
        images.append(_scan(head, rng))
        labels.append(int(i >= n_normal))
        masks.append(mask)
        names.append(name)
    support = _scan(_slice(volume, _MIDDLE), rng)
    return Sample(support, images, np.array(labels), masks, names)


_MIDDLE = 90.0
_Lesion = tuple[np.ndarray, np.ndarray]


def _slice(volume: np.ndarray, level: float) -> np.ndarray:
    """Axial slice at a fractional level, upright, with a border."""
    below = int(level)
    plane = volume[:, :, below] * (1 - level + below) + volume[:, :, below + 1] * (level - below)
    return np.pad(np.rot90(plane), ((6, 7), (24, 25)))


def _head(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slice near the middle level of a slightly different head."""
    from scipy.ndimage import gaussian_filter, map_coordinates

    plane = _slice(volume, _MIDDLE + rng.uniform(-2, 2))
    h, w = plane.shape
    angle, scale = np.deg2rad(rng.uniform(-7, 7)), rng.uniform(0.95, 1.05)
    y, x = np.mgrid[:h, :w].astype(np.float32)
    y0, x0 = (y - h / 2) * scale, (x - w / 2) * scale * rng.uniform(0.97, 1.03)
    bend = [gaussian_filter(rng.standard_normal((h, w)), 22) for _ in range(2)]
    bend = [b / np.abs(b).max() * rng.uniform(0, 3) for b in bend]
    rows = y0 * np.cos(angle) - x0 * np.sin(angle) + h / 2 + rng.uniform(-4, 4) + bend[0]
    columns = y0 * np.sin(angle) + x0 * np.cos(angle) + w / 2 + rng.uniform(-4, 4) + bend[1]
    return map_coordinates(plane, [rows, columns], order=1)


def _scan(head: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of it: coil shading, exposure, contrast and Rician noise, as 8 bit."""
    h, w = head.shape
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    shading = 1 + rng.uniform(-0.08, 0.08) * y + rng.uniform(-0.08, 0.08) * x
    signal = (head * shading).clip(0) ** rng.uniform(0.9, 1.15) * rng.uniform(0.78, 0.92)
    sigma = rng.uniform(0.005, 0.015)
    noisy = np.hypot(signal + sigma * rng.standard_normal((h, w)), sigma * rng.standard_normal((h, w)))
    return (noisy.clip(0, 1) * 255).astype(np.uint8)


def _place(head: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Signed distance-like field of a lobed region inside the brain (below 1 is inside), and its radius in pixels."""
    from scipy.ndimage import binary_erosion

    radius = rng.uniform(7, 18)
    inside = np.argwhere(binary_erosion(head > 0.3, iterations=int(radius * 0.8)))
    cy, cx = inside[rng.integers(len(inside))]
    y, x = np.mgrid[: head.shape[0], : head.shape[1]]
    angle = np.arctan2(y - cy, x - cx)
    outline = 1 + sum(rng.uniform(0, 0.12) * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
    return np.hypot(y - cy, x - cx) / (radius * outline), radius


def _bright(head: np.ndarray, distance: np.ndarray, radius: float, rng: np.random.Generator) -> _Lesion:
    ramp = 1 / (1 + np.exp((distance - 1) * rng.uniform(6, 14)))
    return head + ramp * rng.uniform(0.2, 0.4), distance < 1.1


def _dark(head: np.ndarray, distance: np.ndarray, radius: float, rng: np.random.Generator) -> _Lesion:
    ramp = 1 / (1 + np.exp((distance - 1) * rng.uniform(8, 20)))
    return head * (1 - ramp) + ramp * rng.uniform(0.1, 0.3), distance < 1.1


def _textured(head: np.ndarray, distance: np.ndarray, radius: float, rng: np.random.Generator) -> _Lesion:
    from scipy.ndimage import gaussian_filter

    grain = gaussian_filter(rng.standard_normal(head.shape), rng.uniform(1, 2.5))
    ramp = 1 / (1 + np.exp((distance - 1) * 8))
    return head + ramp * (grain / grain.std() * rng.uniform(0.09, 0.15) - rng.uniform(0.05, 0.15)), distance < 1.1


def _mass(head: np.ndarray, distance: np.ndarray, radius: float, rng: np.random.Generator) -> _Lesion:
    """Tissue is pushed outwards up to twice the radius around a faint core."""
    from scipy.ndimage import map_coordinates

    y, x = np.mgrid[: head.shape[0], : head.shape[1]].astype(np.float32)
    cy, cx = np.unravel_index(distance.argmin(), distance.shape)
    r = np.maximum(np.hypot(y - cy, x - cx), 1e-3)
    reach = 2.2 * radius
    pull = np.where(r < reach, np.maximum(r - 0.55 * radius * (1 - r / reach), 0.25 * r) / r, 1)
    moved = map_coordinates(head, [cy + (y - cy) * pull, cx + (x - cx) * pull], order=1)
    core = 1 / (1 + np.exp((distance - 0.8) * 10))
    return moved * (1 - 0.3 * core), r < 1.4 * radius


_LESIONS: dict[str, Callable] = {"bright": _bright, "dark": _dark, "textured": _textured, "mass": _mass}
