from dataclasses import FrozenInstanceError

import pytest

from oneshot_medad import Recipe
from oneshot_medad.config import RECIPES
from oneshot_medad.errors import ConfigError


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_a_round_trip(name):
    recipe = Recipe.named(name)
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_recipes_are_frozen():
    with pytest.raises(FrozenInstanceError):
        Recipe.named("default").n_steps = 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_stepps": 3}, "did you mean 'n_steps'"),
        ({"n_steps": 0}, "n_steps=0; wanted at least 1"),
        ({"learning_rate": -1.0}, "more than 0"),
        ({"top_fraction": 1.5}, r"in \(0, 1\]"),
        ({"branches": {"clip": 1, "clap": 1}}, "clap"),
        ({"branches": {}}, "at least one"),
        ({"deviations": {"pink": 1.0}}, "pink"),
        ({"deviations": {"white": 0.0}}, "more than 0"),
        ({"deviations": {}, "n_lesions": 0}, "deviations is empty"),
    ],
)
def test_values_that_make_no_sense(values, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(values)


def test_an_unknown_recipe_names_the_known_ones():
    with pytest.raises(ConfigError, match="'default', 'scratch', 'reference'"):
        Recipe.named("best")
