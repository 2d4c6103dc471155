"""A detector without networks, which workers of Ray can import."""

from __future__ import annotations

import time
from copy import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from oneshot_medad import AnomalyDetector
from oneshot_medad.fitted import Networks


class StubNetworks(Networks):
    """The field is its own feature."""

    def load(self, fetch: bool = True) -> Any:
        device = torch.device("cpu")
        return SimpleNamespace(spec=self.spec, device=device, vision=lambda fields: fields, kind=lambda fields: fields)

    def portable(self) -> StubNetworks:
        return self

    def placed(self, device: torch.device) -> StubNetworks:
        return self


class StubScorer:
    """The score is the mean of the field, the heatmap the field."""

    recipe, span, sha256 = SimpleNamespace(reads_latents=False, mirror=False), None, "stub"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def to(self, device: torch.device) -> StubScorer:
        return self

    def __call__(self, z: None, fields: torch.Tensor, *others: Any) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(self.seconds * len(fields))
        return fields.mean(dim=(1, 2, 3)), fields[:, 0]

    def similarity(self, fields: torch.Tensor) -> torch.Tensor:
        return torch.ones(len(fields))

    def poses(self, fields: torch.Tensor, mirrored: None) -> list[str]:
        return [""] * len(fields)


def stub(detector: AnomalyDetector, seconds: float = 0.0) -> AnomalyDetector:
    """A fitted detector with other networks and another scorer, which takes ``seconds`` an image."""
    made, fitted = copy(detector), detector._ready()
    networks = StubNetworks(fitted.networks.spec, torch.device("cpu"))
    made._fitted = replace(fitted, networks=networks, scorer=StubScorer(seconds))  # type: ignore[arg-type]
    return made
