"""What an app's own resize and formats have to do as Python does, in every language."""

from collections.abc import Iterator

import numpy as np

from vitedge.runtimes.manifest import TensorRecord

_FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
_SIZES = (
    ((37, 61), (32, 32)),
    ((7, 5), (32, 31)),
    ((90, 33), (32, 32)),
    ((32, 90), (32, 17)),
    ((1, 1), (3, 2)),
    ((600, 901), (31, 224)),
)
_FORMATS = (("int8", 1.0, 0), ("int8", 0.01865, -14), ("int8", 3e-9, 127), ("int16", 1.0, 0), ("int16", 9.2e-5, 0))


def resize_cases() -> Iterator[tuple[np.ndarray, tuple[int, int], str]]:
    """Pixels, new height and width, filter."""
    generator = np.random.default_rng(0)
    for resample in _FILTERS:
        for size, new in _SIZES:
            yield generator.integers(0, 256, (*size, 3), dtype=np.uint8), new, resample


def format_cases() -> Iterator[tuple[TensorRecord, np.ndarray]]:
    """How a tensor holds values, and float32 values: halves, extremes, and what is clipped among them."""
    generator = np.random.default_rng(0)
    halves = np.arange(-200, 200, dtype=np.float32) / 2
    for dtype, scale, zero_point in _FORMATS:
        step = np.float32(scale)
        extremes = np.array([1e20, -1e20, 1e7, -1e7, 0.0, -0.0], np.float32) * step
        values = np.concatenate([halves * step, generator.normal(0, 9000, 5000).astype(np.float32) * step, extremes])
        yield TensorRecord("x", dtype, (1,), "D", float(step), zero_point), values
