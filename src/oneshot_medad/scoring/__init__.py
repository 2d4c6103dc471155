"""From features to one heatmap and one score: branches, and a fusion that is fixed at fit."""

from oneshot_medad.scoring.fit import Fitted, fit_scorer
from oneshot_medad.scoring.scorer import Scorer

__all__ = ["Fitted", "Scorer", "fit_scorer"]
