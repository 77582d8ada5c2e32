"""Fixed input ranges: they cover what was seen, and are narrowed only where that lowers the error."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.tiny import random_encoder, random_pixels
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.fake import quantize_static
from vitedge.quantization.plan import StaticInput
from vitedge.quantization.ranges import BINS, HistogramObserver, best_input, covering_input

NAME = "layers.0.mlp.fc1"


def ends(static: StaticInput) -> tuple[float, float]:
    return -static.scale * static.zero_point, static.scale * (255 - static.zero_point)


def error(static: StaticInput, histogram: NDArray[np.float64], minimum: float, maximum: float) -> float:
    """Weighted squared error with every bin spread over 64 values, each really quantized."""
    width = (maximum - minimum) / BINS
    values = minimum + (np.arange(BINS * 64) + 0.5) * width / 64
    rounded = quantize_static(torch.from_numpy(values), static).numpy()
    return float(histogram @ np.square(rounded - values).reshape(BINS, 64).mean(1))


# Covering


@given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_input_ranges_cover_and_hold_zero(minimum: float, width: float) -> None:
    static = covering_input(minimum, minimum + width)
    low, high = ends(static)
    assert low <= 0 <= high
    assert low <= minimum + static.scale * 0.51
    assert high >= minimum + width - static.scale * 0.51


@pytest.mark.parametrize(("minimum", "maximum", "zero_point"), [(0, 1, 0), (-1, 0, 255), (-1, 3, 64), (0, 0, 0)])
def test_zero_points(minimum: float, maximum: float, zero_point: int) -> None:
    assert covering_input(minimum, maximum).zero_point == zero_point


# Least error


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 10), st.floats(-8, 0), st.floats(0, 8))
def test_narrower_only_if_the_error_is_lower(seed: int, spread: float, minimum: float, maximum: float) -> None:
    """Bells of any width, from far narrower than the range to flat."""
    assume(maximum - minimum > 0.1)
    centers = minimum + (np.arange(BINS) + 0.5) * (maximum - minimum) / BINS
    noise = np.random.default_rng(seed).uniform(0.5, 1.5, BINS)
    histogram = np.exp(-np.abs(centers) / spread) * noise
    best, covering = best_input(histogram, minimum, maximum), covering_input(minimum, maximum)
    assert best.scale <= covering.scale
    found, before = (error(static, histogram, minimum, maximum) for static in (best, covering))
    # 2 %: the search takes a step's error for step²/12 and a bin's values for its center.
    assert found <= before * 1.02
    if best.scale < covering.scale * 0.9:
        assert found < before


def test_a_flat_histogram_keeps_the_whole_range() -> None:
    assert best_input(np.ones(BINS), -1.0, 3.0) == covering_input(-1.0, 3.0)


def test_the_end_with_the_rare_values_is_narrowed() -> None:
    """Most values lie in [-1, 1], a few in a tail up to 3: half of the error goes with the tail's end."""
    centers = -1 + (np.arange(BINS) + 0.5) * 4 / BINS
    histogram = np.where(centers < 1, 1.0, 1e-7)
    best, covering = best_input(histogram, -1.0, 3.0), covering_input(-1.0, 3.0)
    low, high = ends(best)
    assert low == pytest.approx(-1, abs=best.scale)
    assert high == pytest.approx(1.5, abs=best.scale)  # half of the range is the narrowest that is tried
    ratio = error(best, histogram, -1.0, 3.0) / error(covering, histogram, -1.0, 3.0)
    assert ratio == pytest.approx((2.5 / 4) ** 2, rel=0.05)


def test_an_important_tail_is_kept() -> None:
    centers = -1 + (np.arange(BINS) + 0.5) * 4 / BINS
    histogram = np.where(centers < 1, 1.0, 1e-7)
    histogram[-1] = 1.0
    assert best_input(histogram, -1.0, 3.0) == covering_input(-1.0, 3.0)


@pytest.mark.parametrize(("minimum", "maximum"), [(0.5, 2.0), (-2.0, -0.5)])
def test_ranges_beside_zero_reach_to_it(minimum: float, maximum: float) -> None:
    low, high = ends(best_input(np.ones(BINS), minimum, maximum))
    assert (low, high) == pytest.approx((min(minimum, 0), max(maximum, 0)), abs=1e-6)


# Histograms


def test_values_count_as_much_as_their_column_of_the_weight() -> None:
    encoder = random_encoder()
    weight = encoder.tensors[f"{NAME}.weight"].copy()
    weight[:, 1:] = 0
    encoder = encoder.with_tensors({f"{NAME}.weight": weight})
    x = torch.full((1, 3, weight.shape[1]), 2.0)  # in channels that nothing reads
    x[0, :, 0] = torch.tensor([-1.0, 0.0, 3.0])
    observer = HistogramObserver(lambda _, given: given * 2, encoder, {NAME: (-1.0, 3.0)})
    torch.testing.assert_close(observer(NAME, x), x * 2)
    observer("layers.0.mlp.fc2", x)
    assert observer.histograms.keys() == {NAME}
    importance = float(np.square(weight[:, 0]).sum())
    expected = np.zeros(BINS)
    expected[[0, BINS // 4, BINS - 1]] = importance
    np.testing.assert_allclose(observer.histograms[NAME], expected, rtol=1e-6)


def with_outlier(importance: float) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Histogram and range of fc1's input where its channel 7 is 30 times larger, and its weights are scaled."""
    encoder = random_encoder()
    norm, weight = (encoder.tensors[name].copy() for name in ("layers.0.layernorm_after.weight", f"{NAME}.weight"))
    norm[7] *= 30
    weight[:, 7] *= importance
    encoder = encoder.with_tensors({"layers.0.layernorm_after.weight": norm, f"{NAME}.weight": weight})
    seen: list[torch.Tensor] = []

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        if name == NAME:
            seen.append(x)
        return float_linear(encoder)(name, x)

    forward(encoder, random_pixels(), linear)
    limits = float(seen[0].min()), float(seen[0].max())
    observer = HistogramObserver(float_linear(encoder), encoder, {NAME: limits})
    forward(encoder, random_pixels(), observer)
    return observer.histograms[NAME].numpy(), limits


def test_outliers_are_clipped_only_if_nothing_reads_them() -> None:
    read, limits = with_outlier(1.0)
    assert best_input(read, *limits).scale > covering_input(*limits).scale * 0.85
    unread, limits = with_outlier(0.0)
    assert best_input(unread, *limits).scale == pytest.approx(covering_input(*limits).scale / 2, rel=0.02)
