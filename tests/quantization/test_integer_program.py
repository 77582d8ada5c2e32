"""Integer programs: the folds change nothing, grids are what they say, the search keeps its budget with the least."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import SHAPE, random_encoder, random_pixels, sqnr_db, variants
from vitedge.quantization.encoder import EncoderShape, FloatArray, float_linear, forward
from vitedge.quantization.integer_fake import FakeOperations, predict, rounded
from vitedge.quantization.integer_float import FloatOperations, Observation, observe, to_pixels
from vitedge.quantization.integer_fold import fold, on_int8_grid, residual_factors
from vitedge.quantization.integer_grid import Grid, IntegerPrecision, Range
from vitedge.quantization.integer_operations import IntegerEncoder, Quantity, integers, round_linears
from vitedge.quantization.integer_program import Program
from vitedge.quantization.integer_search import Group, IntegerTradeOff, Judge, search_integers
from vitedge.quantization.plan import IntegerWeight
from vitedge.quantization.search import MARGIN_DB, Budget
from vitedge.runtimes.errors import PlanError

FINITE = st.floats(-1e4, 1e4, width=32)


def nearest(_name: str, weight: FloatArray, bias: FloatArray) -> IntegerWeight:
    scale = np.maximum(np.abs(weight).max(axis=1), 1e-6).astype(np.float32) / np.float32(127)
    return IntegerWeight(np.rint(weight / scale[:, None]).astype(np.int8), scale, bias)


@cache
def calibrated(shape: EncoderShape = SHAPE) -> tuple[Observation, IntegerEncoder]:
    observation = observe(random_encoder(shape), lambda: [random_pixels(shape), random_pixels(shape, seed=2)], (-1, 1))
    return observation, round_linears(observation.folded, nearest)


@pytest.mark.parametrize("shape", variants().values(), ids=variants())
def test_folding_changes_nothing_in_float(shape: EncoderShape) -> None:
    shape = replace(shape, layer_norm_eps=1e-12)  # the program leaves it out
    encoder, pixels = random_encoder(shape), random_pixels(shape)
    random = np.random.default_rng(3)
    factors = random.uniform(0.1, 10, shape.hidden).astype(np.float32)
    multipliers = {f"layers.0.layernorm_{at}": factors[::-1].copy() for at in ("before", "after")}
    folded = fold(encoder, factors, multipliers)
    with torch.inference_mode():
        found = Program(FloatOperations(folded), shape, len(pixels)).run(to_pixels(folded, pixels))
    for name, expected in forward(encoder, pixels, float_linear(encoder)).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-4, rtol=0)


def test_residual_stream_has_no_mean() -> None:
    folded = fold(random_encoder(), np.ones(SHAPE.hidden, np.float32), {})
    means = []

    def see(name: str, x: torch.Tensor) -> None:
        if name.endswith("residual"):
            means.append(float(x.mean(-1).abs().max()))

    Program(FloatOperations(folded, see), SHAPE, 4).run(to_pixels(folded, random_pixels()))
    assert len(means) == 1 + 2 * SHAPE.layers
    assert max(means) < 1e-5


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=50))
def test_factors_are_exact_in_int8(values: list[float]) -> None:
    factors = on_int8_grid(np.array(values, np.float32))
    steps = factors / factors.max() * 127
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert steps.min() >= 1


def test_factors_follow_the_widest_point_of_each_channel() -> None:
    maxima = np.array([[1, 1, 1, 8], [10, 40, 10, 10]], np.float32)
    np.testing.assert_allclose(residual_factors(maxima), [1, 4, 1, 8], atol=8 / 127 / 2)


@given(FINITE, FINITE, st.sampled_from([8, 16]), st.floats(0, 1))
def test_a_grid_covers_its_range_to_half_a_step(a: float, b: float, bits: int, share: float) -> None:
    found = Range(min(a, b), max(a, b))
    grid = found.grid(bits)
    x = np.array([min(a, b) + share * (max(a, b) - min(a, b)), 0.0], np.float32)
    back = (integers(x, grid).astype(np.float64) - grid.zero_point) * grid.scale
    # Where both ends are in use, rounding the zero point moves the range by up to half a step more.
    np.testing.assert_allclose(back, x, atol=1.001 * grid.scale + 1e-6)
    assert back[1] == 0
    np.testing.assert_allclose(rounded(torch.from_numpy(x), grid).numpy(), back, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("values", [(0.0, 0, 8), (np.nan, 0, 8), (1.0, 128, 8), (1.0, 1, 16)])
def test_impossible_grids_are_refused(values: tuple[float, int, int]) -> None:
    with pytest.raises(PlanError, match="integer grid"):
        Grid(*values)


def test_nan_in_calibration_is_refused() -> None:
    pixels = random_pixels()
    pixels[0, 0, 0, 0] = np.nan
    with pytest.raises(PlanError, match=r"check the checkpoint|NaN"):
        observe(random_encoder(), lambda: [pixels], (-1, 1))


def test_calibration_needs_images() -> None:
    with pytest.raises(PlanError, match="at least one image"):
        observe(random_encoder(), lambda: [], (-1, 1))


def test_an_epsilon_that_matters_is_refused() -> None:
    encoder = random_encoder(replace(SHAPE, layer_norm_eps=0.5))
    with pytest.raises(PlanError, match="epsilon 5e-01"):
        observe(encoder, lambda: [random_pixels()], (-1, 1))


def test_an_unknown_16_bit_tensor_is_refused() -> None:
    with pytest.raises(PlanError, match=r"layers\.9"):
        IntegerPrecision(calibrated()[0].ranges, frozenset({"layers.9.mlp.residual"}))


def test_layernorm_scales_are_exact() -> None:
    observation, encoder = calibrated()
    for name in observation.folded.linears:
        if name.endswith(".scale"):  # of LayerNorms and of the Newton step
            np.testing.assert_allclose(
                encoder.linears[name].dequantized(), observation.folded.linears[name][0], rtol=1e-6
            )


def test_sixteen_bits_are_better_than_eight() -> None:
    observation, encoder = calibrated()
    pixels = random_pixels(seed=5)
    expected = forward(random_encoder(), pixels, float_linear(random_encoder()))["last_hidden_state"]

    def sqnr(sixteen: frozenset[str]) -> float:
        precision = IntegerPrecision(observation.ranges, sixteen)
        return sqnr_db(expected, predict(encoder, precision, pixels)["last_hidden_state"])

    eight, sixteen = sqnr(frozenset()), sqnr(frozenset(observation.ranges) - {"pixel_values"})
    assert 20 < eight < sixteen - 5
    assert sixteen < 50  # the weights are int8


def test_a_wrong_scale_shows_in_the_prediction() -> None:
    observation, encoder = calibrated()
    narrow = Range(*(0.3 * end for end in (observation.ranges["residual"].low, observation.ranges["residual"].high)))
    pixels = random_pixels(seed=5)
    right, wrong = (
        predict(encoder, IntegerPrecision(ranges), pixels)["last_hidden_state"]
        for ranges in (observation.ranges, {**observation.ranges, "residual": narrow})
    )
    assert sqnr_db(right, wrong) < 20


def test_search_spends_the_fewest_16_bit_tensors_that_keep_the_budget() -> None:
    observation, encoder = calibrated()
    judge = Judge(encoder, observation.ranges, random_pixels(seed=5))
    everything = frozenset().union(*(group.tensors for group in judge.groups))
    assert everything == frozenset(observation.ranges) - {"pixel_values"}
    limit_db = (judge.point(frozenset()).sqnr_db + judge.point(everything).sqnr_db) / 2
    done: list[str] = []
    result = search_integers(judge, judge.costs_db(done.append), Budget(min_sqnr_db=limit_db - MARGIN_DB))
    assert done == [group.name for group in judge.groups] == list(result.sensitivity_db)
    assert result.found == judge.point(result.precision.sixteen)
    assert result.found.sqnr_db >= limit_db
    assert 0 < len(result.precision.sixteen) < len(everything) * 2 / 3
    # What the search does not measure, but gates do, loses nothing as long as anything has 16 bits.
    assert {"pooler.dense", "pooler_output"} < result.precision.sixteen
    tensors = [point.sixteen_bit_tensors for point in result.curve]
    assert tensors == sorted(tensors)
    # One point further in the order, the budget is missed.
    found = tensors.index(len(result.precision.sixteen))
    assert result.curve[found] == result.found
    assert result.curve[found - 1].sqnr_db < limit_db


def test_search_keeps_a_cosine_too() -> None:
    observation, encoder = calibrated()
    judge = Judge(encoder, observation.ranges, random_pixels(seed=5))
    costs_db = judge.costs_db()
    narrow = search_integers(judge, costs_db, Budget(min_sqnr_db=10)).found
    wider = search_integers(judge, costs_db, Budget(min_cosine=(1 + narrow.cosine_mean) / 2)).found
    assert wider.cosine_mean > (1 + narrow.cosine_mean) / 2
    assert wider.sixteen_bit_tensors > narrow.sixteen_bit_tensors == 0


def test_a_point_that_passes_behind_one_that_fails_was_lucky() -> None:
    groups = tuple(Group(f"t{index:02}", frozenset({f"t{index:02}"}), 0, 1) for index in range(16))

    class Scattered:
        """Falls with each tensor in 8 bits, but for one stroke of luck at 12."""

        def __init__(self) -> None:
            self.groups = groups

        def precision(self, sixteen: frozenset[str]) -> IntegerPrecision:
            return IntegerPrecision({group.name: Range(0.0, 1.0) for group in groups}, sixteen)

        def point(self, sixteen: frozenset[str]) -> IntegerTradeOff:
            narrow = len(groups) - len(sixteen)
            return IntegerTradeOff(len(sixteen), len(sixteen), 99.0 if narrow == 12 else 40.0 - narrow, 1.0)

    costs_db = {group.name: 40.0 - index for index, group in enumerate(groups)}
    found = search_integers(Scattered(), costs_db, Budget(min_sqnr_db=33 - MARGIN_DB)).found  # type: ignore[arg-type]
    assert (found.sixteen_bit_tensors, found.sqnr_db) == (16 - 7, 33.0)


def test_search_takes_8_bits_everywhere_if_they_do() -> None:
    observation, encoder = calibrated()
    judge = Judge(encoder, observation.ranges, random_pixels(seed=5))
    assert not search_integers(judge, judge.costs_db(), Budget(min_sqnr_db=10)).precision.sixteen


def test_a_budget_that_cannot_be_met_says_the_best_reached() -> None:
    observation, encoder = calibrated()
    judge = Judge(encoder, observation.ranges, random_pixels(seed=5))
    with pytest.raises(PlanError, match=r"16 bits everywhere, and reaches \d\d\.\d\d dB and a mean cosine of 0\.99"):
        search_integers(judge, judge.costs_db(), Budget(min_sqnr_db=90))


def test_a_layer_is_measured_from_the_stream_in_front_of_it() -> None:
    """Starting in the middle gives what a run from the pixels gives."""
    observation, encoder = calibrated()
    judge = Judge(encoder, observation.ranges, random_pixels(seed=5))
    everything = frozenset().union(*(group.tensors for group in judge.groups))
    costs = judge.costs_db()
    for group in judge.groups:
        assert costs[group.name] == pytest.approx(judge.point(everything - group.tensors).sqnr_db, abs=1e-6)


def test_16_bit_inverse_roots_are_refined() -> None:
    """The kernel's table alone is off by percents where its input is small; a Newton step squares that."""
    ranges = {"x": Range(0.0, 1.0), "y": Range(0.0, 20.0)}
    operations = FakeOperations(calibrated()[1], IntegerPrecision(ranges, frozenset(ranges)))
    x = torch.tensor([0.0035, 0.006, 0.01, 0.03, 0.1, 0.5, 1.0])[:, None]
    given = Quantity(rounded(x, ranges["x"].grid(16)), "x", ranges["x"].grid(16))
    plain = operations._lookup("y", given, "RSQRT", ranges["y"].grid(16))
    refined = operations.lookup("y", given, "RSQRT").value
    errors = [(y * x.sqrt() - 1).abs() for y in (plain, refined)]
    assert errors[0].max() > 0.1
    assert (errors[1] <= 2 * errors[0] ** 2 + 5e-4).all()


def test_precision_survives_json() -> None:
    precision = IntegerPrecision(calibrated()[0].ranges, frozenset({"residual", "layers.0.attention.scores"}))
    assert IntegerPrecision.from_json(json.loads(json.dumps(precision.to_json()))) == precision


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"ranges": {"x": [0, 1]}},
        {"ranges": {"x": [0]}, "sixteen_bit": []},
        {"ranges": {"x": [2, 1]}, "sixteen_bit": []},
        {"ranges": [], "sixteen_bit": []},
        {"ranges": {"x": [0, 1]}, "sixteen_bit": ["y"]},
    ],
)
def test_other_documents_are_refused(document: dict[str, object]) -> None:
    with pytest.raises(PlanError):
        IntegerPrecision.from_json(document)


def test_the_fold_can_be_repeated() -> None:
    observation = calibrated()[0]
    again = fold(random_encoder(), observation.factors, observation.multipliers)
    for name, (weight, bias) in observation.folded.linears.items():
        np.testing.assert_array_equal(again.linears[name][0], weight)
        np.testing.assert_array_equal(again.linears[name][1], bias)
