"""Intervals against closed forms and against how often they cover the truth; McNemar against binomial sums by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from vitedge.quantization.intervals import (
    Estimate,
    Values,
    bootstrap_interval,
    bounded_estimate,
    images_to_detect,
    mcnemar,
    mean_interval,
    undetected_share,
)


def normal(count: int, seed: int = 0) -> Values:
    return np.random.default_rng(seed).standard_normal(count)


def test_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = 5 + 2 * normal(400)
    low, high = mean_interval(values) or (0.0, 0.0)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_one_image_has_no_interval() -> None:
    assert mean_interval(np.array([3.0])) is None
    assert mean_interval(np.array([3.0, 4.0])) == (3.0, 4.0)


def test_an_image_keeps_its_values_together() -> None:
    """The ratio of two sums that rise and fall together is certain; drawn apart they would spread it by 10 %."""
    noise = np.exp(normal(100))
    ratio = bootstrap_interval(lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis), 3 * noise, noise)
    assert ratio == pytest.approx((3, 3))


def test_an_interval_is_the_same_every_time() -> None:
    assert mean_interval(normal(50)) == mean_interval(normal(50))


def test_intervals_cover_the_truth_about_95_times_of_100() -> None:
    """120 sets of 150 images: INT8 loses each with probability 0.10 and gains each with 0.04, a true drop of 0.06."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(120):
        low, high = bounded_estimate(generator.choice([1.0, -1.0, 0.0], 150, p=[0.10, 0.04, 0.86]), (-1, 1)).interval
        covered += low <= 0.06 <= high
    assert 0.89 <= covered / 120 <= 0.99  # 95 % ± 3 standard deviations


@pytest.mark.parametrize(
    ("images", "value", "within", "interval"),
    [
        (40, 1.0, (0, 1), (1 - 0.0881, 1)),
        (40, 0.0, (0, 1), (0, 0.0881)),
        (400, 1.0, (0, 1), (1 - 0.00918, 1)),
        (40, 0.0, (-1, 1), (-0.0881, 0.0881)),
        (40, 1.0, (-1, 1), (1 - 2 * 0.0881, 1)),
        (1, 1.0, (0, 1), (0.025, 1)),
    ],
)
def test_equal_values_are_not_certainty(
    images: int, value: float, within: tuple[float, float], interval: tuple[float, float]
) -> None:
    """0.0881 = 1 - 0.025^(1/40), 0.00918 = 1 - 0.025^(1/400)."""
    found = bounded_estimate(np.full(images, value), within)
    assert found.mean == value
    assert found.interval == pytest.approx(interval, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_an_estimate_lies_within_its_interval_and_its_bounds(values: list[float]) -> None:
    found = bounded_estimate(np.array(values))
    assert isinstance(found, Estimate)
    low, high = found.interval
    assert -1e-12 <= low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= high <= 1 + 1e-12


@given(st.floats(0.001, 0.9))
def test_images_to_detect_is_the_fewest(share: float) -> None:
    images = images_to_detect(share)
    assert undetected_share(images) <= share + 1e-12
    assert images == 1 or undetected_share(images - 1) > share - 1e-12


def test_images_for_a_gate() -> None:
    """The rule of three, two-sided: 3.69 divided by the share."""
    assert images_to_detect(0.005) == 736
    assert undetected_share(40) == pytest.approx(0.0881, abs=1e-4)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(1, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(7, 1) == pytest.approx(2 * 9 / 256)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_a_two_sided_binomial_test(lost: int, gained: int) -> None:
    assert mcnemar(lost, gained) == pytest.approx(mcnemar(gained, lost))
    expected = min(1.0, 2 * binom.cdf(min(lost, gained), lost + gained, 0.5)) if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(expected)
