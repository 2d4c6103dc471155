"""Constructor parameters as scikit-learn searches them, those of the recipe among them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator

from oneshot_medad.backbones.specs import get_spec
from oneshot_medad.config import Recipe
from oneshot_medad.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import Self

RECIPE = "recipe__"


class Parameters(BaseEstimator):
    """The part of `AnomalyDetector` that knows its parameters.

    A `Recipe` is a frozen value, so that a fit can be reproduced: setting one of its fields puts another recipe in its
    place, also where the recipe was a name.
    """

    backbone: Any
    recipe: Any

    def get_params(self, deep: bool = True) -> dict[str, Any]:
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
        found = super().get_params(deep=False)
        if deep:
            with suppress(ConfigError):  # what cannot be used is for `fit` to refuse
                recipe = self._named_recipe()
                found |= {RECIPE + field.name: getattr(recipe, field.name) for field in fields(recipe)}
        return found

    def set_params(self, **params: Any) -> Self:
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
        before = super().get_params(deep=False)
        super().set_params(**own)
        try:
            if nested:
                self.recipe = replace(self._named_recipe(), **nested)
        except ConfigError:
            super().set_params(**before)
            raise
        return self

    def _named_recipe(self) -> Recipe:
        """The recipe that ``recipe`` and ``backbone`` stand for."""
        named = get_spec(self.backbone).recipe if self.recipe == "default" else self.recipe
        recipe = Recipe.named(named) if isinstance(named, str) else named
        if not isinstance(recipe, Recipe):
            raise ConfigError(f"Got recipe of type {type(recipe).__name__}; wanted a name or a Recipe.")
        return recipe
