"""Integer attention scores: two rewrites that change nothing in float, and what they gain in integers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import SHAPE, random_encoder, random_pixels, sqnr_db, variants
from vitedge.converters.artifact import operations_of
from vitedge.quantization.decisions import load_decisions
from vitedge.quantization.encoder import Encoder, EncoderShape, FloatArray, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import Plan, load_plan
from vitedge.quantization.quantize import Calibration, apply_rewrites, make_plan, observe
from vitedge.quantization.recipe import TARGETS, Recipe
from vitedge.quantization.scores import (
    ScoreBalance,
    ScoreGrids,
    balance_scores,
    choose_balances,
    plain_grids,
    qkv_linears,
    rounded_scores,
)
from vitedge.runtimes.errors import PlanError

INT8 = TARGETS["vnni"]["openvino"]
VARIANTS = variants()


def lopsided(seed: int = 0) -> Encoder:
    """Keys far from 0, and channels that are large in the query and small in the key."""
    encoder, generator = random_encoder(), np.random.default_rng(seed)
    tensors, hidden = {}, SHAPE.hidden
    for name in qkv_linears(encoder):
        weight, bias = encoder.tensors[f"{name}.weight"].copy(), encoder.tensors[f"{name}.bias"].copy()
        bias[hidden : 2 * hidden] += generator.choice([-20, 20], hidden)
        uneven = np.exp(generator.normal(0, 1.5, hidden)).astype(np.float32)
        for part, factor in ((slice(hidden), uneven), (slice(hidden, 2 * hidden), 1 / uneven)):
            weight[part] *= factor[:, None]
            bias[part] *= factor
        tensors |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return encoder.with_tensors(tensors)


def planned(encoder: Encoder, recipe: Recipe = INT8, **options: object) -> tuple[Plan, Encoder]:
    pixels = random_pixels(encoder.shape, count=32)
    calibration = Calibration(observe(encoder, [pixels]), lambda: [pixels], lambda: [pixels], (-1, 1), "i")
    recipes = {"openvino": recipe}
    arguments = {"recipes": recipes, "target": "vnni", "checkpoint_digest": "c", "strengths": (0.6,), **options}
    return make_plan(encoder, calibration, **arguments)  # type: ignore[arg-type]


def hidden_state(encoder: Encoder, pixels: FloatArray) -> FloatArray:
    return forward(encoder, pixels, float_linear(encoder))["last_hidden_state"]


def predicted_db(encoder: Encoder, planned_: tuple[Plan, Encoder]) -> float:
    plan, smoothed = planned_
    pixels = random_pixels(encoder.shape, count=8, seed=9)
    linear = fake_quantized_linear(smoothed, plan.linears("openvino"))
    return sqnr_db(hidden_state(encoder, pixels), forward(smoothed, pixels, linear)["last_hidden_state"])


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_float_outputs_stay_equal(shape: EncoderShape) -> None:
    encoder, pixels = random_encoder(shape), random_pixels(shape, count=8)
    balances, _ = choose_balances(encoder, lambda: [pixels])
    for name, balance in balances.items():
        assert balance.factors.max() / balance.factors.min() > 1.1, name
        assert np.abs(balance.centers).max() > 1e-3, name
    unseen = random_pixels(shape, seed=4)
    expected = forward(encoder, unseen, float_linear(encoder))
    balanced = balance_scores(encoder, balances)
    for name, values in forward(balanced, unseen, float_linear(balanced)).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4)


def test_a_balance_on_one_side_only_would_show() -> None:
    """The twin: values, which the rewrite leaves alone, and keys that are divided by nothing."""
    encoder, pixels = random_encoder(), random_pixels()
    name = qkv_linears(encoder)[0]
    bias = encoder.tensors[f"{name}.bias"].copy()
    bias[2 * SHAPE.hidden :] -= 1
    moved = encoder.with_tensors({f"{name}.bias": bias})
    assert np.abs(hidden_state(moved, pixels) - hidden_state(encoder, pixels)).max() > 1e-2
    factors = np.linspace(0.5, 2, SHAPE.hidden, dtype=np.float32)
    balanced = balance_scores(encoder, {name: ScoreBalance(factors, np.zeros(SHAPE.hidden, np.float32))})
    weight = balanced.tensors[f"{name}.weight"].copy()
    weight[SHAPE.hidden : 2 * SHAPE.hidden] = encoder.tensors[f"{name}.weight"][SHAPE.hidden : 2 * SHAPE.hidden]
    half = balanced.with_tensors({f"{name}.weight": weight})
    assert np.abs(hidden_state(half, pixels) - hidden_state(encoder, pixels)).max() > 1e-3


def test_balanced_channels_have_one_range_and_the_grids_cover_it() -> None:
    encoder, pixels = lopsided(), random_pixels(count=16)
    balances, grids = choose_balances(encoder, lambda: [pixels[:8], pixels[8:]])
    balanced, hidden = balance_scores(encoder, balances), SHAPE.hidden
    inner, seen = float_linear(balanced), dict[str, torch.Tensor]()

    def observing(name: str, x: torch.Tensor) -> torch.Tensor:
        seen[name] = inner(name, x)
        return seen[name]

    forward(balanced, pixels, observing)
    for name, grid in grids.items():
        rows = seen[name].reshape(-1, 3 * hidden).numpy()
        query, key = rows[:, :hidden], rows[:, hidden : 2 * hidden]
        np.testing.assert_allclose(np.abs(query).max(0), np.abs(key).max(0), rtol=1e-3)
        np.testing.assert_allclose(key.mean(0), 0, atol=1e-3)
        assert np.abs(query).max() == pytest.approx(127 * grid.query, rel=1e-3)
        assert np.abs(key).max() == pytest.approx(127 * grid.key, rel=1e-3)
    assert plain_grids(encoder, lambda: [pixels])[name].key > 4 * grids[name].key


def test_rewrites_are_what_makes_integer_scores_accurate() -> None:
    encoder = lopsided()
    as_they_are = predicted_db(encoder, planned(encoder, balanced_scores=False))
    balanced = predicted_db(encoder, planned(encoder))
    floating = predicted_db(encoder, planned(encoder, replace(INT8, scores="float")))
    assert as_they_are + 6 < balanced < floating + 0.5
    assert balanced > floating - 1.5


@given(st.floats(1e-3, 1e3), st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3))
def test_rounding_leaves_values_alone_and_the_rest_on_its_grid(step: float, row: list[float]) -> None:
    found = rounded_scores(torch.tensor([row], dtype=torch.float64), ScoreGrids(step, 2 * step))[0]
    assert found[2] == row[2]
    for value, original, scale in ((found[0], row[0], step), (found[1], row[1], 2 * step)):
        assert -128 <= round(float(value) / scale) <= 127
        if -128 * scale <= original <= 127 * scale:
            assert abs(float(value) - original) <= scale * 0.5000001


@pytest.mark.parametrize("grid", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_a_grid_without_steps_is_refused(grid: tuple[float, float]) -> None:
    with pytest.raises(PlanError, match="expected positive steps"):
        ScoreGrids(*grid)


def test_plan_keeps_scores_and_balance(tmp_path: Path) -> None:
    encoder = lopsided()
    plan, smoothed = planned(encoder)
    plan.save(tmp_path)
    loaded = load_plan(tmp_path)
    assert loaded.digest() == plan.digest()
    again = apply_rewrites(encoder, loaded)
    for name, tensor in smoothed.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor)
    linears = loaded.linears("openvino")
    assert {name for name, linear in linears.items() if linear.scores} == set(qkv_linears(encoder))
    assert load_decisions(tmp_path).recipes["openvino"].scores == "int8"


def test_float_scores_need_no_pass_over_the_images() -> None:
    encoder, pixels = random_encoder(), random_pixels(count=16)

    def none() -> list[FloatArray]:
        raise AssertionError("not needed")

    calibration = Calibration(observe(encoder, [pixels]), none, none, (-1, 1), "i")
    recipes: Mapping[str, Recipe] = TARGETS["avx2"]
    plan, _ = make_plan(encoder, calibration, recipes=recipes, target="avx2", checkpoint_digest="c", strengths=(0.6,))
    assert plan.balances == {}
    assert not any(linear.scores for linear in plan.linears("openvino").values())


def test_scores_that_the_plan_does_not_hold_are_refused() -> None:
    plan, _ = planned(random_encoder(), replace(INT8, scores="float"))
    edited = replace(plan, recipes={"openvino": INT8})
    with pytest.raises(PlanError, match="asks for int8 scores, the plan holds none"):
        edited.linears("openvino")


def test_integer_scores_for_a_cpu_that_may_saturate_are_refused(tmp_path: Path) -> None:
    plan, _ = planned(random_encoder())
    replace(plan, target="avx2").save(tmp_path)
    with pytest.raises(PlanError, match='found target avx2; make them "float"'):
        load_decisions(tmp_path).check("c", SHAPE.linears)


def test_recipe_refuses_other_scores() -> None:
    with pytest.raises(PlanError, match="expected scores to be one of int8, float, found int4"):
        Recipe("int8", {"*": "static"}, scores="int4")  # type: ignore[arg-type]


def test_integer_scores_count_as_integer_work() -> None:
    integer = tuple(SHAPE.linears)
    without, half = operations_of(SHAPE, integer), operations_of(SHAPE, integer, 1)
    full = operations_of(SHAPE, integer, SHAPE.layers)
    assert full.integer_macs - without.integer_macs == SHAPE.attention_macs // 2
    assert half.integer_macs - without.integer_macs == SHAPE.attention_macs // 2 // SHAPE.layers
    assert "attention scores and context" in without.floating
    assert "attention scores" in half.floating
    assert {"attention scores", "attention scores and context"} & full.floating.keys() == set()
    assert "attention context" in full.floating
