"""Simulated MRI volumes of heads, healthy and sick: the packaged brain, moved and bent in space, with lesions in it.

Nothing of what a fit draws its own anomalies with is used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel
import nilearn.datasets
import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates

from oneshot_medad._brain import TEMPLATE, load_template

APART = 12.0
"""Millimetres between slices; the template has voxels of one."""
KINDS = ("bright", "dark", "textured", "mass")


@dataclass(frozen=True)
class Head:
    """One simulated examination.

    Attributes
    ----------
    values
        (X, Y, Z) uint8, axial slices from inferior.
    lesion
        (Z,) bool: slices that show the lesion.
    """

    values: np.ndarray
    lesion: np.ndarray

    def save(self, path: Path) -> Path:
        """As NIfTI whose header says what is black and white."""
        image = nibabel.Nifti1Image(self.values, np.diag([1.0, 1.0, APART, 1.0]))
        image.header["cal_min"], image.header["cal_max"] = 0, 255
        nibabel.save(image, path)
        return path


@lru_cache(maxsize=1)
def _anatomy() -> tuple[np.ndarray, np.ndarray]:
    """The template, and how deep in grey or white matter each of its voxels lies."""
    folder = Path(nilearn.datasets.__file__).parent / "data"
    matter = sum(
        np.asarray(nibabel.load(folder / Path(TEMPLATE).name.replace("_t1_", f"_{kind}_")).dataobj, np.float32)
        for kind in ("gm", "wm")
    )
    return load_template(), distance_transform_edt(matter > 0.5 * matter.max())


def simulate(seed: int, kind: str | None = None) -> Head:
    """A head of its own position, shape, field of view and scanner, the same for a seed; without ``kind`` healthy.

    Parameters
    ----------
    seed
        Of all variation.
    kind
        One of `KINDS`: a bright lesion with a soft rim, a dark cavity, a textured infiltration, or a mass that pushes
        tissue aside; 7 to 18 mm in radius, anywhere in the brain.
    """
    rng = np.random.default_rng(seed)
    template, depth = _anatomy()
    first, last = rng.uniform(2, 10), rng.uniform(140, 148)
    levels = np.arange(first, last, APART)
    shape = (template.shape[0], template.shape[1], len(levels))
    places = np.stack(np.meshgrid(*map(np.arange, shape[:2]), levels, indexing="ij")).astype(np.float32)
    places = _moved(places, np.array(template.shape) / 2, rng)
    draw = _LESIONS[kind] if kind else None
    if draw is None:
        signal, lesion = _sample(template, places), np.zeros(len(levels), bool)
    else:
        radius = rng.uniform(7, 18)
        inside = np.argwhere(depth > min(0.4 * radius, 0.8 * depth.max()))
        centre = inside[rng.integers(len(inside))].astype(np.float32)
        away = places - centre[:, None, None, None]
        angle = np.arctan2(away[1], away[0])
        lobes = 1 + sum(rng.uniform(0, 0.12) * np.sin(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
        distance = np.sqrt((away**2).sum(axis=0)) / (radius * lobes)
        signal = draw(template, places, away, distance, radius, rng)
        lesion = (distance < 1).any(axis=(0, 1))
    return Head(_scan(signal, rng), lesion)


def _moved(places: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Where on the template each place of a turned, scaled, shifted and bent head lies."""
    around = places - centre[:, None, None, None]
    for (i, j), most in (((0, 1), 7), ((1, 2), 4), ((0, 2), 3)):
        angle = np.deg2rad(rng.uniform(-most, most))
        a, b = around[i].copy(), around[j].copy()
        around[i], around[j] = np.cos(angle) * a - np.sin(angle) * b, np.sin(angle) * a + np.cos(angle) * b
    around *= rng.uniform(0.95, 1.05, 3).astype(np.float32)[:, None, None, None]
    coarse = np.stack(np.meshgrid(*(np.linspace(1, 5, n, dtype=np.float32) for n in places.shape[1:]), indexing="ij"))
    for axis in range(3):
        bend = map_coordinates(rng.standard_normal((7, 7, 7)).astype(np.float32), coarse, order=2)
        around[axis] += bend / np.abs(bend).max() * rng.uniform(0, 3) + rng.uniform(-4, 4)
    return around + centre[:, None, None, None].astype(np.float32)


def _sample(template: np.ndarray, places: np.ndarray) -> np.ndarray:
    return map_coordinates(template, places, order=1)


def _scan(signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a scanner makes of it: coil shading, exposure, contrast and Rician noise, as 8 bit."""
    x, y, z = (np.linspace(-1, 1, n) for n in signal.shape)
    tilt = rng.uniform(-0.08, 0.08, 3)
    shading = 1 + tilt[0] * x[:, None, None] + tilt[1] * y[:, None] + tilt[2] * z
    signal = (signal * shading).clip(0) ** rng.uniform(0.9, 1.15) * rng.uniform(0.78, 0.92)
    sigma = rng.uniform(0.005, 0.015)
    noise = sigma * rng.standard_normal((2, *signal.shape))
    return (np.hypot(signal + noise[0], noise[1]).clip(0, 1) * 255).astype(np.uint8)


def _bright(template, places, away, distance, radius, rng) -> np.ndarray:
    head = _sample(template, places)
    ramp = 1 / (1 + np.exp(((distance - 1) * rng.uniform(6, 14)).clip(-50, 50)))
    return head + ramp * rng.uniform(0.2, 0.4) * (head > 0.05)


def _dark(template, places, away, distance, radius, rng) -> np.ndarray:
    head = _sample(template, places)
    ramp = 1 / (1 + np.exp(((distance - 1) * rng.uniform(8, 20)).clip(-50, 50)))
    return head * (1 - ramp) + ramp * rng.uniform(0.1, 0.3) * (head > 0.05)


def _textured(template, places, away, distance, radius, rng) -> np.ndarray:
    head = _sample(template, places)
    grain = gaussian_filter(rng.standard_normal(head.shape), [rng.uniform(1, 2.5)] * 2 + [0.3])
    ramp = 1 / (1 + np.exp(((distance - 1) * 8).clip(-50, 50)))
    change = grain / grain.std() * rng.uniform(0.09, 0.15) - rng.uniform(0.05, 0.15)
    return head + ramp * change * (head > 0.05)


def _mass(template, places, away, distance, radius, rng) -> np.ndarray:
    """Tissue is pushed outwards up to twice the radius around a faint core."""
    r = np.maximum(np.sqrt((away**2).sum(axis=0)), 1e-3)
    reach = 2.2 * radius
    pull = np.where(r < reach, np.maximum(r - 0.55 * radius * (1 - r / reach), 0.25 * r) / r, 1)
    core = 1 / (1 + np.exp(((distance - 0.8) * 10).clip(-50, 50)))
    return _sample(template, places + away * (pull - 1)) * (1 - 0.3 * core)


_LESIONS: dict[str, Callable[..., np.ndarray]] = dict(zip(KINDS, (_bright, _dark, _textured, _mass), strict=True))
