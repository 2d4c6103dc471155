"""What a fit gives, as one value: what is predicted with, saved, explained, measured and put on Ray."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneshot_medad._hub import plain_file, sha256
from oneshot_medad.backbones import Backbone, load_backbone
from oneshot_medad.backbones.resolve import resolve
from oneshot_medad.backbones.specs import BACKBONES, BackboneSpec
from oneshot_medad.calibration import normal_scores
from oneshot_medad.errors import PersistenceError
from oneshot_medad.operating import with_points
from oneshot_medad.scoring import Scorer


@dataclass
class Networks:
    """The frozen networks of a detector, loaded when they are first used.

    Attributes
    ----------
    spec
        Which; without a folder they are looked for when they are first used.
    device
        Where they compute.
    files
        SHA-256 of the files that they must be read from, by name; empty where those at hand are right.
    """

    spec: BackboneSpec
    device: torch.device
    files: Mapping[str, str] = field(default_factory=dict)

    def load(self, fetch: bool = True) -> Backbone:
        """The networks, shared with all detectors that use the same; ``fetch`` allows to ask the Hub for them."""
        if self.spec.folder is None:  # read back where they were not at hand
            spec = resolve(self.spec, fetch)
            assert spec.folder is not None
            check_files(self.files, spec.folder, "This detector")
            self.spec = spec
        return load_backbone(self.spec, self.device)

    def portable(self) -> Networks:
        """The same on the CPU, with the hashes of the files beside their folder."""
        files = self.files
        if self.spec.folder is not None:
            files = {path.name: sha256(path) for path in self.spec.files}
        return Networks(self.spec, torch.device("cpu"), files)

    def placed(self, device: torch.device) -> Networks:
        """What `portable` gave, where its files are on this machine; they must be the same."""
        spec = self.spec
        if spec.folder is not None and not spec.folder.is_dir():  # pickled elsewhere
            known = BACKBONES.get(spec.name)
            spec = replace(spec, folder=None if known is None else known.folder)
        if spec.folder is not None:
            check_files(self.files, spec.folder, "This detector")
        return Networks(spec, device, self.files)


@dataclass(frozen=True, eq=False)
class FittedDetector:
    """A fitted scorer, the frozen networks before it, and what is known about both.

    It never changes: a calibration makes another one, so that a call that has begun goes on with what it began with.

    Attributes
    ----------
    networks
        Frozen.
    scorer
        What was trained or computed at fit, on the device of the networks.
    calibration
        Threshold and how it was found, as ``calibration.json`` holds it.
    provenance
        Time, versions and hashes of the images fitted on.
    evaluation
        What was measured last; None if nothing was.
    history
        Losses of every training step.
    examples
        (n, 3, S, S) fields fitted on, a few; None once read back.
    """

    networks: Networks
    scorer: Scorer
    calibration: dict[str, Any]
    provenance: dict[str, Any]
    evaluation: dict[str, Any] | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    examples: torch.Tensor | None = None

    @property
    def threshold(self) -> float:
        """Score above which an image is flagged."""
        return float(self.calibration["threshold"])

    @property
    def n_support(self) -> int:
        """Number of normal images fitted on."""
        return int(self.calibration["n_support"])

    @property
    def calibration_scores(self) -> np.ndarray | None:
        """(n,) sorted scores of the normal images calibrated on; None before."""
        return normal_scores(self.calibration)

    def stated(self) -> dict[str, Any]:
        """The calibration and what it promises, as `AnomalyDetector.calibration_` gives it."""
        volumes = self.calibration["volumes"]
        return {**with_points(self.calibration), "volumes": None if volumes is None else with_points(volumes)}

    def recalibrated(self, **found: Any) -> FittedDetector:
        """With another threshold, and without what was measured at the old one."""
        changed = replace(self, calibration={**self.calibration, **found})
        if "threshold" not in found:  # that of volumes, which nothing was measured at
            return changed
        measured = self.evaluation or {}
        kept = {k: v for k, v in measured.items() if not k.startswith(("sensitivity", "specificity"))}
        return replace(changed, evaluation=kept or None)

    def portable(self) -> FittedDetector:
        """To be pickled: tensors on the CPU, and the hashes of the frozen networks beside their folder."""
        scorer = self.scorer if self.networks.device.type == "cpu" else deepcopy(self.scorer).cpu()
        return replace(self, scorer=scorer, networks=self.networks.portable())

    def placed(self, device: torch.device) -> FittedDetector:
        """What `portable` gave, on a device of this machine; the frozen networks are found where they are here.

        Raises
        ------
        PersistenceError
            They are not those that it was fitted with.
        """
        return replace(self, scorer=self.scorer.to(device), networks=self.networks.placed(device))


def check_files(wanted: Mapping[str, str], folder: Path, where: str) -> None:
    """The frozen networks in ``folder`` must be the ones that a detector was fitted with, by their SHA-256."""
    for name, digest in wanted.items():
        found = sha256(plain_file(folder, name))
        if found != digest:
            raise PersistenceError(
                f"{where} was fitted with another {name} (sha256 {str(digest)[:12]}…, in {folder} {found[:12]}…). "
                "Install the version of oneshot-medad it was saved with, or save it again with include_backbones=True."
            )
