"""From decoded pixels to the encoder's input, by one contract, with the same code on the host and on the device.

The contract is what the checkpoint's `preprocessor_config.json` says. Resizing is Pillow's `Image.resize` to the bit
(Resample.c: a filter that widens when it shrinks, two passes, each rounded to 8 bits, with 22-bit fixed point
coefficients), because that is what the encoder was trained behind; OpenCV's resize has no such filter.

How it is fast in numpy: a pass is a banded matrix product. A block of outputs needs only a band of inputs, so each
block is one small dense product in BLAS, in float32. That is exact integer arithmetic as long as sums stay below 2^24,
so coefficients, integers below 2^22, are split into two digits, and what the sum of the lower carries goes to the
higher.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.errors import ArtifactError, CheckpointError, InputShapeError

Pixels = NDArray[np.uint8]
# What an encoder takes: float32 [n, 3, height, width], normalized, or uint8 [n, height, width, 3], as resized.
PixelValues = NDArray[np.float32 | np.uint8]

_PRECISION_BITS = 32 - 8 - 2  # of Pillow's fixed point coefficients
_MAX_SIDE = 4096
_LOW_BITS = 7  # of the lower digit: 255 times the sum of the higher ones, at most 1.4 · 2^15, stays below 2^24
_MAX_TAPS = 440  # so does 255 times the sum of so many lower digits, plus the half that rounds
_STRIP_VALUES = 3 << 20  # that the horizontal pass takes at a time, so that large images need no large copies


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
INPUT_TYPES = ("float32", "uint8")
_RESAMPLE_NAMES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing contract: resize to height × width, multiply by `rescale_factor`, subtract mean, divide by std.

    `resample` is Pillow's name of the filter. Mean and std are per channel, RGB. With `dtype` uint8 the encoder does
    all after the resize by itself, and takes the pixels as they are.
    """

    height: int
    width: int
    resample: str
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not (0 < self.height <= _MAX_SIDE and 0 < self.width <= _MAX_SIDE):
            raise ArtifactError(f"preprocessing: expected a size within {_MAX_SIDE}, found {self.height}×{self.width}")
        if self.resample not in _RESAMPLE_NAMES:
            raise ArtifactError(
                f"preprocessing: expected resample to be one of {_RESAMPLE_NAMES}, found {self.resample!r}"
            )
        if (
            len(self.mean) != 3
            or len(self.std) != 3
            or not np.isfinite([self.rescale_factor, *self.mean, *self.std]).all()
        ):
            raise ArtifactError(
                "preprocessing: expected a finite rescale_factor and 3 finite numbers in mean and in std"
            )
        if 0 in self.std or self.rescale_factor <= 0:
            raise ArtifactError("preprocessing: std must not be 0, and rescale_factor must be positive")
        if self.dtype not in INPUT_TYPES:
            raise ArtifactError(f"preprocessing: expected dtype {' or '.join(INPUT_TYPES)}, found {self.dtype!r}")

    @property
    def value_range(self) -> tuple[float, float]:
        """Smallest and largest value that the encoder can be given."""
        if self.dtype == "uint8":
            return 0.0, 255.0
        ends = [
            (value * 255 * self.rescale_factor - mean) / std
            for mean, std in zip(self.mean, self.std, strict=True)
            for value in (0, 1)
        ]
        return min(ends), max(ends)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Reads a `preprocessor_config.json`; what it leaves out is 224×224, bilinear, mean and std 0.5.

        Raises:
            CheckpointError: It asks for something that this contract does not hold, such as a center crop.
        """
        size = config.get("size", 224)
        if isinstance(size, int):
            size = {"height": size, "width": size}
        crops = config.get("do_center_crop") or config.get("do_pad")
        if crops or not isinstance(size, Mapping) or not {"height", "width"} <= size.keys():
            raise CheckpointError(
                "preprocessor_config.json: expected a plain resize to size {height, width}; found size"
                f" {size}, do_center_crop {config.get('do_center_crop')}, do_pad {config.get('do_pad')}"
            )
        if not config.get("do_resize", True):
            raise CheckpointError(
                "preprocessor_config.json: do_resize false: an encoder of one size needs resized images"
            )
        normalize = config.get("do_normalize", True)
        try:
            resample = config.get("resample", 2)
            numbered = isinstance(resample, int) and 0 <= resample < len(_RESAMPLE_NAMES)
            return cls(
                height=int(size["height"]),
                width=int(size["width"]),
                resample=_RESAMPLE_NAMES[resample] if numbered else str(resample),
                rescale_factor=float(config.get("rescale_factor", 1 / 255)) if config.get("do_rescale", True) else 1.0,
                mean=_three(config.get("image_mean", 0.5)) if normalize else (0.0, 0.0, 0.0),
                std=_three(config.get("image_std", 0.5)) if normalize else (1.0, 1.0, 1.0),
            )
        except (ArtifactError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"preprocessor_config.json: {error}") from error

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Preprocessing":
        """Reads what `to_json` wrote.

        Raises:
            ArtifactError: It is not that.
        """
        try:
            return cls(
                height=_integer(document["height"]),
                width=_integer(document["width"]),
                resample=str(document["resample"]),
                rescale_factor=float(document["rescale_factor"]),
                mean=_three(document["mean"]),
                std=_three(document["std"]),
                dtype=str(document.get("dtype", "float32")),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"preprocessing: not readable ({type(error).__name__}: {error})") from error

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, image: Pixels) -> PixelValues:
        """One image to the encoder's input.

        Args:
            image: uint8 [height, width, 3], RGB, any size.

        Returns:
            float32 [3, height, width], normalized; with `dtype` uint8: uint8 [height, width, 3].

        Raises:
            InputShapeError: Not such an image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputShapeError(f"image: expected uint8 [height, width, 3], found {image.dtype} {list(image.shape)}")
        resized = resize(image, self.height, self.width, self.resample)
        if self.dtype == "uint8":
            return resized
        planes = resized.transpose(2, 0, 1)
        tables = _normalization_tables(self.rescale_factor, self.mean, self.std)
        return np.stack([table[plane] for table, plane in zip(tables, planes, strict=True)])

    def batch(self, images: Sequence[Pixels]) -> PixelValues:
        """Images of any sizes to what an encoder takes, images first."""
        return np.stack([self(image) for image in images])


def resize(image: Pixels, height: int, width: int, resample: str) -> Pixels:
    """Resizes as Pillow's `Image.resize((width, height), resample)` does, to the bit.

    Args:
        image: uint8 [rows, columns, channels].
        height: Rows of the result.
        width: Columns of the result.
        resample: Pillow's name of the filter.
    """
    rows, columns, _ = image.shape
    if resample == "nearest":
        return image[_nearest(rows, height)][:, _nearest(columns, width)]
    # Pillow (13) runs the vertical pass first where that makes the horizontal one cheaper; the order shows in rounding.
    if rows > height and rows - height > 2 * (columns - width):
        return np.ascontiguousarray(_resize_columns(_resize_rows(image, height, resample), width, resample))
    return np.ascontiguousarray(_resize_rows(_resize_columns(image, width, resample), height, resample))


def _resize_columns(image: Pixels, width: int, resample: str) -> Pixels:
    """Resizes [rows, columns, channels] to [rows, width, channels], a strip of rows at a time."""
    rows, columns, channels = image.shape
    if columns == width:
        return image
    flat, result = image.reshape(rows, columns * channels), np.empty((rows, width * channels), np.uint8)
    step = max(1, _STRIP_VALUES // (columns * channels))
    for strip in (slice(start, start + step) for start in range(0, rows, step)):
        values = flat[strip].astype(np.float32)
        for block in _blocks(columns, width, channels, resample):
            result[strip, block.outputs] = block.rounded(values[:, block.inputs])
    return result.reshape(rows, width, channels)


def _resize_rows(image: Pixels, height: int, resample: str) -> Pixels:
    """Resizes [rows, columns, channels] to [height, columns, channels]."""
    rows, columns, channels = image.shape
    if rows == height:
        return image
    flat = image.reshape(rows, columns * channels)
    result = np.empty((columns * channels, height), np.uint8, order="F")
    for block in _blocks(rows, height, 1, resample):  # converted one by one: large images need no large copies
        result[:, block.outputs] = block.rounded(flat[block.inputs].astype(np.float32).T)
    return result.T.reshape(height, columns, channels)


@dataclass(frozen=True)
class _Block:
    """Some outputs of a pass over vectors of pixels, and the band of inputs that they read.

    `digits` are the coefficients [inputs, outputs] in parts, the lowest first, and how many bits each part has.
    """

    inputs: slice
    outputs: slice
    digits: tuple[tuple[NDArray[np.floating[Any]], int], ...]

    def rounded(self, values: NDArray[np.float32]) -> NDArray[np.floating[Any]]:
        """The outputs of the vectors [n, inputs], within 0 and 255; the cast to integers floors, as Pillow's shift."""
        carried: float | NDArray[np.floating[Any]] = 1 << (_PRECISION_BITS - 1)
        for coefficients, bits in self.digits:
            sums = values @ coefficients
            sums += carried
            sums *= 1 / (1 << bits)  # a power of two: exact
            carried = np.floor(sums, out=sums)
        return np.clip(sums, 0, 255, out=sums)  # filters overshoot


@lru_cache(maxsize=64)
def _blocks(size: int, new_size: int, channels: int, resample: str) -> tuple[_Block, ...]:
    """The blocks of a pass from `size` pixels of so many interleaved channels to `new_size`."""
    taps = [_taps(size, new_size, output, resample) for output in range(new_size)]
    # Between blocks, the band is read again; within one, what lies beside the band is multiplied by zero.
    count = max(8 if channels == 1 else 4, round(12 * new_size / size))
    blocks = []
    for start in range(0, new_size, count):
        part = taps[start : start + count]
        first = min(begin for begin, _ in part)
        end = max(begin + len(weights) for begin, weights in part)
        coefficients = np.zeros((end - first, len(part)))
        for output, (begin, weights) in enumerate(part):
            coefficients[begin - first : begin - first + len(weights), output] = weights
        blocks.append(
            _Block(
                slice(first * channels, end * channels),
                slice(start * channels, (start + len(part)) * channels),
                _digits(
                    np.kron(coefficients, np.eye(channels)).astype(np.float64), max(len(weights) for _, weights in part)
                ),
            )
        )
    return tuple(blocks)


def _digits(coefficients: NDArray[np.float64], taps: int) -> tuple[tuple[NDArray[np.floating[Any]], int], ...]:
    """In parts for float32; whole, for float64, if an output reads more inputs than those are exact for."""
    if taps > _MAX_TAPS:
        return ((coefficients, _PRECISION_BITS),)
    high = np.floor(coefficients / (1 << _LOW_BITS))
    low = coefficients - high * (1 << _LOW_BITS)
    return (low.astype(np.float32), _LOW_BITS), (high.astype(np.float32), _PRECISION_BITS - _LOW_BITS)


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
    return begin, np.trunc(normalized * (1 << _PRECISION_BITS) + np.copysign(0.5, normalized))


def _nearest(size: int, new_size: int) -> NDArray[np.intp]:
    """Source index of each output index, as Pillow's ImagingScaleAffine: pixel centers, stepped one by one."""
    step = size / new_size
    centers = np.add.accumulate(np.concatenate(([step * 0.5], np.full(new_size - 1, step))))
    return np.minimum(centers.astype(np.intp), size - 1)


@lru_cache(maxsize=16)
def _normalization_tables(
    rescale_factor: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[NDArray[np.float32], ...]:
    """Normalized value of every 8-bit value, float32 [256] per channel."""
    values = np.arange(256, dtype=np.float32) * np.float32(rescale_factor)
    return tuple((values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True))


def _three(value: Any) -> tuple[float, float, float]:
    if isinstance(value, (int, float)):
        return float(value), float(value), float(value)
    first, second, third = value
    return float(first), float(second), float(third)


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value
