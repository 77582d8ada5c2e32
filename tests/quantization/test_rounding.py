"""Weights as integers: within their format, safe in pairs, and judged by the error of the output."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from vitedge.calibration.observers import InputStatistics, Observer
from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.plan import IntegerWeight
from vitedge.quantization.recipe import WEIGHT_FORMATS
from vitedge.quantization.rounding import Factor, best_scale, factorize, gptq, round_to_nearest, round_weights
from vitedge.quantization.saturation import Pairing, certify

SEEDS = st.integers(0, 2**32 - 1)
# Weights in units of their scale: up to 127 / 0.6, the smallest step that the search tries.
STEPS = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    elements=st.floats(-212, 212, width=32),
)


def correlated_rows(features: int, seed: int = 0, count: int = 2000) -> FloatArray:
    """Inputs as a ViT's: a few directions carry most of the variance, and means are not zero."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((count, 4)) @ generator.standard_normal((4, features))
    own = 0.2 * generator.standard_normal((count, features))
    return (common + own + generator.standard_normal(features)).astype(np.float32)


def statistics(rows: FloatArray) -> InputStatistics:
    wide = rows.astype(np.float64)
    covariance = np.atleast_2d(np.cov(wide.T, bias=True)).astype(np.float32)
    return InputStatistics(rows.min(0), rows.max(0), wide.mean(0).astype(np.float32), covariance)


def random_weight(outputs: int, features: int, seed: int = 0) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((outputs, features)).astype(np.float32)


def output_error(dequantized: FloatArray, weight: FloatArray, rows: FloatArray) -> float:
    """tr(E · C · Eᵀ) with C the covariance of the rows: the mean squared error of the output once the bias is right."""
    error = (dequantized - weight).astype(np.float64)
    return float(np.trace(error @ np.cov(rows.T.astype(np.float64), bias=True) @ error.T))


def adjacent(width: int) -> tuple[Pairing]:
    return (np.arange(width // 2 * 2).reshape(-1, 2),)


def rounded(weight: FloatArray, rows: FloatArray) -> dict[str, IntegerWeight]:
    return round_weights(weight, np.zeros(len(weight), np.float32), factorize(statistics(rows)), WEIGHT_FORMATS)


# Nearest


@given(STEPS)
def test_nearest_pair_safe_integers_are_proven_safe(steps: FloatArray) -> None:
    found = round_to_nearest(torch.from_numpy(steps), WEIGHT_FORMATS["int8-pair-safe"]).numpy()
    assert (found == np.rint(found)).all()
    assert np.abs(found).max() <= 127
    assert certify(found.astype(np.int8), adjacent(steps.shape[1])).proven_safe


@given(STEPS)
def test_pairs_within_the_limit_are_rounded_as_if_alone(steps: FloatArray) -> None:
    """And so is an odd last column, which has no partner."""
    steps = steps * np.float32(63.5 / 212)
    found = round_to_nearest(torch.from_numpy(steps), WEIGHT_FORMATS["int8-pair-safe"]).numpy()
    np.testing.assert_array_equal(found, np.rint(steps))
    lone = np.array([[120, -120, 126]], np.float32)
    np.testing.assert_array_equal(round_to_nearest(torch.from_numpy(lone), WEIGHT_FORMATS["int8-pair-safe"]), lone)


def test_both_of_a_pair_give_up_half_of_the_excess() -> None:
    steps = torch.tensor([[100.0, 60.0], [-90.0, -70.0], [100.0, -60.0]])
    expected = [[84, 44], [-74, -54], [100, -60]]
    assert round_to_nearest(steps, WEIGHT_FORMATS["int8-pair-safe"]).tolist() == expected


def test_what_is_clipped_anyway_takes_nothing_from_its_neighbor() -> None:
    steps = torch.tensor([[2.0, 150.0], [2.0, 212.0], [150.0, 2.0]])
    assert round_to_nearest(steps, WEIGHT_FORMATS["int8-pair-safe"]).tolist() == [[2, 126], [2, 126], [126, 2]]


def test_free_integers_saturate_where_pair_safe_ones_do_not() -> None:
    """The twin of the proofs here: were `certify` blind, it would pass these too."""
    steps = torch.tensor([[100.0, 60.0]])
    free = round_to_nearest(steps, WEIGHT_FORMATS["int8"])
    assert free.tolist() == [[100, 60]]
    assert certify(free.numpy().astype(np.int8), adjacent(2)).unsafe_pairs == 1


@pytest.mark.parametrize(("name", "limit"), [("int8", 127), ("int7", 64)])
def test_nearest_clamps_to_the_limit(name: str, limit: int) -> None:
    steps = torch.tensor([[-200.0, -0.6, 0.4, 200.0]])
    assert round_to_nearest(steps, WEIGHT_FORMATS[name]).tolist() == [[-limit, -1, 0, limit]]


# Scales


@given(SEEDS, st.sampled_from(sorted(WEIGHT_FORMATS)), st.floats(1e-6, 1e6))
def test_the_scale_search_never_loses_to_the_step_that_is_always_good(seed: int, name: str, magnitude: float) -> None:
    """That is the one that covers the largest weight; for pair-safe weights with 64, so that no pair exceeds 128."""
    weight = torch.from_numpy(random_weight(5, 17, seed) * np.float32(magnitude))
    variance = torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 10, 17).astype(np.float32))
    weight_format = WEIGHT_FORMATS[name]

    def error(scale: torch.Tensor) -> torch.Tensor:
        found = round_to_nearest(weight / scale[:, None], weight_format) * scale[:, None]
        return (found - weight).square() @ variance

    covering = weight.abs().amax(1) / (64 if weight_format.pair_safe else weight_format.limit)
    assert (error(best_scale(weight, variance, weight_format)) <= error(covering) * 1.001).all()


@pytest.mark.parametrize("name", ["int8", "int7"])
def test_the_scale_search_clips_a_lone_outlier_unless_it_matters(name: str) -> None:
    weight = torch.from_numpy(random_weight(1, 1 << 14))
    weight[0, 0] = 5.0
    variance, covering = torch.ones(1 << 14), 5.0 / WEIGHT_FORMATS[name].limit
    assert best_scale(weight, variance, WEIGHT_FORMATS[name])[0] < covering * 0.99
    variance[0] = 1e6  # clipping it would cost more than all others gain
    assert best_scale(weight, variance, WEIGHT_FORMATS[name])[0] == pytest.approx(covering)


# GPTQ


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
@pytest.mark.parametrize("features", [31, 300])  # within a block, and over three
def test_gptq_beats_nearest_on_correlated_inputs(name: str, features: int) -> None:
    rows, weight = correlated_rows(features), torch.from_numpy(random_weight(16, features))
    factor, weight_format = factorize(statistics(rows)), WEIGHT_FORMATS[name]
    scale = best_scale(weight, factor.variance, weight_format)
    nearest = round_to_nearest(weight / scale[:, None], weight_format) * scale[:, None]
    better = gptq(weight, scale, factor, weight_format) * scale[:, None]
    errors = [output_error(found.numpy(), weight.numpy(), rows) for found in (nearest, better)]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize("name", ["int8", "int7"])
def test_gptq_is_nearest_rounding_if_inputs_are_independent(name: str) -> None:
    weight, weight_format = torch.from_numpy(random_weight(8, 40)), WEIGHT_FORMATS[name]
    zeros, eye = np.zeros(40, np.float32), np.eye(40, dtype=np.float32)
    factor = factorize(InputStatistics(zeros, zeros, zeros, eye))
    scale = best_scale(weight, factor.variance, weight_format)
    expected = round_to_nearest(weight / scale[:, None], weight_format)
    torch.testing.assert_close(gptq(weight, scale, factor, weight_format), expected, rtol=0, atol=0)


@given(SEEDS, st.integers(1, 40), st.sampled_from(sorted(WEIGHT_FORMATS)))
def test_rounded_weights_keep_to_their_format(seed: int, features: int, name: str) -> None:
    rows = correlated_rows(features, seed, 100)
    # Heavy tails, so that neighbours are both large in some pairs.
    weight = random_weight(6, features, seed) ** 3
    found = round_weights(weight, np.zeros(6, np.float32), factorize(statistics(rows)), {name: WEIGHT_FORMATS[name]})[
        name
    ]
    assert found.values.dtype == np.int8
    assert found.scale.dtype == found.bias.dtype == np.float32
    assert np.abs(found.values.astype(int)).max() <= WEIGHT_FORMATS[name].limit
    assert name == "int8" or certify(found.values, adjacent(features)).proven_safe


@pytest.mark.parametrize("features", [31, 300])
def test_pair_safe_weights_are_nearer_than_7_bits(features: int) -> None:
    rows, weight = correlated_rows(features), random_weight(32, features)
    found = rounded(weight, rows)
    errors = {name: output_error(found[name].dequantized(), weight, rows) for name in WEIGHT_FORMATS}
    assert errors["int8"] < errors["int8-pair-safe"] < errors["int7"] * 0.75
    assert certify(found["int8-pair-safe"].values, adjacent(features)).proven_safe
    assert np.abs(found["int8-pair-safe"].values).max() > 64  # more than 7 bits are used
    assert not certify(found["int8"].values, adjacent(features)).proven_safe


# Factors and bias


def damped(rows: FloatArray) -> NDArray[np.float64]:
    covariance = np.atleast_2d(np.cov(rows.T.astype(np.float64), bias=True))
    return np.asarray(covariance + 1e-3 * np.diag(covariance.diagonal()))


def in_order(rows: FloatArray, order: NDArray[np.int64]) -> Factor:
    """The factor as another order would have it."""
    inverse = torch.from_numpy(np.linalg.inv(damped(rows)[np.ix_(order, order)]))
    return replace(
        factorize(statistics(rows)),
        order=torch.from_numpy(order),
        inverse_root=torch.linalg.cholesky(inverse, upper=True).float(),
    )


@given(SEEDS, st.integers(1, 70))  # up to three groups of columns whose place is decided together
def test_a_factor_holds_the_root_of_the_inverse_covariance_in_its_order(seed: int, features: int) -> None:
    rows = correlated_rows(features, seed, 500)
    factor = factorize(statistics(rows))
    np.testing.assert_allclose(factor.variance, np.atleast_1d(rows.astype(np.float64).var(0)), rtol=1e-4)
    order = factor.order.numpy()
    assert sorted(order) == list(range(features))
    root = factor.inverse_root.double().numpy()
    assert (np.tril(root, -1) == 0).all()
    covariance = damped(rows)[np.ix_(order, order)]
    np.testing.assert_allclose(root.T @ root @ covariance, np.eye(features), atol=1e-2)


def test_few_columns_are_rounded_by_falling_variance() -> None:
    rows = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32) * np.float32([1.5, 0.1, 2.0])
    assert factorize(statistics(rows)).order.tolist() == [2, 0, 1]


def test_what_is_known_from_later_columns_comes_later_than_what_is_not() -> None:
    """Copies vary most, but hardly once the small inputs are known."""
    generator = np.random.default_rng(0)
    small = generator.standard_normal((5000, 32)).astype(np.float32)
    copies = 2 * small + 0.01 * generator.standard_normal((5000, 32)).astype(np.float32)
    alone = 1.5 * generator.standard_normal((5000, 32)).astype(np.float32)
    order = factorize(statistics(np.hstack((copies, alone, small)))).order.tolist()
    assert [column // 32 for column in order] == [1] * 32 + [0] * 32 + [2] * 32


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_the_order_beats_columns_as_they_come(name: str) -> None:
    generator = np.random.default_rng(1)
    spread = np.exp(generator.uniform(-2, 2, 300)).astype(np.float32)
    rows, weight = correlated_rows(300) * spread, torch.from_numpy(random_weight(16, 300))
    sorted_, as_they_come = factorize(statistics(rows)), in_order(rows, np.arange(300))
    scale = best_scale(weight, sorted_.variance, WEIGHT_FORMATS[name])
    errors = [
        output_error((gptq(weight, scale, factor, WEIGHT_FORMATS[name]) * scale[:, None]).numpy(), weight.numpy(), rows)
        for factor in (sorted_, as_they_come)
    ]
    assert errors[0] < errors[1] * 0.8


def test_few_rows_far_from_zero_can_be_factorized() -> None:
    """Fewer rows than channels, and means a thousand times the spread: random weights on the demo's digits are so."""
    generator = np.random.default_rng(0)
    rows = (100 + 0.1 * generator.standard_normal((200, 5)) @ generator.standard_normal((5, 300))).astype(np.float32)
    observer = Observer(lambda _, x: x)
    for batch in np.split(rows, 10):
        observer("linear", torch.from_numpy(batch))
    seen, weight = observer.statistics()["linear"], random_weight(8, 300)
    factor = factorize(seen)
    np.testing.assert_allclose(factor.variance, rows.var(axis=0), rtol=1e-3)
    scale = best_scale(torch.from_numpy(weight), factor.variance, WEIGHT_FORMATS["int8"])
    nearest = round_to_nearest(torch.from_numpy(weight) / scale[:, None], WEIGHT_FORMATS["int8"]) * scale[:, None]
    found = round_weights(weight, np.zeros(8, np.float32), factor, WEIGHT_FORMATS)["int8"]
    assert output_error(found.dequantized(), weight, rows) < output_error(nearest.numpy(), weight, rows) / 2


def test_channels_that_never_moved_are_rounded_on_their_own() -> None:
    rows = correlated_rows(10)
    rows[:, 3], rows[:, 4] = 0.7, 0.0
    weight = random_weight(4, 10)
    found = rounded(weight, rows)["int8"]
    apart = np.abs(found.dequantized() - weight)[:, 3:5]
    assert (apart <= found.scale[:, None] / 2 * 1.01).all()


def test_the_bias_takes_back_the_mean_error() -> None:
    rows, weight, bias = correlated_rows(64), random_weight(4, 64), np.arange(4, dtype=np.float32)
    for found in round_weights(weight, bias, factorize(statistics(rows)), WEIGHT_FORMATS).values():
        mean = rows.astype(np.float64).mean(0)
        expected = weight @ mean + bias
        np.testing.assert_allclose(found.dequantized() @ mean + found.bias, expected, atol=1e-4)
        assert np.abs(found.dequantized() @ mean + bias - expected).max() > 1e-3  # without it the mean is off


@pytest.mark.parametrize("name", WEIGHT_FORMATS)
def test_a_row_of_zeros_has_a_positive_scale(name: str) -> None:
    found = rounded(np.zeros((2, 8), np.float32), correlated_rows(8))[name]
    assert (found.scale > 0).all()
    assert not found.values.any()
