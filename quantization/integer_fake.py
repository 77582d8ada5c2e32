"""Prediction of an integer artifact: its program in PyTorch, every tensor rounded to its grid as the kernels do.

Tensors are held as the real values of their integers, in float32, so predictions differ from kernels where a sum falls
on the edge between two integers. 16-bit lookups interpolate linearly between 513 samples, as the kernels do; near 0,
1/√x bends too much for that, and the prediction has to know.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.integer_float import FUNCTIONS, to_pixels
from vitedge.quantization.integer_grid import Grid, IntegerPrecision
from vitedge.quantization.integer_operations import IntegerEncoder, IntegerOperations, Quantity
from vitedge.quantization.integer_program import Program
from vitedge.quantization.plan import IntegerWeight

# tflite/kernels/internal/common.h, LUTPopulate and LUTLookup: functions with an interpolated 16-bit table.
_INTERPOLATED = ("RSQRT", "GELU", "GELU_TANH")
_SAMPLES, _SPACING = 513, 128


class FakeOperations(IntegerOperations[torch.Tensor]):
    """Runs a program in PyTorch on rounded values."""

    def __init__(self, encoder: IntegerEncoder, precision: IntegerPrecision) -> None:
        super().__init__(encoder, precision)
        self._weights = {
            name: (torch.from_numpy(weight.dequantized()), torch.from_numpy(weight.bias))
            for name, weight in encoder.linears.items()
        }

    def _constant(self, name: str, value: NDArray[np.int8] | NDArray[np.int16], grid: Grid) -> torch.Tensor:
        return torch.from_numpy(value.astype(np.float32) * np.float32(grid.scale))

    def _requantize(self, x: Quantity[torch.Tensor], grid: Grid) -> torch.Tensor:
        return rounded(x.value, grid)

    def _fully_connected(
        self, name: str, x: Quantity[torch.Tensor], linear: str, weight: IntegerWeight, grid: Grid
    ) -> torch.Tensor:
        return rounded(functional.linear(x.value, *self._weights[linear]), grid)

    def _matmul(
        self, name: str, x: Quantity[torch.Tensor], y: Quantity[torch.Tensor], transpose_y: bool, grid: Grid
    ) -> torch.Tensor:
        return rounded(x.value @ (y.value.transpose(-1, -2) if transpose_y else y.value), grid)

    def _elementwise(
        self, code: str, name: str, x: Quantity[torch.Tensor], y: Quantity[torch.Tensor], grid: Grid
    ) -> torch.Tensor:
        return rounded(x.value * y.value if code == "MUL" else x.value + y.value, grid)

    def _lookup(self, name: str, x: Quantity[torch.Tensor], function: str, grid: Grid) -> torch.Tensor:
        if grid.bits == 16 and function in _INTERPOLATED:
            return _interpolated(x, FUNCTIONS[function], grid)
        return rounded(FUNCTIONS[function](x.value), grid)

    def _softmax(self, name: str, x: Quantity[torch.Tensor], grid: Grid) -> torch.Tensor:
        return rounded(torch.softmax(x.value, -1), grid)

    def _reshape(self, x: Quantity[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
        return x.value.reshape(tuple(shape))

    def _transpose(self, x: Quantity[torch.Tensor], order: Sequence[int]) -> torch.Tensor:
        return x.value.permute(tuple(order))

    def _prepend_row(self, x: Quantity[torch.Tensor]) -> torch.Tensor:
        return functional.pad(x.value, (0, 0, 1, 0))

    def _first_row(self, x: Quantity[torch.Tensor]) -> torch.Tensor:
        return x.value[:, 0]


def rounded(x: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The real values of the integers nearest to x."""
    q = torch.round(x / grid.scale).add_(grid.zero_point).clamp_(grid.low, grid.high)
    return q.sub_(grid.zero_point).mul_(grid.scale)


def _interpolated(
    x: Quantity[torch.Tensor], function: Callable[[torch.Tensor], torch.Tensor], grid: Grid
) -> torch.Tensor:
    """A 16-bit lookup: samples every 128 integers, each moved by half the error that the line would have midway."""

    def exact(q: torch.Tensor) -> torch.Tensor:
        y = function(q * x.grid.scale) / grid.scale
        return torch.nan_to_num(y, nan=grid.high, posinf=grid.high).round()  # 1/√x outside its domain

    at = torch.arange(_SAMPLES, dtype=torch.float64) * _SPACING + x.grid.low
    samples, midway = exact(at), exact(at[:-1] + _SPACING / 2)
    error = ((samples[:-1] + samples[1:]) / 2).round() - midway
    samples[:-1] -= (error / 2).round()
    samples.clamp_(grid.low, grid.high)
    offset = torch.arange(_SPACING, dtype=torch.float64)
    lines = samples[:-1, None] + ((samples[1:] - samples[:-1])[:, None] * offset / _SPACING + 0.5).floor()
    table = (lines.flatten() * grid.scale).float()
    return table[torch.round(x.value / x.grid.scale).long() - x.grid.low]


@torch.inference_mode()
def predict(encoder: IntegerEncoder, precision: IntegerPrecision, pixel_values: FloatArray) -> dict[str, FloatArray]:
    """The outputs that the artifact will give.

    Args:
        encoder: Its linears rounded.
        precision: Its grids.
        pixel_values: float32 [batch, 3, height, width], normalized.
    """
    operations = FakeOperations(encoder, precision)
    pixels = rounded(to_pixels(encoder.folded, pixel_values), precision.result("pixel_values"))
    program = Program(operations, encoder.folded.shape, len(pixel_values))
    outputs = program.run(operations.input("pixel_values", pixels))
    return {name: output.value.numpy() for name, output in outputs.items()}
