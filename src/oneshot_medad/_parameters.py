"""Constructor parameters as scikit-learn searches them, those of the recipe among them, and as a fit uses them.

A `Recipe` is a frozen value, so that a fit can be reproduced: setting one of its fields puts another recipe in its
place, also where the recipe was a name.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator

from oneshot_medad._runtime import process_count, resolve_device
from oneshot_medad.backbones.specs import BackboneSpec, get_spec
from oneshot_medad.config import Recipe
from oneshot_medad.errors import ConfigError

if TYPE_CHECKING:
    from oneshot_medad.detector import AnomalyDetector

Detector = TypeVar("Detector", bound="AnomalyDetector")
RECIPE = "recipe__"


def get_params(self: AnomalyDetector, deep: bool = True) -> dict[str, Any]:
    """Parameters of the constructor by name, for scikit-learn.

    Parameters
    ----------
    deep
        With the fields of the recipe, as ``recipe__n_lesions``.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector
    >>> AnomalyDetector(recipe="reference").get_params()["recipe__n_lesions"]
    0
    """
    found: dict[str, Any] = BaseEstimator.get_params(self, deep=False)
    if deep:
        with suppress(ConfigError):  # what cannot be used is for `fit` to refuse
            recipe = named_recipe(self)
            found |= {RECIPE + field.name: getattr(recipe, field.name) for field in fields(recipe)}
    return found


def set_params(self: Detector, **params: Any) -> Detector:
    """Set parameters by name; ``recipe__n_lesions=32`` changes one field of the recipe.

    Parameters
    ----------
    params
        Parameters of the constructor, and fields of the recipe with ``recipe__`` before them. Fields are set
        after a ``recipe`` or ``backbone`` that is set in the same call.

    Raises
    ------
    ConfigError
        An unknown name, or a value that the recipe cannot take; nothing has changed then.

    Examples
    --------
    >>> from oneshot_medad import AnomalyDetector
    >>> AnomalyDetector().set_params(n_steps=3, recipe__n_lesions=32).recipe.n_lesions
    32
    """
    fields_known = [RECIPE + field.name for field in fields(Recipe)]
    known = [*self._get_param_names(), *fields_known]
    for name in params:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise ConfigError(
                f"Got parameter {name!r}; wanted one of {', '.join(self._get_param_names())}, or a field of the "
                f"recipe as in {fields_known[0]!r}." + (f" Did you mean {near[0]!r}?" if near else "")
            )
    own = {name: value for name, value in params.items() if not name.startswith(RECIPE)}
    nested = {name.removeprefix(RECIPE): value for name, value in params.items() if name.startswith(RECIPE)}
    before = BaseEstimator.get_params(self, deep=False)
    BaseEstimator.set_params(self, **own)
    try:
        if nested:
            self.recipe = replace(named_recipe(self), **nested)
    except ConfigError:
        BaseEstimator.set_params(self, **before)
        raise
    return self


def named_recipe(self: AnomalyDetector) -> Recipe:
    """The recipe that ``recipe`` and ``backbone`` stand for."""
    named = get_spec(self.backbone).recipe if self.recipe == "default" else self.recipe
    recipe = Recipe.named(named) if isinstance(named, str) else named
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"Got recipe of type {type(recipe).__name__}; wanted a name or a Recipe.")
    return recipe


def checked(self: AnomalyDetector) -> tuple[Recipe, BackboneSpec, torch.device, int | None]:
    """Every parameter in the form that `fit` uses, or a `ConfigError`."""
    spec = get_spec(self.backbone)
    recipe = named_recipe(self)
    if self.n_steps is not None:
        if not isinstance(self.n_steps, Integral):
            raise ConfigError(f"Got n_steps={self.n_steps!r}; wanted a whole number or None.")
        recipe = replace(recipe, n_steps=int(self.n_steps))
    for name, known in (("init", ("pretrained", "random")), ("fetch", ("always", "fit_only", "never"))):
        if getattr(self, name) not in known:
            raise ConfigError(f"Got {name}={getattr(self, name)!r}; wanted one of {', '.join(map(repr, known))}.")
    seed = self.random_state
    if seed is not None and (not isinstance(seed, Integral) or seed < 0):
        raise ConfigError(f"Got random_state={seed!r}; wanted a whole number from 0, or None.")
    if seed is None and process_count() > 1:
        raise ConfigError("Got random_state=None in a distributed run; wanted a number, so that all draw the same.")
    window = self.intensity_range
    if window is not None and not (np.shape(window) == (2,) and window[0] < window[1]):
        raise ConfigError(f"Got intensity_range={window!r}; wanted (low, high) with low < high.")
    return recipe, spec, resolve_device(self.device), None if seed is None else int(seed)
