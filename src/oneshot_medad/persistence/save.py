"""A fitted detector to a folder, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from oneshot_medad.backbones.resolve import cache_folder, resolve
from oneshot_medad.backbones.specs import SPEC, STATISTICS, BackboneSpec
from oneshot_medad.errors import PersistenceError
from oneshot_medad.fitted import FittedDetector, Networks, check_files
from oneshot_medad.persistence.card import model_card
from oneshot_medad.persistence.describe import fingerprint, pack, stored_spec, unpack
from oneshot_medad.persistence.folder import CONFIG, MODEL
from oneshot_medad.persistence.store import Stored, check_said, read_folder, write_folder
from oneshot_medad.scoring import Scorer


def save_detector(
    fitted: FittedDetector,
    parameters: Mapping[str, Any],
    folder: Path,
    location: str,
    *,
    said: Mapping[str, str | None],
    include_backbones: bool = False,
    fetch: bool = True,
    sheet: bytes | None = None,
) -> Path:
    """Write a fitted detector; see `AnomalyDetector.save_pretrained`.

    Parameters
    ----------
    fitted, parameters
        What a fit gave, and the constructor's parameters.
    folder, location
        Where to, and what the card calls it.
    said
        ``license`` and ``modality``; None keeps what the detector's provenance says.
    include_backbones, fetch
        Put the frozen networks into the folder; they may be fetched first.
    sheet
        The PNG that the card shows.
    """
    said = {name: fitted.provenance.get(name) if text is None else text for name, text in said.items()}
    check_said(said)
    backbone, scorer = fitted.networks.load(fetch), fitted.scorer
    stored = Stored(
        pack(parameters, scorer.recipe, scorer.model.shapes, backbone.spec),
        scorer.to_tensors(),
        fitted.calibration,
        {**fitted.provenance, **said, "evaluation": fitted.evaluation},
    )
    files = {p.name: p for p in {*backbone.spec.files, backbone.folder / STATISTICS}} if include_backbones else None
    write_folder(folder, stored, model_card(stored, location, sheet is not None), files, sheet)
    return folder


def load_detector(
    folder: Path, device: torch.device, given: BackboneSpec | None = None
) -> tuple[FittedDetector, dict[str, Any]]:
    """What `save_detector` wrote, and the constructor's parameters; nothing is fetched.

    Parameters
    ----------
    folder
        Of the saved detector.
    device
        To compute on.
    given
        Frozen networks that the caller has.

    Raises
    ------
    PersistenceError
        A folder that is missing, damaged, from another version, or fitted with other frozen networks.
    """
    stored = read_folder(folder)
    where = str(folder / CONFIG)
    spec = stored_spec(stored.config["backbone"], folder, given)
    files = stored.config["backbone"]["files"]  # checked just now
    if spec.folder is None and (cache_folder(spec) / SPEC).is_file():
        spec = resolve(spec)
    if spec.folder is not None:
        check_files(files, spec.folder, where)
    recipe, shapes, parameters = unpack(stored.config, where)
    try:
        scorer = Scorer.from_tensors(recipe, shapes, stored.tensors)
    except ValueError as error:
        raise PersistenceError(f"{folder / MODEL} does not fit its configuration: {error}") from error
    scorer.sha256 = fingerprint(stored.config, stored.tensors)
    known = {k: v for k, v in stored.provenance.items() if k != "evaluation"}
    networks = Networks(spec, device, files)
    evaluation = stored.provenance.get("evaluation")
    return FittedDetector(networks, scorer.to(device).eval(), stored.calibration, known, evaluation), parameters
