"""Copies of a detector: pickled, deep, and what one call sees of it while other threads change it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from sklearn.base import BaseEstimator

from oneshot_medad._hub import sha256
from oneshot_medad._runtime import resolve_device
from oneshot_medad.backbones.specs import BACKBONES, BackboneSpec
from oneshot_medad.persistence.describe import check_files
from oneshot_medad.scoring import Scorer

if TYPE_CHECKING:
    from typing_extensions import Self


class Copyable(BaseEstimator):
    """The part of `AnomalyDetector` that knows what belongs to a copy."""

    device: str

    _scorer: Scorer
    _spec: BackboneSpec
    _device: torch.device
    _stored_backbone: dict[str, Any]

    def _as_it_is(self) -> Self:
        """A detector that stays as this one is now, whatever another thread makes of this one."""
        still = object.__new__(type(self))
        still.__dict__.update(self.__dict__)
        return still

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled or copied: tensors on the CPU, and the hashes of the frozen networks in place of these."""
        state = dict(super().__getstate__())
        if "_scorer" in state:
            del state["_device"]
            if self._device.type != "cpu":
                state["_scorer"] = deepcopy(self._scorer).cpu()
            if self._spec.folder is not None:
                state["_stored_backbone"] = {"files": {path.name: sha256(path) for path in self._spec.files}}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Find the frozen networks where they are here; they must be the same."""
        super().__setstate__(state)
        if "_scorer" not in state:
            return
        self._device = resolve_device(self.device)
        self._scorer.to(self._device)
        if self._spec.folder is not None and not self._spec.folder.is_dir():  # pickled elsewhere
            known = BACKBONES.get(self._spec.name)
            self._spec = replace(self._spec, folder=None if known is None else known.folder)
        if self._spec.folder is not None:
            check_files(self._stored_backbone, self._spec.folder, "This detector")
