"""Resizing as Pillow's `Image.resize` does, to the bit, in numpy: what encoders were trained behind.

Pillow's Resample.c: a filter that widens when it shrinks, two passes, each rounded to 8 bits, with 22-bit fixed point
coefficients. OpenCV's resize has no such filter.

How it is fast: a pass is a banded matrix product. A block of outputs needs only a band of inputs, so each block is one
small dense product in BLAS, in float32. That is not exact, but how far it can be off is known (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). The few sums that are nearer than that to where rounding changes are
computed again, in integers.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_ONE = 1 << (32 - 8 - 2)  # in Pillow's fixed point
# That a pass has at a time: they fit into the processor's cache, and memory that is reused is faster than fresh one.
_STRIP_VALUES = 1 << 20


def _bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def _sinc(x: float) -> float:
    return math.sin(math.pi * x) / (math.pi * x) if x else 1.0


def _hamming(x: float) -> float:
    a, b = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow writes 0.54f and 0.46f: single precision
    return _sinc(x) * (a + b * math.cos(math.pi * x)) if abs(x) < 1 else 0.0


# Filter and its support in source pixels at scale 1, as in Pillow's Resample.c.
_FILTERS: Mapping[str, tuple[Callable[[float], float], float]] = MappingProxyType(
    {
        "box": (lambda x: 1.0 if -0.5 < x <= 0.5 else 0.0, 0.5),
        "bilinear": (lambda x: max(0.0, 1.0 - abs(x)), 1.0),
        "hamming": (_hamming, 1.0),
        "bicubic": (_bicubic, 2.0),
        "lanczos": (lambda x: _sinc(x) * _sinc(x / 3) if -3 <= x < 3 else 0.0, 3.0),
    }
)
RESAMPLE_NAMES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number


def resize(image: Pixels, height: int, width: int, resample: str) -> Pixels:
    """Resizes as Pillow's `Image.resize((width, height), resample)` does, to the bit.

    Args:
        image: uint8 [rows, columns, channels].
        height: Rows of the result.
        width: Columns of the result.
        resample: Pillow's name of the filter, one of `RESAMPLE_NAMES`.
    """
    rows, columns, _ = image.shape
    if resample == "nearest":
        return image[_nearest(rows, height)][:, _nearest(columns, width)]
    # Pillow (13) runs the vertical pass first where that makes the horizontal one cheaper; the order shows in rounding.
    if rows > height and rows - height > 2 * (columns - width):
        return np.ascontiguousarray(_resize_columns(_resize_rows(image, height, resample), width, resample))
    return np.ascontiguousarray(_resize_rows(_resize_columns(image, width, resample), height, resample))


def _resize_columns(image: Pixels, width: int, resample: str) -> Pixels:
    """Resizes [rows, columns, channels] to [rows, width, channels]."""
    rows, columns, channels = image.shape
    if columns == width:
        return image
    result = np.empty((rows, width * channels), np.uint8)
    _pass(columns, width, channels, resample).run(image.reshape(rows, columns * channels), result)
    return result.reshape(rows, width, channels)


def _resize_rows(image: Pixels, height: int, resample: str) -> Pixels:
    """Resizes [rows, columns, channels] to [height, columns, channels]."""
    rows, columns, channels = image.shape
    if rows == height:
        return image
    result = np.empty((height, columns * channels), np.uint8)
    _pass(rows, height, 1, resample).run(image.reshape(rows, columns * channels).T, result.T)
    return result.reshape(height, columns, channels)


@dataclass(frozen=True)
class _Block:
    """Some outputs, the band of inputs that they read, and the coefficients [inputs, outputs], 1 for Pillow's 2²²."""

    inputs: slice
    outputs: slice
    coefficients: NDArray[np.float32]


@dataclass(frozen=True)
class _Pass:
    """From vectors of so many inputs to vectors of so many outputs.

    Attributes:
        blocks: All outputs, in parts.
        inputs: int [outputs, taps], which inputs an output reads.
        coefficients: float64 [outputs, taps], Pillow's integers.
        certain: float32 [outputs]; a float32 sum that is no further than that from an integer is rounded to it.
    """

    blocks: tuple[_Block, ...]
    inputs: NDArray[np.intp]
    coefficients: NDArray[np.float64]
    certain: NDArray[np.float32]

    def run(self, vectors: Pixels, result: Pixels) -> None:
        """Computes the outputs [n, outputs] of the inputs [n, inputs]; both as they are in memory, or transposed."""
        order: Literal["C", "F"] = "C" if result.flags.c_contiguous else "F"
        step = max(1, _STRIP_VALUES // max(vectors.shape[1], result.shape[1]))
        all_values = np.empty((min(step, len(vectors)), vectors.shape[1]), np.float32, order)
        all_sums = np.empty((len(all_values), result.shape[1]), np.float32, order)
        all_rounded = np.empty_like(all_sums)
        for start in range(0, len(vectors), step):
            strip, found = vectors[start : start + step], result[start : start + step]
            values, sums, rounded = (array[: len(strip)] for array in (all_values, all_sums, all_rounded))
            np.copyto(values, strip)
            for block in self.blocks:
                np.matmul(values[:, block.inputs], block.coefficients, out=sums[:, block.outputs])
            np.floor(np.add(sums, 0.5, out=rounded), out=rounded)
            np.clip(rounded, 0, 255, out=found, casting="unsafe")  # filters overshoot
            distances = np.abs(np.subtract(sums, rounded, out=sums), out=sums)
            doubtful = np.flatnonzero((distances > self.certain).ravel(order))
            for part in np.array_split(doubtful, 1 + doubtful.size * self.inputs.shape[1] // _STRIP_VALUES):
                at, outputs = np.unravel_index(part, sums.shape, order)
                found[at, outputs] = self._exactly(strip, at, outputs)

    def _exactly(self, vectors: Pixels, at: NDArray[np.intp], outputs: NDArray[np.intp]) -> NDArray[np.float64]:
        """Some outputs of some vectors in integers, which float64 holds exactly."""
        values = vectors[at[:, None], self.inputs[outputs]]
        sums: NDArray[np.float64] = np.einsum("ij,ij->i", values, self.coefficients[outputs])
        return np.clip(np.floor((sums + _ONE / 2) / _ONE), 0, 255)


@lru_cache(maxsize=64)
def _pass(size: int, new_size: int, channels: int, resample: str) -> _Pass:
    """The pass from `size` pixels of so many interleaved channels to `new_size`."""
    taps = [_taps(size, new_size, output, resample) for output in range(new_size)]
    # Between blocks, the band is read again; within one, what lies beside the band is multiplied by zero.
    count = max(8 if channels == 1 else 4, round(12 * new_size / size))
    blocks = tuple(_block(taps, start, count, channels) for start in range(0, new_size, count))
    most = max(len(weights) for _, weights in taps)
    inputs, coefficients = np.zeros((new_size, most), np.intp), np.zeros((new_size, most))
    for output, (begin, weights) in enumerate(taps):  # what is shorter is multiplied by zero
        inputs[output, : len(weights)] = np.arange(begin, begin + len(weights))
        coefficients[output, : len(weights)] = weights
    interleaved = inputs[:, None] * channels + np.arange(channels)[:, None]
    certain = np.array([0.5 - _error(weights) for _, weights in taps], np.float32)
    return _Pass(
        blocks,
        interleaved.reshape(new_size * channels, most),
        coefficients.repeat(channels, axis=0),
        certain.repeat(channels),
    )


def _block(taps: Sequence[tuple[int, NDArray[np.float64]]], start: int, count: int, channels: int) -> _Block:
    """So many outputs of a pass, or what is left of them."""
    part = taps[start : start + count]
    first = min(begin for begin, _ in part)
    end = max(begin + len(weights) for begin, weights in part)
    coefficients = np.zeros((end - first, len(part)))
    for output, (begin, weights) in enumerate(part):
        coefficients[begin - first : begin - first + len(weights), output] = weights / _ONE
    return _Block(
        slice(first * channels, end * channels),
        slice(start * channels, (start + len(part)) * channels),
        np.kron(coefficients, np.eye(channels)).astype(np.float32),
    )


def _error(weights: NDArray[np.float64]) -> float:
    """How far the float32 sum of 8-bit values with Pillow's integer weights may be off, in 8-bit levels.

    Weights are exact in float32; n products, their sum and the half that rounds are each off by 2⁻²⁴ of what they hold.
    """
    largest = 255 * float(np.abs(weights).sum())
    divisors = int(np.bitwise_or.reduce(np.abs(weights).astype(np.int64))) | _ONE // 2  # which is added to round
    step = divisors & -divisors  # the largest power of two that divides all of them
    if largest + _ONE / 2 < step << 24:
        return 0.0  # every partial sum is a multiple of it, and float32 has 24 bits
    return (len(weights) + 2) * 2.0**-24 * largest / _ONE


def _taps(rows: int, height: int, row: int, resample: str) -> tuple[int, NDArray[np.float64]]:
    """First input row and fixed point weights of one output row, as Pillow's precompute_coeffs."""
    function, support = _FILTERS[resample]
    scale = rows / height
    filter_scale = max(scale, 1.0)
    support *= filter_scale
    center = (row + 0.5) * scale
    begin = max(int(center - support + 0.5), 0)
    end = min(int(center + support + 0.5), rows)
    weights = [function((x - center + 0.5) * (1.0 / filter_scale)) for x in range(begin, end)]
    total = 0.0
    for weight in weights:  # in Pillow's order; numpy's pairwise sum rounds differently
        total += weight
    normalized = np.array(weights) / total if total else np.array(weights)
    return begin, np.trunc(normalized * _ONE + np.copysign(0.5, normalized))


def _nearest(size: int, new_size: int) -> NDArray[np.intp]:
    """Source index of each output index, as Pillow's ImagingScaleAffine: pixel centers, stepped one by one."""
    step = size / new_size
    centers = np.add.accumulate(np.concatenate(([step * 0.5], np.full(new_size - 1, step))))
    return np.minimum(centers.astype(np.intp), size - 1)
