"""What fake quantization predicts of a plan, on a few images: the number that every choice of a plan is made by."""

from typing import NamedTuple

import numpy as np

from vitedge.calibration.images import spread
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


def hidden_states(encoder: Encoder, linear: Linear, pixel_values: PixelValues) -> FloatArray:
    """`last_hidden_state` [images, tokens, hidden], with the linears computed so; in batches of 8."""
    batches = (pixel_values[start : start + _BATCH] for start in range(0, len(pixel_values), _BATCH))
    return np.concatenate([forward(encoder, batch, linear)["last_hidden_state"] for batch in batches])


class Prediction:
    """Predicts variants of an encoder; the FP32 outputs are computed once.

    Args:
        encoder: FP32, as loaded.
        pixel_values: float32 [images, channels, height, width].
    """

    def __init__(self, encoder: Encoder, pixel_values: PixelValues) -> None:
        self._pixel_values = pixel_values
        self._expected = hidden_states(encoder, float_linear(encoder), pixel_values)

    def __call__(self, smoothed: Encoder, linear: Linear, images: int | None = None) -> Fidelity:
        """Of the smoothed encoder with its linears computed so, on all images or so many, evenly over them."""
        chosen = list(spread(range(len(self._pixel_values)), images))
        return fidelity(self._expected[chosen], hidden_states(smoothed, linear, self._pixel_values[chosen]))

    def typical_sqnr_db(self, smoothed: Encoder, linear: Linear) -> float:
        """The mean of the images' own SQNR: over all values of few images, it is two or three of them that decide."""
        found = hidden_states(smoothed, linear, self._pixel_values)
        by_image = [fidelity(fp32[None], one[None]).sqnr_db for fp32, one in zip(self._expected, found, strict=True)]
        return float(np.mean(by_image))
