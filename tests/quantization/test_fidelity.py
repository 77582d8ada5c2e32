"""Cosine, norm and noise against numbers worked out by hand, and streamed sums against all values at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.fidelity import (
    EXACT_SQNR_DB,
    FidelityAccumulator,
    FloatArray,
    Moments,
    OutputAccuracy,
    cosine,
    sqnr_db,
)
from vitedge.quantization.intervals import mean_interval


def array(values: object) -> FloatArray:
    return np.array(values, np.float32)


def fidelity(fp32: FloatArray, int8: FloatArray, batch: int = 1000) -> OutputAccuracy:
    """Of vectors [images, vectors, width]."""
    found = FidelityAccumulator()
    for start in range(0, len(fp32), batch):
        moments = Moments.of(fp32[start : start + batch], int8[start : start + batch])
        found.add(moments, moments)
    return found.result([f"image{index}" for index in range(len(fp32))])


def noisy(images: int, vectors: int, noise: float = 0.3, seed: int = 0) -> tuple[FloatArray, FloatArray]:
    generator = np.random.default_rng(seed)
    fp32 = generator.standard_normal((images, vectors, 8))
    spread = generator.exponential(noise, (images, vectors, 1))
    return array(fp32), array(fp32 + spread * generator.standard_normal(fp32.shape))


def test_cosine_by_hand() -> None:
    a = array([[1, 0], [1, 0], [1, 0], [3, 4], [0, 0], [0, 0], [1, 1]])
    b = array([[5, 0], [0, 2], [-1, 0], [4, 3], [1, 2], [0, 0], [1e-20, 1e-20]])
    np.testing.assert_allclose(cosine(a, b), [1, 0, -1, 24 / 25, 0, 0, 1], atol=1e-7)


def test_cosine_of_huge_and_of_tiny_values() -> None:
    """Squares of these overflow, or vanish, in float32."""
    for magnitude in (1e30, 1e-30):
        np.testing.assert_allclose(cosine(array([[3, 4]]) * magnitude, array([[4, 3]]) * magnitude), [0.96], rtol=1e-6)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 1.0, 0.0),
        (1.0, 1000.0, -30.0),
        (5.0, 0.0, EXACT_SQNR_DB),
        (0.0, 0.0, EXACT_SQNR_DB),
        (0.0, 1.0, -EXACT_SQNR_DB),
        (1.0, 1e-40, EXACT_SQNR_DB),
        (1e300, 1e-300, EXACT_SQNR_DB),
    ],
)
def test_sqnr_by_hand(signal: float, noise: float, expected: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(expected)


def test_one_vector_by_hand() -> None:
    found = fidelity(array([[[3, 4]]]), array([[[6, 8.5]]]))
    assert found.norm_drift_mean == pytest.approx(np.sqrt(36 + 72.25) / 5 - 1)
    assert found.norm_drift_worst == pytest.approx(found.norm_drift_mean)
    assert found.sqnr_db == pytest.approx(10 * np.log10(25 / (9 + 20.25)))
    assert found.max_abs_error == 4.5
    assert (found.cosine_mean_interval, found.sqnr_db_interval, found.norm_drift_mean_interval) == (None, None, None)


def test_norm_drift_does_not_cancel_and_its_worst_keeps_its_sign() -> None:
    fp32 = array([[[1, 0], [1, 0]], [[1, 0], [1, 0]]])
    int8 = array([[[1.1, 0], [0.9, 0]], [[1, 0], [0.7, 0]]])
    found = fidelity(fp32, int8)
    assert found.norm_drift_mean == pytest.approx(0.5 / 4)
    assert found.norm_drift_worst == pytest.approx(-0.3)
    assert found.norm_drift_mean_interval == pytest.approx((0.1, 0.15))
    assert found.cosine_worst == 1.0


def test_norm_of_a_zero_vector_has_no_relative_change() -> None:
    found = fidelity(array([[[0, 0]], [[2, 0]]]), array([[[5, 0]], [[3, 0]]]))
    assert (found.norm_drift_mean, found.norm_drift_worst) == pytest.approx((0.25, 0.5))
    assert (found.cosine_worst, found.worst_image) == (0.0, "image0")
    dead = fidelity(array([[[1, 0]]]), array([[[0, 0]]]))
    assert (dead.norm_drift_mean, dead.norm_drift_worst) == (1.0, -1.0)


@given(st.integers(1, 30), st.integers(1, 60), st.floats(1e-4, 2), st.integers(0, 2**32 - 1), st.integers(1, 31))
def test_streamed_statistics_are_those_of_all_vectors(
    images: int, vectors: int, noise: float, seed: int, batch: int
) -> None:
    fp32, int8 = noisy(images, vectors, noise, seed)
    found = fidelity(fp32, int8, batch)
    cosines = cosine(fp32.reshape(-1, 8), int8.reshape(-1, 8))
    assert found.cosine_mean == pytest.approx(cosines.mean())
    assert found.cosine_worst == pytest.approx(cosines.min())
    assert found.worst_image == f"image{cosines.reshape(images, vectors).min(axis=1).argmin()}"
    wide, narrow = fp32.astype(np.float64), int8.astype(np.float64)
    assert found.sqnr_db == pytest.approx(10 * np.log10((wide**2).sum() / ((wide - narrow) ** 2).sum()))
    assert found.max_abs_error == np.abs(wide - narrow).max()
    if vectors == 1:
        assert found.cosine_p01 == pytest.approx(np.percentile(cosines, 1))
    else:
        exact = np.percentile(1 - cosines, 99, method="inverted_cdf")
        assert exact * (1 - 1e-9) - 1e-12 <= 1 - found.cosine_p01 <= exact * 1.006 + 1e-9


def test_every_image_weighs_the_same_in_the_intervals() -> None:
    """The bootstrap is over images: 400 tokens of 4 images are not 400 independent measurements."""
    generator = np.random.default_rng(0)
    fp32 = array(generator.standard_normal((4, 400, 8)))
    int8 = fp32 + array([0.01, 0.1, 0.5, 1])[:, None, None] * array(generator.standard_normal(fp32.shape))
    low, high = fidelity(fp32, int8).cosine_mean_interval or (0.0, 0.0)
    by_image = [cosine(*pair).mean() for pair in zip(fp32, int8, strict=True)]
    assert (low, high) == pytest.approx(mean_interval(np.array(by_image)))
    assert high - low > 0.2


def test_interval_of_sqnr_holds_it_and_narrows() -> None:
    few, many = (fidelity(*noisy(images, 1)) for images in (20, 2000))
    for found in (few, many):
        low, high = found.sqnr_db_interval or (0.0, 0.0)
        assert low < found.sqnr_db < high
    assert many.sqnr_db_interval is not None
    assert few.sqnr_db_interval is not None
    assert np.diff(many.sqnr_db_interval) < np.diff(few.sqnr_db_interval) / 5
