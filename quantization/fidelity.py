"""How far INT8 vectors are from FP32 vectors, streamed: a few numbers per image are kept, whatever the resolution.

Cosine, norm and noise all follow from five sums over the width of each vector (`Moments`), so every output is read
once. Values are added in float64: squares of large or tiny float32 values would overflow or vanish.

An image may hold many vectors, its patch tokens. Of those it keeps the mean and the extremes, and all of them go into
one histogram of 1 - cosine, whose 4096 bins are spaced by its logarithm: the 1st percentile read from it is too low by
at most 0.6 % of its distance to 1, and never too high.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitedge.quantization.intervals import Interval, Values, bootstrap_interval, mean_interval

FloatArray = NDArray[np.float32]
# SQNR of outputs that are equal to the bit; a finite number, so that reports stay valid JSON.
EXACT_SQNR_DB = 300.0
_DISTANCES = np.concatenate([[0], np.geomspace(1e-9, 2, 4096)])  # bin edges of 1 - cosine


@dataclass(frozen=True)
class OutputAccuracy:
    """Fidelity of one kind of vector over all images. Intervals are at 95 %, None for a single image.

    Attributes:
        cosine_mean: Of INT8 to FP32, over all vectors; a vector of zeros has cosine 0.
        cosine_p01: 1st percentile over all vectors.
        cosine_worst: The smallest.
        worst_image: The image that has it.
        sqnr_db: 10 · log10(Σ fp32² / Σ (fp32 - int8)²) over all values of all images.
        max_abs_error: Over all values of all images.
        cosine_mean_interval: Bootstrap over images.
        sqnr_db_interval: Bootstrap over images.
        norm_drift_mean: Of | ‖int8‖ / ‖fp32‖ - 1 |; what changes scores in an index of dot products. A vector that
            is zero in FP32 has no relative change and counts as 0; its cosine tells.
        norm_drift_mean_interval: Bootstrap over images.
        norm_drift_worst: The largest, with its sign: -0.02 is a vector that lost 2 % of its length.
    """

    cosine_mean: float
    cosine_p01: float
    cosine_worst: float
    worst_image: str
    sqnr_db: float
    max_abs_error: float
    cosine_mean_interval: Interval | None
    sqnr_db_interval: Interval | None
    norm_drift_mean: float
    norm_drift_mean_interval: Interval | None
    norm_drift_worst: float


@dataclass(frozen=True)
class Moments:
    """Sums over the width of each vector, float64 [images, vectors]."""

    fp32_squared: Values
    int8_squared: Values
    product: Values
    error_squared: Values
    max_abs_error: Values

    @classmethod
    def of(cls, fp32: FloatArray, int8: FloatArray) -> "Moments":
        """Of vectors [images, vectors, width]."""
        expected, found = fp32.astype(np.float64), int8.astype(np.float64)
        error = expected - found
        return cls(
            np.vecdot(expected, expected),
            np.vecdot(found, found),
            np.vecdot(expected, found),
            np.vecdot(error, error),
            np.abs(error).max(axis=2),
        )

    def __getitem__(self, vectors: slice) -> "Moments":
        return Moments(*(values[:, vectors] for values in vars(self).values()))

    def cosines(self) -> Values:
        norms = np.sqrt(self.fp32_squared) * np.sqrt(self.int8_squared)
        cosines = np.divide(self.product, norms, out=np.zeros_like(norms), where=norms > 0)
        return np.asarray(np.clip(cosines, -1, 1))

    def norm_drifts(self) -> Values:
        nonzero = self.fp32_squared > 0
        ratios = np.divide(self.int8_squared, self.fp32_squared, out=np.ones_like(self.product), where=nonzero)
        return np.asarray(np.sqrt(ratios) - 1)


class FidelityAccumulator:
    """Accumulates one kind of vector, batch by batch."""

    def __init__(self) -> None:
        self._images: list[Values] = []
        self._histogram: NDArray[np.int64] = np.zeros(len(_DISTANCES) - 1, np.int64)

    def add(self, vectors: Moments, values: Moments) -> None:
        """Adds a batch.

        Args:
            vectors: Whose direction and length count.
            values: Whose signal and noise count; may be more than the vectors.
        """
        cosines, drifts = vectors.cosines(), vectors.norm_drifts()
        largest = np.abs(drifts).argmax(axis=1)[:, None]
        self._histogram += np.histogram(1 - cosines, _DISTANCES)[0]
        columns = (
            cosines.mean(axis=1),
            cosines.min(axis=1),
            np.abs(drifts).mean(axis=1),
            np.take_along_axis(drifts, largest, axis=1)[:, 0],
            values.fp32_squared.sum(axis=1),
            values.error_squared.sum(axis=1),
            values.max_abs_error.max(axis=1),
        )
        self._images.append(np.stack(columns, axis=1))

    def result(self, names: Sequence[str]) -> OutputAccuracy:
        """What the batches add up to, for the images of these names."""
        cosine, cosine_min, drift, drift_worst, signal, noise, max_error = np.concatenate(self._images).T
        one_vector_each = self._histogram.sum() == len(names)
        worst = int(cosine_min.argmin())
        return OutputAccuracy(
            cosine_mean=float(cosine.mean()),
            cosine_p01=float(np.percentile(cosine, 1)) if one_vector_each else self._percentile_01(),
            cosine_worst=float(cosine_min[worst]),
            worst_image=names[worst],
            sqnr_db=float(_sqnr_db(signal, noise)),
            max_abs_error=float(max_error.max()),
            cosine_mean_interval=mean_interval(cosine),
            sqnr_db_interval=bootstrap_interval(_sqnr_db, signal, noise),
            norm_drift_mean=float(drift.mean()),
            norm_drift_mean_interval=mean_interval(drift),
            norm_drift_worst=float(drift_worst[np.abs(drift_worst).argmax()]),
        )

    def _percentile_01(self) -> float:
        below = np.cumsum(self._histogram)
        return float(1 - _DISTANCES[1 + np.searchsorted(below, 0.99 * below[-1])])


def cosine(a: FloatArray, b: FloatArray) -> Values:
    """Cosine of each row of a [n, width] to that of b; 0 where either is all zeros."""
    return Moments.of(a[:, None], b[:, None]).cosines()[:, 0]


def sqnr_db(signal: float, noise: float) -> float:
    """Signal to quantization noise in decibels, within ±`EXACT_SQNR_DB`."""
    return float(_sqnr_db(np.array([signal]), np.array([noise])))


def _sqnr_db(signal: Values, noise: Values, axis: int = -1) -> Values:
    """Of the signal and noise of images along an axis."""
    smallest = np.finfo(float).tiny
    power, error = signal.sum(axis=axis), noise.sum(axis=axis)
    decibels = 10 * (np.log10(np.maximum(power, smallest)) - np.log10(np.maximum(error, smallest)))
    return np.where(error == 0, EXACT_SQNR_DB, np.clip(decibels, -EXACT_SQNR_DB, EXACT_SQNR_DB))
