"""Recipes: the last pattern that matches counts, and what does not exist or does not fit is refused."""

from typing import Any

import pytest

from tests.quantization.tiny_plan import FC1, FC2
from tests.tiny import SHAPE
from vitedge.quantization.recipe import TARGETS, Recipe
from vitedge.runtimes.errors import PlanError


def test_the_last_pattern_that_matches_counts() -> None:
    recipe = Recipe("int8", {"*": "static", "layers.*.mlp.fc2": "dynamic", FC2: "float"})
    assert [recipe.precision(name) for name in (FC1, "layers.0.mlp.fc2", FC2)] == ["static", "dynamic", "float"]
    assert Recipe("int8", {FC1: "float", "*": "static"}).precision(FC1) == "static"


def test_changed_precisions_come_last() -> None:
    recipe = Recipe("int8", {FC2: "float", "*": "static"}).with_precisions({FC2: "dynamic"})
    assert list(recipe.precisions.items()) == [("*", "static"), (FC2, "dynamic")]
    assert recipe.precision(FC2) == "dynamic"


@pytest.mark.parametrize(
    ("target", "runtime"), [(target, runtime) for target in TARGETS for runtime in TARGETS[target]]
)
def test_every_targets_recipe_fits_an_encoder(target: str, runtime: str) -> None:
    TARGETS[target][runtime].check(SHAPE.linears)


@pytest.mark.parametrize(
    ("weights", "precisions", "message"),
    [
        ("int6", {"*": "static"}, "expected weights to be one of int8, int8-pair-safe, int7, found int6"),
        ("int8", {"*": "int4"}, r"\*: expected one of static, dynamic, float, found int4"),
    ],
)
def test_refuses_what_does_not_exist(weights: str, precisions: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Recipe(weights, precisions)


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        ({"*": "static", "layers.9.*": "float"}, r"layers\.9\.\* matches no linear of this encoder; it has patch_emb"),
        ({"layers.*": "static"}, "nothing matches patch_embedding; begin with a pattern for all"),
        ({}, "nothing matches patch_embedding"),
    ],
)
def test_refuses_recipes_that_do_not_fit(precisions: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Recipe("int8", precisions).check(SHAPE.linears)
