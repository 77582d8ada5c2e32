"""The ratio of latencies, its interval and its verdict."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.benchmarks.speedup import CLEAR_RATIO, Speedup, median_interval, speedup_of

LATENCIES = st.floats(0.01, 1e5)
BLOCKS = st.lists(LATENCIES, min_size=1, max_size=5)
ROUNDS = st.lists(st.tuples(BLOCKS, BLOCKS), min_size=1, max_size=20)


@given(ROUNDS)
def test_interval_holds_the_median_and_stays_within_the_rounds(rounds: list[tuple[list[float], list[float]]]) -> None:
    found = speedup_of(rounds)
    ratios = [np.median(second) / np.median(first) for first, second in rounds]
    assert min(ratios) <= found.low <= found.high <= max(ratios)
    assert found.low <= found.median * (1 + 1e-12)
    assert found.median <= found.high * (1 + 1e-12)
    assert found.rounds == len(rounds)


@given(st.lists(LATENCIES, min_size=1, max_size=20), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_interval_scales_with_the_values(values: list[float], factor: float) -> None:
    low, high = median_interval(values)
    assert median_interval([value * factor for value in values]) == pytest.approx((low * factor, high * factor))


@given(ROUNDS)
def test_the_other_way_round_is_the_inverse(rounds: list[tuple[list[float], list[float]]]) -> None:
    """Exactly so for odd numbers of rounds; the median of an even number lies between two of them."""
    rounds = rounds if len(rounds) % 2 else [*rounds, rounds[0]]
    found, inverse = speedup_of(rounds), speedup_of([(second, first) for first, second in rounds])
    assert inverse.median == pytest.approx(1 / found.median)
    assert (inverse.low, inverse.high) == pytest.approx((1 / found.high, 1 / found.low), rel=0.5)
    assert not (found.is_faster and inverse.is_faster)
    assert not (found.is_faster and found.is_slower)


def test_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    """Skewed rounds, as latencies are: 20 of them, a thousand times."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        low, high = median_interval(1.5 * np.exp(0.1 * generator.standard_normal(20)))
        covered += low <= 1.5 <= high
    assert 920 <= covered <= 975


def test_interval_narrows_with_rounds() -> None:
    """With their root: 16 times the rounds, a quarter of the width, in the mean of many measurements."""
    generator = np.random.default_rng(0)
    widths = [
        np.mean([np.ptp(median_interval(generator.normal(2, 0.1, count))) for _ in range(100)]) for count in (16, 256)
    ]
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.1)


def test_interval_repeats_to_the_digit_and_one_value_is_its_own() -> None:
    assert median_interval([1.0, 2.0, 4.0]) == median_interval([1.0, 2.0, 4.0])
    assert median_interval([1.5]) == (1.5, 1.5)


def test_speedup_is_per_round() -> None:
    """A machine ten times slower in one round leaves that round's ratio alone; blocks count by their medians."""
    rounds = [([10.0, 10.0, 900.0], [20.0]), ([100.0], [200.0]), ([10.0], [30.0])]
    assert speedup_of(rounds) == Speedup(2.0, 2.0, 3.0, 3)


@pytest.mark.parametrize(
    ("median", "low", "high", "words"),
    [
        (1.84, 1.79, 1.88, "1.84× [1.79, 1.88] faster than FP32 here"),
        (0.71, 0.65, 0.80, "SLOWER than FP32 here (0.71× [0.65, 0.80])"),
        (1.20, 0.95, 1.50, "no clear difference from FP32 here (1.20× [0.95, 1.50])"),
        (0.90, 0.80, 1.10, "no clear difference from FP32 here (0.90× [0.80, 1.10])"),
        # Surely above 1 and below it, but no more than two processes of the same file differ by.
        (1.03, 1.02, 1.05, "no clear difference from FP32 here (1.03× [1.02, 1.05])"),
        (0.99, 0.98, 0.99, "no clear difference from FP32 here (0.99× [0.98, 0.99])"),
    ],
)
def test_words(median: float, low: float, high: float, words: str) -> None:
    assert Speedup(median, low, high, 10).over("FP32") == words


def test_edges_of_a_clear_ratio() -> None:
    assert not Speedup(2, CLEAR_RATIO, 3, 10).is_faster
    assert Speedup(2, CLEAR_RATIO + 1e-9, 3, 10).is_faster
    assert not Speedup(0.5, 0.4, 1 / CLEAR_RATIO, 10).is_slower
    assert Speedup(0.5, 0.4, 1 / CLEAR_RATIO - 1e-9, 10).is_slower
