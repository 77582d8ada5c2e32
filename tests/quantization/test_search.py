"""The search keeps the most harmful linears float, as few as the budget needs, and says when none would do."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.plots import plot_search
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import TARGETS, Plan, StaticInput
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.search import MARGIN_DB, Budget, SearchResult, search
from vitedge.runtimes.errors import PlanError

ENCODER = random_encoder()
PIXELS = random_pixels(count=8)
HARMFUL = "layers.1.attention.qkv"


@pytest.fixture(scope="module")
def planned() -> tuple[Plan, Encoder]:
    """A plan in which one linear is much worse than the others: its input is clipped to a quarter."""
    calibration = Calibration(observe(ENCODER, [PIXELS]), lambda: [PIXELS], (-1, 1), "i")
    recipes = {"onnx": TARGETS["avx2"]["onnx"]}
    plan, smoothed = make_plan(
        ENCODER, calibration, recipes=recipes, target="avx2", checkpoint_digest="c", strengths=(0.7,)
    )
    module = plan.modules[HARMFUL]
    clipped = replace(module, input=StaticInput(module.input.scale / 4, module.input.zero_point))
    return replace(plan, modules={**plan.modules, HARMFUL: clipped}), smoothed


def found(planned: tuple[Plan, Encoder], budget: Budget) -> SearchResult:
    plan, smoothed = planned
    return search(plan, "onnx", ENCODER, smoothed, PIXELS, budget)


def test_the_most_harmful_linear_is_known(planned: tuple[Plan, Encoder]) -> None:
    sensitivity_db = found(planned, Budget(0.0)).sensitivity_db
    assert sensitivity_db.keys() == SHAPE.linears.keys()
    assert min(sensitivity_db, key=lambda name: sensitivity_db[name]) == HARMFUL


def test_a_budget_that_is_met_changes_nothing(planned: tuple[Plan, Encoder]) -> None:
    assert found(planned, Budget(0.0)).plan == planned[0]


def test_the_harmful_linear_alone_turns_float(planned: tuple[Plan, Encoder]) -> None:
    result = found(planned, Budget(min_sqnr_db=28.0))
    floats = [name for name in SHAPE.linears if result.plan.recipes["onnx"].precision(name) == "float"]
    assert floats == [HARMFUL]
    assert HARMFUL not in result.plan.linears("onnx")
    points = {point.float_linears: point for point in result.curve}
    assert points[0].sqnr_db < 28.0 + MARGIN_DB <= points[1].sqnr_db
    assert [point.float_linears for point in result.curve] == sorted(points)
    assert np.all(np.diff([point.integer_macs_share for point in result.curve]) < 0)


def test_a_cosine_is_a_budget_too(planned: tuple[Plan, Encoder]) -> None:
    asked = 0.9999
    result = found(planned, Budget(min_cosine=asked))
    count = sum(result.plan.recipes["onnx"].precision(name) == "float" for name in SHAPE.linears)
    met = next(point for point in result.curve if point.float_linears == count)
    assert met.cosine_mean >= asked
    assert count >= 1


def test_a_budget_that_nothing_meets_says_the_best(planned: tuple[Plan, Encoder]) -> None:
    with pytest.raises(PlanError, match=r"onnx: the budget cannot be met: .* keeps \d+ of 10 linears float.* dB"):
        found(planned, Budget(min_sqnr_db=200.0))


def test_the_picture_is_an_svg(planned: tuple[Plan, Encoder], tmp_path: Path) -> None:
    plot_search({"onnx": found(planned, Budget(28.0))}, tmp_path / "search.svg")
    text = (tmp_path / "search.svg").read_text()
    assert text.startswith("<?xml")
    assert "</svg>" in text
