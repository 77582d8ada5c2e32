"""The search makes harmful linears dynamic, then float, no more than the budget needs, or says that none would do."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.plots import plot_search
from vitedge.quantization.decisions import load_decisions
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import Plan, StaticInput
from vitedge.quantization.prediction import Prediction
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS, Recipe
from vitedge.quantization.search import CURVE_POINTS, MARGIN_DB, Budget, SearchResult, _steps, climb, search
from vitedge.runtimes.errors import PlanError

ENCODER = random_encoder()
PIXELS = random_pixels(count=8)
PREDICTION = Prediction(ENCODER, PIXELS)
HARMFUL = "layers.1.attention.qkv"
RECIPES = {
    "onnx": TARGETS["avx2"]["onnx"],
    "openvino": TARGETS["avx2"]["openvino"],
    "tflite": TARGETS["avx2"]["tflite"],
}
INTEGER_LINEARS = len(SHAPE.linears) - 1  # without the pooler's head
MAYBE_DYNAMIC = {"onnx": INTEGER_LINEARS, "openvino": INTEGER_LINEARS - 1, "tflite": len(SHAPE.linears)}


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, Encoder]:
    """A plan in which one linear is much worse than the others: its input is clipped to a quarter."""
    calibration = Calibration(observe(ENCODER, [PIXELS]), lambda: [PIXELS], lambda: [PIXELS], (-1, 1), "i")
    plan, smoothed = make_plan(
        ENCODER, calibration, recipes=RECIPES, target="avx2", checkpoint_digest="c", strengths=(0.7,)
    )
    module = plan.modules[HARMFUL]
    clipped = replace(module, input=StaticInput(module.input.scale / 4, module.input.zero_point))
    return replace(plan, modules={**plan.modules, HARMFUL: clipped}), smoothed


def found(
    planned: tuple[Plan, Encoder], budget: Budget, runtime: str = "onnx", *, allow_dynamic: bool = True
) -> SearchResult:
    plan, smoothed = planned
    return search(climb(plan, runtime, smoothed, PREDICTION, allow_dynamic=allow_dynamic), budget)


def turned(result: SearchResult, before: Plan, runtime: str = "onnx") -> Mapping[str, str]:
    """The linears whose precision the search changed."""
    old, new = (plan.recipes[runtime].precision for plan in (before, result.plan))
    return {name: new(name) for name in SHAPE.linears if new(name) != old(name)}


def reached_with_all_dynamic(planned: tuple[Plan, Encoder], runtime: str = "onnx") -> float:
    curve = found(planned, Budget(30.0), runtime).curve
    return max(point.sqnr_db for point in curve if point.float_linears == 0)


def test_the_most_harmful_linear_is_known(planned: tuple[Plan, Encoder]) -> None:
    sensitivity_db = found(planned, Budget(0.0)).sensitivity_db
    assert sensitivity_db.keys() == SHAPE.linears.keys()
    assert min(sensitivity_db, key=lambda name: min(sensitivity_db[name].values())) == HARMFUL
    assert sensitivity_db[HARMFUL]["dynamic"] > sensitivity_db[HARMFUL]["static"] + 10


@pytest.mark.parametrize("runtime", RECIPES)
def test_a_budget_that_is_met_changes_nothing(planned: tuple[Plan, Encoder], runtime: str) -> None:
    assert found(planned, Budget(0.0), runtime).plan == planned[0]


def test_progress_ends_where_it_said(planned: tuple[Plan, Encoder]) -> None:
    plan, smoothed = planned
    done: list[str] = []
    search(climb(plan, "onnx", smoothed, PREDICTION, done.append), Budget(0.0), done.append)
    assert len(done) == len(SHAPE.linears) + CURVE_POINTS


def test_a_second_budget_predicts_only_what_is_new(planned: tuple[Plan, Encoder]) -> None:
    plan, smoothed = planned
    steps = climb(plan, "onnx", smoothed, PREDICTION)
    first = search(steps, Budget(0.0))
    predicted = len(first.curve)
    second = search(steps, Budget(first.found.sqnr_db + 1))
    assert second.plan == found(planned, Budget(first.found.sqnr_db + 1)).plan != first.plan
    assert search(steps, Budget(0.0)) == first
    assert predicted <= len(second.curve) <= predicted + 3


def test_the_harmful_linear_alone_turns_dynamic(planned: tuple[Plan, Encoder]) -> None:
    result = found(planned, Budget(min_sqnr_db=28.0))
    assert turned(result, planned[0]) == {HARMFUL: "dynamic"}
    linear = result.plan.linears("onnx")[HARMFUL]
    assert (linear.input, linear.rows) == (None, "minimum")
    assert result.curve[0].sqnr_db < 28.0 + MARGIN_DB <= result.found.sqnr_db
    assert result.found in result.curve


def test_the_harmful_linear_alone_turns_float_where_it_may_not_be_dynamic(planned: tuple[Plan, Encoder]) -> None:
    result = found(planned, Budget(min_sqnr_db=28.0), allow_dynamic=False)
    assert turned(result, planned[0]) == {HARMFUL: "float"}
    assert HARMFUL not in result.plan.linears("onnx")
    assert "dynamic" not in result.sensitivity_db[HARMFUL]


def test_linears_turn_float_only_when_all_are_dynamic(planned: tuple[Plan, Encoder]) -> None:
    curve = found(planned, Budget(reached_with_all_dynamic(planned) + 1)).curve
    assert [point.steps for point in curve] == sorted({point.steps for point in curve})
    shares = [point.integer_macs_share for point in curve]
    assert [share < shares[0] for share in shares] == [point.float_linears > 0 for point in curve]
    assert np.all(np.diff(shares) <= 0)
    assert np.all(np.diff([point.float_linears for point in curve]) >= 0)
    last_dynamic = max(point.dynamic_linears for point in curve)
    assert all(
        point.dynamic_linears + point.float_linears >= last_dynamic for point in curve if point.float_linears > 0
    )


@pytest.mark.parametrize("runtime", RECIPES)
def test_a_budget_beyond_dynamic_makes_some_float(planned: tuple[Plan, Encoder], runtime: str) -> None:
    asked = reached_with_all_dynamic(planned, runtime) + 1
    result = found(planned, Budget(min_sqnr_db=asked), runtime)
    changed = turned(result, planned[0], runtime)
    assert list(changed.values()).count("float") == result.found.float_linears > 0
    assert result.found.sqnr_db >= asked + MARGIN_DB
    assert set(changed).isdisjoint({"pooler.dense"})
    linears = result.plan.linears(runtime)
    assert sum(linear.input is None for linear in linears.values()) == result.found.dynamic_linears


def test_what_is_found_is_a_plan_that_loads_again(planned: tuple[Plan, Encoder], tmp_path: Path) -> None:
    plan = found(planned, Budget(reached_with_all_dynamic(planned) + 1)).plan
    plan.save(tmp_path)
    decisions = load_decisions(tmp_path)
    decisions.check("c", SHAPE.linears)
    for name in SHAPE.linears:
        assert decisions.recipes["onnx"].precision(name) == plan.recipes["onnx"].precision(name)


def test_pixels_stay_static_in_openvino(planned: tuple[Plan, Encoder]) -> None:
    for runtime, rungs in (("onnx", {"static", "dynamic"}), ("openvino", {"static"})):
        result = found(planned, Budget(0.0), runtime)
        assert result.sensitivity_db["patch_embedding"].keys() == rungs
        assert max(point.dynamic_linears for point in result.curve) <= MAYBE_DYNAMIC[runtime]


def test_where_all_is_dynamic_linears_turn_float_at_once(planned: tuple[Plan, Encoder]) -> None:
    result = found(planned, Budget(0.0), "tflite")
    assert all(levels.keys() == {"dynamic"} for levels in result.sensitivity_db.values())
    assert [point.float_linears for point in result.curve] == [point.steps for point in result.curve]


def test_a_cosine_is_a_budget_too(planned: tuple[Plan, Encoder]) -> None:
    asked = 0.9999
    result = found(planned, Budget(min_cosine=asked))
    assert result.found.cosine_mean >= asked
    assert result.curve[0].cosine_mean < asked
    assert result.found.steps >= 1


def test_a_budget_that_nothing_meets_says_the_best(planned: tuple[Plan, Encoder]) -> None:
    with pytest.raises(PlanError, match=r"onnx: the budget cannot be met: .* dB") as refused:
        found(planned, Budget(min_sqnr_db=200.0))
    said = re.search(
        r"an integer linear \((.*?)\) keeps (\d+) of 10 linears float and (\d+) dynamic", str(refused.value)
    )
    assert said is not None
    assert said[1] in SHAPE.linears
    assert int(said[2]) == INTEGER_LINEARS - 1


def test_a_plan_without_integer_linears_is_returned(planned: tuple[Plan, Encoder]) -> None:
    plan, smoothed = planned
    floating = replace(plan, recipes={"onnx": Recipe("int8-pair-safe", {"*": "float"})})
    result = found((floating, smoothed), Budget(min_sqnr_db=40.0))
    assert (result.plan, len(result.curve)) == (floating, 1)


def levels_db() -> st.SearchStrategy[dict[str, dict[str, float]]]:
    decibels = st.floats(0, 80)
    kinds = st.one_of(
        st.fixed_dictionaries({"static": decibels}),
        st.fixed_dictionaries({"dynamic": decibels}),
        st.fixed_dictionaries({"static": decibels, "dynamic": decibels}),
    )
    return st.dictionaries(st.sampled_from(tuple(SHAPE.linears)), kinds)


@given(levels_db(), st.integers(1, 1000))
def test_every_linear_climbs_its_ladder_once(levels: dict[str, dict[str, float]], width: int) -> None:
    macs = {name: width * (index + 1) for index, name in enumerate(SHAPE.linears)}
    steps = _steps(levels, macs)
    dynamic = [name for name, precision in steps if precision == "dynamic"]
    assert [precision for _, precision in steps] == ["dynamic"] * len(dynamic) + ["float"] * len(levels)
    assert sorted(name for name, precision in steps if precision == "float") == sorted(levels)
    better = {name for name, found in levels.items() if len(found) == 2 and found["dynamic"] > found["static"]}
    assert better >= set(dynamic)
    assert len(set(dynamic)) == len(dynamic)
    gains = [10 ** (-levels[name]["static"] / 10) - 10 ** (-levels[name]["dynamic"] / 10) for name in dynamic]
    assert gains == sorted(gains, reverse=True)


def test_of_two_as_harmful_the_smaller_turns_float_first() -> None:
    levels = {"small": {"dynamic": 40.0}, "large": {"dynamic": 38.0}}
    steps = _steps(levels, {"small": 1, "large": 4})
    assert steps == (("small", "float"), ("large", "float"))


def test_the_picture_is_an_svg(planned: tuple[Plan, Encoder], tmp_path: Path) -> None:
    results = {runtime: found(planned, Budget(28.0), runtime) for runtime in RECIPES}
    plot_search(results, tmp_path / "search.svg")
    text = (tmp_path / "search.svg").read_text()
    assert text.startswith("<?xml")
    assert "</svg>" in text
