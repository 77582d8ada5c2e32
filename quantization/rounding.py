"""From floats to integers: weight scales, weight rounding with bias correction, and fixed input ranges.

Weights are per-channel symmetric: w = scale · q. The scale is searched: for every output channel, a step below the one
that just covers the largest weight trades a little clipping of it for finer steps everywhere else. The error that
counts is that of the output, so each column's squared error is weighted by the mean square of its input.

Inputs are per-tensor asymmetric uint8 over the whole range seen. Nothing is clipped: on pretrained ViTs the outliers
carry the function, and even the 99.999th percentile costs several dB.
"""

from typing import Protocol

import numpy as np

from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.plan import WEIGHT_RANGES, IntegerWeight, StaticInput

# Fractions of the covering scale that are tried for every output channel.
_SCALE_FRACTIONS = np.linspace(0.7, 1.0, 16, dtype=np.float32)


class Rounding(Protocol):
    """Rounds a float weight [out, in] and its bias [out] to integers of a width, given its input's statistics."""

    def __call__(
        self, weight: FloatArray, bias: FloatArray, statistics: InputStatistics, bits: int
    ) -> IntegerWeight: ...


def round_to_nearest(weight: FloatArray, bias: FloatArray, statistics: InputStatistics, bits: int) -> IntegerWeight:
    """Nearest integers under the best scale per output channel, and a bias that takes back the mean error."""
    scale = best_scale(weight, statistics.mean_square, bits)
    values = _nearest(weight, scale, bits)
    error = values.astype(np.float32) * scale[:, None] - weight
    return IntegerWeight(values, scale, (bias - error @ statistics.mean).astype(np.float32))


def best_scale(weight: FloatArray, mean_square: FloatArray, bits: int) -> FloatArray:
    """The scale per output channel, float32 [out], that minimizes the squared output error of nearest rounding.

    Args:
        weight: float32 [out, in].
        mean_square: float32 [in], mean square of each input channel.
        bits: A key of `WEIGHT_RANGES`.
    """
    covering = np.maximum(np.abs(weight).max(axis=1), np.finfo(np.float32).tiny * 256) / WEIGHT_RANGES[bits][1]
    best, best_error = covering, np.full(len(weight), np.inf, np.float32)
    for fraction in _SCALE_FRACTIONS:
        scale = covering * fraction
        rounded = _nearest(weight, scale, bits).astype(np.float32) * scale[:, None]
        error = np.square(rounded - weight) @ mean_square
        best = np.where(error < best_error, scale, best)
        best_error = np.minimum(error, best_error)
    return np.asarray(best, np.float32)


def _nearest(weight: FloatArray, scale: FloatArray, bits: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    low, high = WEIGHT_RANGES[bits]
    return np.asarray(np.clip(np.rint(weight / scale[:, None]), low, high), np.int8)


def covering_input(minimum: float, maximum: float) -> StaticInput:
    """The uint8 quantization that covers [minimum, maximum] and represents 0 exactly."""
    low, high = min(minimum, 0.0), max(maximum, 0.0)
    scale = float(np.float32(max((high - low) / 255, 1e-12)))
    return StaticInput(scale, int(np.clip(round(-low / scale), 0, 255)))
