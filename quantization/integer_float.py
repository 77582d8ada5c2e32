"""Calibration of an integer program: it runs in float32 and the range of every tensor is kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from vitedge.calibration.observers import InputStatistics, Observer
from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.quantization.integer_fold import (
    FoldedEncoder,
    fold,
    layernorms,
    residual_factors,
    smoothing_multipliers,
)
from vitedge.quantization.integer_grid import Range
from vitedge.quantization.integer_program import Program
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.preprocess import PixelValues

FUNCTIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "RSQRT": torch.rsqrt,
    "GELU": functional.gelu,
    "GELU_TANH": lambda x: functional.gelu(x, approximate="tanh"),
    "RELU": functional.relu,
    "LOGISTIC": torch.sigmoid,
    "TANH": torch.tanh,
}
# LayerNorm's epsilon may be left out if it is at most this share of the smallest variance: 0.04 dB of one token.
_MAX_EPSILON_SHARE = 0.01


class FloatOperations:
    """Runs a program in float32.

    Args:
        folded: Whose linears and constants.
        see: Called with the name and the value of every tensor that has a name.
        see_input: Called with the name of every linear and its input.
    """

    def __init__(
        self,
        folded: FoldedEncoder,
        see: Callable[[str, torch.Tensor], None] = lambda _name, _x: None,
        see_input: Callable[[str, torch.Tensor], object] = lambda _name, _x: None,
    ) -> None:
        self._linears = {n: (torch.from_numpy(w), torch.from_numpy(b)) for n, (w, b) in folded.linears.items()}
        self._constants = {name: torch.from_numpy(value) for name, value in folded.constants.items()}
        self._see, self._see_input = see, see_input

    def _seen(self, name: str, x: torch.Tensor) -> torch.Tensor:
        self._see(name, x)
        return x

    def fully_connected(self, name: str, x: torch.Tensor, linear: str) -> torch.Tensor:
        self._see_input(linear, x)
        return self._seen(name, functional.linear(x, *self._linears[linear]))

    def matmul(self, name: str, x: torch.Tensor, y: torch.Tensor, *, transpose_y: bool = False) -> torch.Tensor:
        return self._seen(name, x @ (y.transpose(-1, -2) if transpose_y else y))

    def multiply(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._seen(name, x * y)

    def add(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self._seen(name, x + y)

    def multiply_constant(self, name: str, x: torch.Tensor, constant: str) -> torch.Tensor:
        return self._seen(name, x * self._constants[constant])

    def add_constant(self, name: str, x: torch.Tensor, constant: str) -> torch.Tensor:
        return self._seen(name, x + self._constants[constant])

    def lookup(self, name: str, x: torch.Tensor, function: str) -> torch.Tensor:
        return self._seen(name, FUNCTIONS[function](x))

    def softmax(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._seen(name, torch.softmax(x, -1))

    def reshape(self, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        return x.reshape(tuple(shape))

    def transpose(self, x: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
        return x.permute(tuple(order))

    def prepend_row(self, x: torch.Tensor) -> torch.Tensor:
        return functional.pad(x, (0, 0, 1, 0))

    def first_row(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


@dataclass(frozen=True)
class Observation:
    """What calibration gives.

    Attributes:
        folded: The encoder in the form that integers are made for: `fold(encoder, factors, multipliers)`.
        factors: Of the residual stream, float32 [hidden].
        multipliers: Of the LayerNorms, float32 [hidden] by name.
        ranges: By tensor; `pixel_values` covers every pixel that preprocessing can produce.
        statistics: Of the input of every linear.
    """

    folded: FoldedEncoder
    factors: FloatArray
    multipliers: Mapping[str, FloatArray]
    ranges: Mapping[str, Range]
    statistics: Mapping[str, InputStatistics]


def to_pixels(folded: FoldedEncoder, pixel_values: PixelValues) -> torch.Tensor:
    """float32 [batch, 3, height, width] to what a program reads: channels last, without a border no patch covers."""
    shape = folded.shape
    height, width = shape.grid[0] * shape.patch_height, shape.grid[1] * shape.patch_width
    return torch.from_numpy(np.ascontiguousarray(pixel_values[:, :, :height, :width].transpose(0, 2, 3, 1)))


@torch.inference_mode()
def observe(
    encoder: Encoder, batches: Callable[[], Iterable[PixelValues]], pixel_range: tuple[float, float]
) -> Observation:
    """Folds the encoder by what its tensors are like, and keeps their ranges.

    Three passes over the images: for the factors of the residual stream, for the smoothing of LayerNorms, for the
    ranges. Memory is that of one batch.

    Args:
        encoder: As loaded.
        batches: Called once for each pass; float32 [batch, 3, height, width], normalized.
        pixel_range: Smallest and largest normalized pixel value that preprocessing can produce.

    Raises:
        PlanError: LayerNorm's epsilon is not negligible, a tensor holds NaN or infinity, or there are no images.
    """
    plain = fold(encoder, np.ones(encoder.shape.hidden, np.float32), {})
    maxima = _absolute_maxima(plain, batches())
    factors = residual_factors(np.stack([m for name, m in maxima.items() if name.rpartition(".")[2] == "residual"]))
    scaled = fold(encoder, factors, {})
    maxima = _absolute_maxima(scaled, batches())
    multipliers = smoothing_multipliers(
        scaled, {name: maxima[f"{name}.normalized"] for name in layernorms(encoder.shape)}
    )
    folded = fold(encoder, factors, multipliers)
    inputs = Observer(lambda _name, x: x)
    # Query, key and value read the same.
    first_readers = {readers[0]: readers for readers in layernorms(encoder.shape).values() if readers}
    others = {name for readers in first_readers.values() for name in readers[1:]}

    def see_input(name: str, x: torch.Tensor) -> None:
        if name not in others:
            inputs(name, x)

    ranges = observed_ranges(folded, batches(), pixel_range, see_input)
    for name in layernorms(encoder.shape):
        if encoder.shape.layer_norm_eps > _MAX_EPSILON_SHARE * ranges[f"{name}.variance"].low:
            raise PlanError(
                f"{name}: expected variances far above LayerNorm's epsilon {encoder.shape.layer_norm_eps:.0e}, found"
                f" {ranges[f'{name}.variance'].low:.1e}; integer LayerNorm leaves it out. Calibrate on natural images"
            )
    statistics = inputs.statistics()
    shared = {name: statistics[first] for first, readers in first_readers.items() for name in readers[1:]}
    return Observation(folded, factors, multipliers, ranges, {**statistics, **shared})


@torch.inference_mode()
def observed_ranges(
    folded: FoldedEncoder,
    batches: Iterable[PixelValues],
    pixel_range: tuple[float, float],
    see_input: Callable[[str, torch.Tensor], object] = lambda _name, _x: None,
) -> dict[str, Range]:
    """The range of every tensor over the images, in one pass; that of `pixel_values` is given.

    Args:
        folded: What to run.
        batches: float32 [batch, 3, height, width], normalized.
        pixel_range: Smallest and largest normalized pixel value that preprocessing can produce.
        see_input: Called with the name of every linear and its input.

    Raises:
        PlanError: There are no images.
    """
    ranges = {"pixel_values": Range(*pixel_range)}

    def see(name: str, x: torch.Tensor) -> None:
        seen = Range(*(float(value) for value in torch.aminmax(x)))
        ranges[name] = ranges[name].union(seen) if name in ranges else seen

    _run(FloatOperations(folded, see, see_input), folded, batches)
    return ranges


def _absolute_maxima(folded: FoldedEncoder, batches: Iterable[PixelValues]) -> Mapping[str, FloatArray]:
    """Per channel [hidden], of the residual stream and of what LayerNorms give."""
    maxima: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        if name.rpartition(".")[2] in ("residual", "normalized"):
            largest = x.abs().amax(dim=(0, 1))
            maxima[name] = torch.maximum(maxima[name], largest) if name in maxima else largest

    _run(FloatOperations(folded, see), folded, batches)
    return {name: value.numpy() for name, value in maxima.items()}


def _run(operations: FloatOperations, folded: FoldedEncoder, batches: Iterable[PixelValues]) -> None:
    empty = True
    for pixel_values in batches:
        Program(operations, folded.shape, len(pixel_values)).run(to_pixels(folded, pixel_values))
        empty = False
    if empty:
        raise PlanError("calibration of the integer program: expected at least one image, found none")
