"""Where `Predictions` was in version 0.1: pickles name it so."""

from oneshot_medad.results.predictions import Predictions

__all__ = ["Predictions"]
