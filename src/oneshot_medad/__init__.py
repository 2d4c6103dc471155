"""One-shot medical anomaly detection: fit on normal images, find what is abnormal and where.

Importing the package loads nothing heavy; torch and the backbones come with the first use of a name below.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

_PLACES = {
    "AnomalyDetector": "detector",
    "BackboneSpec": "backbones.specs",
    "HubWeights": "backbones.specs",
    "Predictions": "results.predictions",
    "Recipe": "config",
    "archive": "archive",
    "datasets": "datasets",
    "errors": "errors",
    "evaluation": "evaluation",
    "model_selection": "model_selection",
    "slices": "images.expand",
}
__all__ = [*_PLACES, "__version__"]

if TYPE_CHECKING:
    from oneshot_medad import archive as archive
    from oneshot_medad import datasets as datasets
    from oneshot_medad import errors as errors
    from oneshot_medad import evaluation as evaluation
    from oneshot_medad import model_selection as model_selection
    from oneshot_medad.backbones.specs import BackboneSpec as BackboneSpec
    from oneshot_medad.backbones.specs import HubWeights as HubWeights
    from oneshot_medad.config import Recipe as Recipe
    from oneshot_medad.detector import AnomalyDetector as AnomalyDetector
    from oneshot_medad.images.expand import slices as slices
    from oneshot_medad.results.predictions import Predictions as Predictions


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'oneshot_medad' has no attribute {name!r}; it offers {', '.join(__all__)}")
    module = import_module(f"oneshot_medad.{_PLACES[name]}")
    return module if name == _PLACES[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
