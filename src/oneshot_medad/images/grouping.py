"""Which DICOM images make up a volume: grouped by study and series, in order of their position in the patient."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from oneshot_medad.errors import ExtraError, ImageError
from oneshot_medad.images.dicom import read_dataset
from oneshot_medad.images.dicom_values import numbers, pair, places, text, whole
from oneshot_medad.images.files import File, Series
from oneshot_medad.images.grid import Grid
from oneshot_medad.images.open import reading

APART: tuple[str, ...] = (
    *("StackID", "TemporalPositionIdentifier", "TemporalPositionIndex", "AcquisitionNumber", "FrameAcquisitionNumber"),
    *("EchoNumbers", "EchoTime", "EffectiveEchoTime", "DiffusionBValue", "TriggerTime", "ImageType", "FrameType"),
)
"""What tells several volumes of one series from each other, where two of their images have one position."""
_GROUPS = {
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "DiffusionBValue": "MRDiffusionSequence",
}
_TAGS = [
    *APART,
    *("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID", "Rows"),
    *("Columns", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SpacingBetweenSlices", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
LOCALIZER, COPY = "localizer", "copy"
"""What images count as that only show where others lie, or that are in a volume already, where they are passed over."""
SAME = 0.01
"""By how much directions, and by what share pixels of one volume may differ."""
UNEVEN, ROUNDED = 0.1, 0.1
"""Share of the spacing, or millimetres, by which an image may lie off its place: positions are often rounded."""
TILT = 0.5
"""1 - cos of 60°: further from their normal, images stand beside each other rather than behind."""
MAX_MISSING = 0.5
"""Share of positions without an image above which images are no volume with gaps."""


@dataclass
class Grouped:
    """What `group` found.

    Attributes
    ----------
    volumes
        In the order of their first file.
    localizers
        Files that only show where others lie.
    doubled
        Files with an image that another file of a volume holds already.
    refused
        Why the images of a series make up no volume, by its first file.
    """

    volumes: list[Series] = field(default_factory=list)
    localizers: list[File] = field(default_factory=list)
    doubled: list[File] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Image:
    file: File
    frame: int
    instance: str
    key: tuple[Hashable, ...]
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, float]
    apart: tuple[str, ...]
    localizer: bool
    number: str
    hint: float | None


def group(files: Iterable[File]) -> Grouped:
    """The volumes among DICOM files; what has no position in a patient is part of none."""
    found = Grouped()
    series: dict[tuple[Hashable, ...], list[list[_Image]]] = defaultdict(list)
    for file in files:
        with reading(file):
            images = _images(file)
        if images and images[0].localizer:
            found.localizers.append(file)
        for image in images:
            stacks = series[image.key]
            stack = next((one for one in stacks if _parallel(one[0], image)), None)
            if stack is None:
                stacks.append(stack := [])
            stack.append(image)
    for images in (stack for stacks in series.values() for stack in stacks):
        try:
            images, doubled = _once(images)
            parts = _parts(images)
            found.volumes += map(_volume, parts)
        except (ImageError, ArithmeticError, ValueError) as error:  # directions or positions that mean nothing
            found.refused[str(images[0].file)] = str(error)
        else:
            found.doubled += doubled if parts else []
    found.volumes = _named(found.volumes)
    return found


def _images(file: File) -> list[_Image]:
    """What a header says of its frames; nothing if they lie nowhere."""
    ds = read_dataset(file, stop_before_pixels=True, specific_tags=_TAGS)
    frames = whole(ds, "NumberOfFrames") or 1
    found = []
    for frame in range(frames):
        position = _first(ds, frame, "PlanePositionSequence", "ImagePositionPatient", 3)
        orientation = _first(ds, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        spacing = next((p for i in places(ds, frame, "PixelMeasuresSequence") if (p := pair(i, "PixelSpacing"))), None)
        if position is None or orientation is None or spacing is None or not text(ds, "SeriesInstanceUID"):
            return []
        about = (text(ds, "StudyInstanceUID"), text(ds, "SeriesInstanceUID"), text(ds, "FrameOfReferenceUID"))
        size = (whole(ds, "Columns"), whole(ds, "Rows"))
        hint = _first(ds, frame, "PixelMeasuresSequence", "SpacingBetweenSlices", 1)
        found.append(
            _Image(
                file,
                frame,
                f"{text(ds, 'SOPInstanceUID')} {frame}",
                (*about, str(file) if frames > 1 else "", size),
                tuple(round(value, 3) for value in position),
                orientation,
                spacing,
                tuple(_value(ds, frame, name) for name in APART),
                "LOCALIZER" in _value(ds, 0, "ImageType").upper(),
                str(whole(ds, "SeriesNumber") or ""),
                abs(hint[0]) if hint and hint[0] else None,
            )
        )
    return found


def _parallel(one: _Image, other: _Image) -> bool:
    """Whether two images of one series have the same directions and pixels, but for the last digits."""
    alike = np.allclose(one.orientation, other.orientation, rtol=0, atol=SAME)
    return alike and np.allclose(one.spacing, other.spacing, rtol=SAME, atol=0)


def _first(ds: Any, frame: int, sequence: str, name: str, count: int) -> tuple[float, ...] | None:
    for item in places(ds, frame, sequence):
        found = numbers(item, name)
        if len(found) == count and np.isfinite(found).all():
            return tuple(found)
    return None


def _value(ds: Any, frame: int, name: str) -> str:
    for item in places(ds, frame, _GROUPS.get(name, "")):
        try:
            value = item[name].value
        except Exception:  # missing or nonsense
            continue
        return str(value)
    return ""


def _once(images: Sequence[_Image]) -> tuple[list[_Image], list[File]]:
    """Every instance once, and the files that hold one again."""
    kept: dict[str, _Image] = {}
    again = []
    for image in images:
        if kept.setdefault(image.instance, image) is not image:
            again.append(image.file)
    return list(kept.values()), again


def _parts(images: list[_Image]) -> list[list[_Image]]:
    """Images with different positions together; an `ImageError` if nothing tells those of one position apart."""
    positions = Counter(image.position for image in images)
    if len(positions) == 1:
        return []
    if max(positions.values()) == 1:
        return [images]
    for place in range(len(APART)):
        split = defaultdict(list)
        for image in images:
            split[image.apart[place]].append(image)
        if len(split) > 1 and all(len({image.position for image in some}) > 1 for some in split.values()):
            return [part for some in split.values() for part in _parts(some)]
    where, count = positions.most_common(1)[0]
    raise ImageError(
        f"Got {count} images at the position {where}, and no attribute that tells several volumes apart; wanted one "
        "image a position. Pass the images of one volume alone."
    )


def _volume(images: list[_Image]) -> Series:
    """The images in the order of their positions, which are evenly spaced, with gaps where some are missing."""
    indices = _indices(images)
    affine = _affine(images, indices)
    size: Any = images[0].key[4]
    grid = Grid(affine, (*size, max(indices) + 1))
    axis, backwards = grid.across
    if backwards:
        indices = [max(indices) - index for index in indices]
        affine = _affine(images, indices)
    planes: list[tuple[File, int] | None] = [None] * (max(indices) + 1)
    for image, index in zip(images, indices, strict=True):
        planes[index] = image.file, image.frame
    about = images[0].key
    name = _place([image.file for image in images])
    lies = tuple(tuple(map(float, row)) for row in affine)
    return Series(name, str(about[0]), str(about[1]), 1, images[0].number, axis, tuple(planes), lies, size)


def _indices(images: list[_Image]) -> list[int]:
    try:
        from highdicom.spatial import get_volume_positions
    except ImportError as error:
        raise ExtraError("DICOM series need highdicom: pip install 'oneshot-medad[dicom]'") from error
    positions, orientation = [image.position for image in images], images[0].orientation
    gaps = np.diff(np.sort(np.array(positions) @ np.cross(orientation[:3], orientation[3:])))
    asked: dict[str, Any] = {"atol": max(UNEVEN * float(np.median(gaps)), ROUNDED), "perpendicular_tol": TILT}
    _, indices = get_volume_positions(positions, orientation, **asked)
    if indices is not None:
        return indices
    for hint in filter(None, (images[0].hint, float(np.median(gaps)), float(gaps.min()))):
        if hint > ROUNDED:
            _, indices = get_volume_positions(
                positions, orientation, allow_missing_positions=True, spacing_hint=hint, **asked
            )
        if indices is not None and len(set(indices)) == len(indices) >= MAX_MISSING * (max(indices) + 1):
            return indices
    raise ImageError(
        f"Got {len(images)} images {gaps.min():.4g} to {gaps.max():.4g} mm apart; wanted even distances, or multiples "
        "of one where images are missing."
    )


def _affine(images: list[_Image], indices: list[int]) -> np.ndarray:
    """From columns, rows and planes to RAS+ millimetres; sheared where a gantry was tilted."""
    first = images[0]
    height, width = first.spacing
    # the straight line through all positions, so that rounding in single ones does not matter
    design = np.stack([np.array(indices, dtype=float), np.ones(len(indices))], 1)
    step, start = np.linalg.lstsq(design, np.array([image.position for image in images]), rcond=None)[0].round(6)
    affine = np.eye(4)
    affine[:3] = np.stack(
        [np.array(first.orientation[:3]) * width, np.array(first.orientation[3:]) * height, step, start], 1
    )
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM counts to the left and to the back


def _place(files: Sequence[File]) -> str:
    if len(set(files)) == 1:
        return str(files[0])
    folders = [str(PurePath(str(file)).parent) for file in files]
    try:
        return os.path.commonpath(folders) or "."
    except ValueError:  # absolute and relative ones, or several drives
        return folders[0]


def _named(volumes: list[Series]) -> list[Series]:
    """Each with a name of its own: place, series number, else its UID, and part."""
    uids, numbered, parts = defaultdict(set), defaultdict(set), Counter((one.name, one.uid) for one in volumes)
    for one in volumes:
        uids[one.name].add(one.uid)
        numbered[one.name, one.number].add(one.uid)
    named, seen = [], Counter[tuple[str, str]]()
    for one in volumes:
        seen[one.name, one.uid] += 1
        part, several = seen[one.name, one.uid], parts[one.name, one.uid] > 1
        unique = one.number and len(numbered[one.name, one.number]) == 1
        said = f"series {one.number if unique else one.uid}" if several or len(uids[one.name]) > 1 else ""
        said = f"[{said} part {part}]" if several else said and f"[{said}]"
        named.append(replace(one, name=one.name + said, part=part))
    return named
