"""What a saved detector consists of, and the way to and from a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneshot_medad.calibration import RULES
from oneshot_medad.errors import PersistenceError
from oneshot_medad.persistence.folder import BACKBONE, CALIBRATION, CARD, CONFIG, MODEL, PROVENANCE, SHEET, replacing
from oneshot_medad.persistence.read import is_number, read_json, read_tensors, take

SCHEMA = 2
"""Version of the folder's format; raised when a reader of the old one could not read the new one."""

MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""From a schema to a function that turns its ``config.json`` into the next schema's."""

MAX_TEXT = 500
"""Characters of the licence and of the modality."""


@dataclass(frozen=True)
class Stored:
    """A detector as plain values and tensors.

    Attributes
    ----------
    config
        Everything needed to build it again: schema, package version, backbone, shapes, recipe, parameters.
    tensors
        What was trained or computed at fit.
    calibration
        Threshold and how it was found.
    provenance
        Versions, time, seeds, hashes of the support images, evaluation; nothing that a prediction depends on.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    calibration: dict[str, Any]
    provenance: dict[str, Any]


def write_folder(
    target: str | Path,
    stored: Stored,
    card: str,
    backbone: Mapping[str, Path] | None = None,
    sheet: bytes | None = None,
) -> None:
    """Write a detector, atomically.

    Parameters
    ----------
    target
        A new or empty folder, or a saved detector to replace.
    stored
        The detector.
    card
        Text of its README.
    backbone
        Files of the frozen networks to include, by name.
    sheet
        The PNG that the card shows.
    """
    from safetensors.torch import save

    with replacing(Path(target)) as folder:
        for name, values in (
            (CONFIG, stored.config),
            (CALIBRATION, stored.calibration),
            (PROVENANCE, stored.provenance),
        ):
            (folder / name).write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        (folder / MODEL).write_bytes(save({k: v.detach().contiguous() for k, v in stored.tensors.items()}))
        (folder / CARD).write_text(card, encoding="utf-8")
        if sheet:
            (folder / SHEET).write_bytes(sheet)
        for name, path in (backbone or {}).items():
            (folder / BACKBONE).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / BACKBONE / name)


def read_folder(folder: Path) -> Stored:
    """The detector in ``folder``, with every file checked; nothing is fetched.

    Raises
    ------
    PersistenceError
        Anything missing, extra, damaged, or of a version this package cannot read.
    """
    if not folder.is_dir():
        raise PersistenceError(f"Got {folder}, which is no folder; wanted a saved detector.")
    config = _migrated(read_json(folder, CONFIG), folder / CONFIG)
    take(
        config,
        str(folder / CONFIG),
        schema=int,
        package_version=str,
        backbone=dict,
        shapes=dict,
        recipe=dict,
        parameters=dict,
    )
    where = str(folder / CALIBRATION)
    values = read_json(folder, CALIBRATION)
    calibration = take(
        {**values, **{name: value for name, value in _ADDED.items() if name not in values}},
        where,
        threshold=(float, int),
        rule=str,
        n_support=int,
        normal_scores=list,
        uncertain_from=(float, int, type(None)),
        least_similarity=(float, int, type(None)),
        target_fpr=(float, type(None)),
        uncertain_fpr=(float, type(None)),
        images=list,
        target_sensitivity=(float, type(None)),
        abnormal_scores=list,
        volumes=(dict, type(None)),
    )
    if calibration["volumes"] is not None:
        calibration["volumes"] = take(
            calibration["volumes"],
            f"{where}, volumes,",
            threshold=(float, int),
            rule=str,
            normal_scores=list,
            abnormal_scores=list,
            uncertain_from=(float, int, type(None)),
            target_fpr=(float, type(None)),
            uncertain_fpr=(float, type(None)),
            target_sensitivity=(float, type(None)),
            images=list,
        )
    if calibration["n_support"] < 0 or not all(map(_is_usable, filter(None, (calibration, calibration["volumes"])))):
        raise PersistenceError(
            f"{where} has {calibration}; wanted a rule of {list(RULES)}, n_support from 0, numbers in normal_scores, "
            "rates in (0, 1) and hashes in images."
        )
    return Stored(config, read_tensors(folder, MODEL), calibration, _provenance(folder))


_ADDED: dict[str, Any] = {
    "target_fpr": None,
    "uncertain_fpr": None,
    "images": [],
    "target_sensitivity": None,
    "abnormal_scores": [],
    "volumes": None,
}
"""What the calibration of an older version does not say."""


def _is_usable(calibration: dict[str, Any]) -> bool:
    """Whether the values of a calibration, of images or of volumes, mean something."""
    shares = [calibration[name] for name in ("target_fpr", "uncertain_fpr", "target_sensitivity")]
    abnormal = calibration["abnormal_scores"]
    return (
        calibration["rule"] in RULES
        and all(is_number(score) for score in (*calibration["normal_scores"], *abnormal))
        and all(isinstance(text, str) and re.fullmatch(r"[0-9a-f]{64}", text) for text in calibration["images"])
        and all(share is None or 0 < share < 1 for share in shares)
        and (calibration["rule"] != "sensitivity" or any(score > calibration["threshold"] for score in abnormal))
    )


def _provenance(folder: Path) -> dict[str, Any]:
    """No prediction depends on it, but cards are written from it."""
    where, stored = str(folder / PROVENANCE), read_json(folder, PROVENANCE)
    values = take(
        {**stored, "license": stored.get("license"), "modality": stored.get("modality")},  # older folders lack them
        where,
        created=str,
        versions=dict,
        support=list,
        evaluation=(dict, type(None)),
        license=(str, type(None)),
        modality=(str, type(None)),
    )
    check_said(values, where + ": ")
    images = [
        take(image if isinstance(image, dict) else {}, where, sha256=str, size=list) for image in values["support"]
    ]
    numbers = [n for image in images for n in image["size"]]
    for value in (values["evaluation"] or {}).values():
        numbers += value if isinstance(value, list) and len(value) == 2 else [value]
    texts = [values["created"], *values["versions"], *values["versions"].values(), *(i["sha256"] for i in images)]
    if not all(is_number(n) for n in numbers) or not all(
        isinstance(t, str) and re.fullmatch(r"[\w.:+-]{1,80}", t) for t in texts
    ):
        raise PersistenceError(f"{where} holds something other than a time, versions, hashes, sizes and measures.")
    return values


def check_said(values: Mapping[str, Any], where: str = "") -> None:
    """Raise a `PersistenceError` unless licence and modality are lines of text or None."""
    for name in ("license", "modality"):
        text = values[name]
        if text is not None and not (isinstance(text, str) and text.isprintable() and len(text) <= MAX_TEXT):
            raise PersistenceError(
                f"{where}Got {name}={str(text)[:80]!r}; wanted one printable line of at most {MAX_TEXT} characters."
            )


def _migrated(config: dict[str, Any], path: Path) -> dict[str, Any]:
    schema = config.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise PersistenceError(f"{path} has schema={schema!r}; wanted a whole number. Is it a oneshot-medad detector?")
    while schema != SCHEMA:
        if schema not in MIGRATIONS:
            version = str(config.get("package_version", "of an unknown version"))[:40]
            raise PersistenceError(
                f"{path} was written by oneshot-medad {version} (format {schema}); this version reads format {SCHEMA}. "
                f"Fit it again, or install that version: pip install oneshot-medad=={version}"
            )
        config = MIGRATIONS[schema](config)
        schema = config["schema"]
    return config
