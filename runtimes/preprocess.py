"""From decoded pixels to the encoder's input, by one contract, with the same code on the host and on the device.

The contract is what the checkpoint's `preprocessor_config.json` says; see `resize.py` for the resize in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.errors import ArtifactError, CheckpointError, InputShapeError
from vitedge.runtimes.fields import integer
from vitedge.runtimes.resize import RESAMPLE_NAMES, Pixels, resize

# What an encoder takes: float32 [n, 3, height, width], normalized, or uint8 [n, height, width, 3], as resized.
PixelValues = NDArray[np.float32 | np.uint8]

_MAX_SIDE = 4096
INPUT_TYPES = ("float32", "uint8")


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
        if self.resample not in RESAMPLE_NAMES:
            raise ArtifactError(
                f"preprocessing: expected resample to be one of {RESAMPLE_NAMES}, found {self.resample!r}"
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
            numbered = isinstance(resample, int) and 0 <= resample < len(RESAMPLE_NAMES)
            return cls(
                height=int(size["height"]),
                width=int(size["width"]),
                resample=RESAMPLE_NAMES[resample] if numbered else str(resample),
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
                height=integer(document["height"]),
                width=integer(document["width"]),
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
        normalized = np.empty((3, self.height, self.width), np.float32)
        tables = _normalization_tables(self.rescale_factor, self.mean, self.std)
        for table, plane, values in zip(tables, resized.transpose(2, 0, 1), normalized, strict=True):
            np.take(table, plane, out=values, mode="clip")  # which, unlike "raise", needs no copy
        return normalized

    def batch(self, images: Sequence[Pixels]) -> PixelValues:
        """Images of any sizes to what an encoder takes, images first."""
        return np.stack([self(image) for image in images])


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
