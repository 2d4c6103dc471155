"""What a volume is judged by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from oneshot_medad.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits for the scores of volumes.

    Attributes
    ----------
    threshold
        Score above which a volume is abnormal.
    uncertain_from
        Scores from here to the threshold are uncertain; None calls none so.
    normal_scores
        (n,) scores of normal volumes; None before `AnomalyDetector.calibrate` has seen any.
    rule
        How the threshold was found, one of `calibration.RULES`; ``"images"`` before a calibration on volumes.
    """

    threshold: float
    uncertain_from: float | None = None
    normal_scores: np.ndarray | None = None
    rule: str = "images"

    @classmethod
    def of(cls, calibration: dict[str, Any]) -> Limits:
        """Those of a detector, from the content of its ``calibration.json``."""
        own = calibration.get("volumes")
        if own is None:
            return cls(calibration["threshold"], calibration["uncertain_from"])
        known = np.array(own["normal_scores"], dtype=float)
        return cls(own["threshold"], own["uncertain_from"], known if len(known) else None, own["rule"])


def check_unit(by: str) -> None:
    """Refuse a unit of calibration that is neither image nor volume."""
    if by not in ("image", "volume"):
        raise ConfigError(f"Got by={by!r}; wanted 'image' or 'volume'.")
