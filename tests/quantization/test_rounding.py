"""Weights and ranges as integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.plan import WEIGHT_RANGES
from vitedge.quantization.rounding import best_scale, covering_input, round_to_nearest


def statistics(features: int, mean: float = 0.5) -> InputStatistics:
    ones = np.ones(features, np.float32)
    return InputStatistics(-ones, ones, mean * ones, ones)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(WEIGHT_RANGES)), st.floats(1e-6, 1e6))
def test_integers_stay_in_range_and_near_the_weight(seed, bits, magnitude):
    weight = (np.random.default_rng(seed).standard_normal((5, 16)) * magnitude).astype(np.float32)
    rounded = round_to_nearest(weight, np.zeros(5, np.float32), statistics(16), bits)
    low, high = WEIGHT_RANGES[bits]
    assert rounded.values.min() >= low and rounded.values.max() <= high
    covering = np.abs(weight).max(axis=1) / high
    nearest = np.clip(np.rint(weight / covering[:, None]), low, high) * covering[:, None]
    error = np.square(rounded.dequantized() - weight).sum(axis=1)
    assert (error <= np.square(nearest - weight).sum(axis=1) * 1.001 + 1e-30).all()  # the search never makes it worse


def test_the_scale_search_gains_on_a_lone_outlier():
    weight = np.random.default_rng(0).standard_normal((1, 512)).astype(np.float32)
    weight[0, 0] = 5.0
    covering = np.abs(weight).max() / 63
    assert best_scale(weight, np.ones(512, np.float32), 7)[0] < covering


def test_the_bias_takes_back_the_mean_error():
    weight = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    bias = np.arange(4, dtype=np.float32)
    mean = np.full(64, 0.5, np.float32)
    rounded = round_to_nearest(weight, bias, statistics(64), 7)
    expected = weight @ mean + bias
    np.testing.assert_allclose(rounded.dequantized() @ mean + rounded.bias, expected, atol=1e-4)
    assert np.abs(rounded.dequantized() @ mean + bias - expected).max() > 1e-3  # without it the mean is off


def test_a_row_of_zeros_has_a_positive_scale():
    rounded = round_to_nearest(np.zeros((2, 8), np.float32), np.zeros(2, np.float32), statistics(8), 8)
    assert (rounded.scale > 0).all() and not rounded.values.any()


@given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_input_ranges_cover_and_hold_zero(minimum, width):
    static = covering_input(minimum, minimum + width)
    low, high = -static.scale * static.zero_point, static.scale * (255 - static.zero_point)
    assert low <= 0 <= high
    assert low <= minimum + static.scale * 0.51 and high >= minimum + width - static.scale * 0.51


@pytest.mark.parametrize(("minimum", "maximum", "zero_point"), [(0, 1, 0), (-1, 0, 255), (-1, 1, 127), (0, 0, 0)])
def test_zero_points(minimum, maximum, zero_point):
    assert covering_input(minimum, maximum).zero_point == zero_point
