"""What fake quantization predicts of a plan, on a few images: the number that every choice of a plan is made by."""

from typing import NamedTuple

import numpy as np

from vitedge.quantization.encoder import Encoder, FloatArray, Linear, float_linear, forward
from vitedge.quantization.fidelity import cosine, sqnr_db
from vitedge.runtimes.preprocess import PixelValues

_BATCH = 8


class Fidelity(NamedTuple):
    """Of `last_hidden_state` to FP32: SQNR in dB over all values, and the cosine of class tokens."""

    sqnr_db: float
    cosine_mean: float
    cosine_worst: float


def fidelity(expected: FloatArray, found: FloatArray) -> Fidelity:
    """Of two float32 [images, tokens, hidden]."""
    signal = float(np.square(expected, dtype=np.float64).sum())
    noise = float(np.square(found - expected, dtype=np.float64).sum())
    cosines = cosine(expected[:, 0], found[:, 0])
    return Fidelity(sqnr_db(signal, noise), float(cosines.mean()), float(cosines.min()))


class Prediction:
    """Predicts variants of an encoder; the FP32 outputs are computed once.

    Args:
        encoder: FP32, as loaded.
        pixel_values: float32 [images, channels, height, width]; run in batches of 8.
    """

    def __init__(self, encoder: Encoder, pixel_values: PixelValues) -> None:
        self._pixel_values = pixel_values
        self._expected = self._hidden_state(encoder, float_linear(encoder), len(pixel_values))

    def __call__(self, smoothed: Encoder, linear: Linear, images: int | None = None) -> Fidelity:
        """Of the smoothed encoder with its linears computed so, on all images or the first few."""
        count = len(self._pixel_values) if images is None else min(images, len(self._pixel_values))
        return fidelity(self._expected[:count], self._hidden_state(smoothed, linear, count))

    def _hidden_state(self, encoder: Encoder, linear: Linear, count: int) -> FloatArray:
        starts = range(0, count, _BATCH)
        batches = (self._pixel_values[start : min(start + _BATCH, count)] for start in starts)
        return np.concatenate([forward(encoder, batch, linear)["last_hidden_state"] for batch in batches])
