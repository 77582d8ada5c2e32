"""Lowering to TFLite for NPUs: integers from the first operator to the last, for accelerators that have nothing else.

The program (`quantization/integer_program.py`) becomes operators one to one; `FakeOperations` predicts the result. All
of them are TFLite builtins with int8 and int16 kernels, of at most four dimensions:

    QUANTIZE  FULLY_CONNECTED  BATCH_MATMUL  ADD  MUL  RSQRT  SOFTMAX  GELU (or RELU, LOGISTIC, TANH)
    RESHAPE  TRANSPOSE  PAD  SLICE  DEQUANTIZE

- A tensor is int8, or int16 where its precision says so; QUANTIZE stands where one meets the other. ADD,
  FULLY_CONNECTED and BATCH_MATMUL from int8 into int16 pass the checks of ai-edge-litert 2.3.0 and compute garbage or
  write out of bounds (measured), so every operator has one precision here.
- Weights are int8 with a scale per output channel; their biases int32 beside int8, int64 beside int16 activations.
- Of the builtin set, tried and left out (measured): DIV on int8 gives garbage, and so does SUM in TFLite's own kernels;
  SQUARED_DIFFERENCE and L2_NORMALIZATION have no int16 kernel; the one form of SOFTMAX from int8 to int16 that all
  kernels compute is asymmetric, and no other int16 operator reads that.
- Input and output are float32 (QUANTIZE first, DEQUANTIZE last), or the integers themselves.

16-bit kernels are plain loops on CPUs, tens of times slower than 8-bit ones: this file is for accelerators.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from vitedge.converters.tflite_file import FLOAT, Form, Tensor, TfliteModel
from vitedge.quantization.integer_grid import Grid, IntegerPrecision
from vitedge.quantization.integer_operations import IntegerEncoder, IntegerOperations, Quantity
from vitedge.quantization.integer_program import Program
from vitedge.quantization.plan import IntegerWeight

MODEL_FILE = "model.tflite"
# Of ai-edge-litert. 2.0.2 runs files of int8 only: it has no QUANTIZE from int8 to int16; 2.1.6 and 2.3.0 run all.
MINIMUM_RUNTIME = "2.1.6"
_MAX_BIAS = 2**30


def convert(
    encoder: IntegerEncoder, precision: IntegerPrecision, folder: Path, batch: int | None, *, integer_io: bool = False
) -> Mapping[str, Grid]:
    """Writes `folder/model.tflite`.

    The input is `pixel_values` [batch, height, width, channels], RGB, normalized: float32, or int8.

    Args:
        encoder: Its linears rounded.
        precision: The grid of every tensor.
        folder: Existing folder to write into.
        batch: Fixed batch size; None is 1.
        integer_io: Whether input and outputs are integers.

    Returns:
        Grids of the input and of every output by name, for the manifest; empty unless `integer_io`.

    Raises:
        ConversionError: The file would exceed 2 GB.
    """
    operations = TfliteOperations(encoder, precision)
    shape, model = encoder.folded.shape, operations.model
    size = (batch or 1, shape.image_height, shape.image_width, shape.channels)
    grid = precision.result("pixel_values")
    given = pixels = model.tensor("pixel_values", size, _form(grid) if integer_io else FLOAT)
    if not integer_io:
        pixels = operations.emit("QUANTIZE", "pixel_values.integers", [pixels], size, grid, schema.QuantizeOptionsT())
    quantity = operations.covered(
        operations.input("pixel_values", pixels), shape.grid[0] * shape.patch_height, shape.grid[1] * shape.patch_width
    )
    results = Program(operations, shape, batch or 1).run(quantity)
    outputs = {name: result.value for name, result in results.items()}
    if not integer_io:
        outputs = {
            name: model.operator("DEQUANTIZE", [x], {f"{name}.float": x.shape}, schema.DequantizeOptionsT())[0]
            for name, x in outputs.items()
        }
    model.write(folder / MODEL_FILE, {"pixel_values": given}, outputs)
    return {"pixel_values": grid} | {n: r.grid for n, r in results.items()} if integer_io else {}


class TfliteOperations(IntegerOperations[Tensor]):
    """Adds an operator to a TFLite model for each operation."""

    def __init__(self, encoder: IntegerEncoder, precision: IntegerPrecision) -> None:
        super().__init__(encoder, precision)
        self.model = TfliteModel()

    def emit(
        self, code: str, name: str, inputs: Sequence[Tensor], shape: Sequence[int], grid: Grid, options: Any = None
    ) -> Tensor:
        """Adds an operator with one result, which bears its name."""
        return self.model.operator(code, inputs, {name: shape}, options, _form(grid))[0]

    def covered(self, x: Quantity[Tensor], height: int, width: int) -> Quantity[Tensor]:
        """The pixels [batch, height, width, channels] that patches cover."""
        batch, *size, channels = x.value.shape
        if size == [height, width]:
            return x
        return Quantity(self._corner("covered", x, (batch, height, width, channels)), x.name, x.grid)

    def _constant(self, name: str, value: NDArray[np.int8] | NDArray[np.int16], grid: Grid) -> Tensor:
        return self.model.constant(name, value, np.array([grid.scale], np.float32))

    def _requantize(self, x: Quantity[Tensor], grid: Grid) -> Tensor:
        name = f"{x.name}.int{grid.bits}"
        return self.emit("QUANTIZE", name, [x.value], x.value.shape, grid, schema.QuantizeOptionsT())

    def _fully_connected(
        self, name: str, x: Quantity[Tensor], linear: str, weight: IntegerWeight, grid: Grid
    ) -> Tensor:
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        values, scale = weight.values, weight.scale
        # A row of all but zeros has a step so small that its bias, in such steps, would leave 32 bits. A larger step
        # costs it nothing: the bias is still 2^30 of them.
        least = np.maximum(np.abs(weight.bias) / np.float32(_MAX_BIAS * x.grid.scale), np.finfo(np.float32).tiny)
        if (scale < least).any():
            scale = np.maximum(scale, least)
            values = np.rint(values * (weight.scale / scale)[:, None]).astype(np.int8)
        bias_scale = np.maximum(scale * np.float32(x.grid.scale), np.finfo(np.float32).tiny)
        bias = np.rint(weight.bias.astype(np.float64) / bias_scale)
        inputs = [
            x.value,
            self.model.constant(f"{linear}.weight", values, scale),
            self.model.constant(f"{linear}.bias", bias.astype(np.int32 if grid.bits == 8 else np.int64), bias_scale),
        ]
        return self.emit("FULLY_CONNECTED", name, inputs, (*x.value.shape[:-1], len(bias)), grid, options)

    def _matmul(self, name: str, x: Quantity[Tensor], y: Quantity[Tensor], transpose_y: bool, grid: Grid) -> Tensor:
        options = schema.BatchMatMulOptionsT()
        options.adjY = transpose_y
        shape = (*x.value.shape[:-1], y.value.shape[-2 if transpose_y else -1])
        return self.emit("BATCH_MATMUL", name, [x.value, y.value], shape, grid, options)

    def _elementwise(self, code: str, name: str, x: Quantity[Tensor], y: Quantity[Tensor], grid: Grid) -> Tensor:
        options = schema.MulOptionsT() if code == "MUL" else schema.AddOptionsT()
        if code == "ADD":
            options.potScaleInt16 = False
        return self.emit(code, name, [x.value, y.value], x.value.shape, grid, options)

    def _lookup(self, name: str, x: Quantity[Tensor], function: str, grid: Grid) -> Tensor:
        options = None
        if function.startswith("GELU"):
            options = schema.GeluOptionsT()
            options.approximate = function == "GELU_TANH"
        return self.emit(function.removesuffix("_TANH"), name, [x.value], x.value.shape, grid, options)

    def _softmax(self, name: str, x: Quantity[Tensor], grid: Grid) -> Tensor:
        options = schema.SoftmaxOptionsT()
        options.beta = 1.0
        return self.emit("SOFTMAX", name, [x.value], x.value.shape, grid, options)

    def _reshape(self, x: Quantity[Tensor], shape: Sequence[int]) -> Tensor:
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        return self.emit("RESHAPE", f"{x.name}.reshaped", [x.value, self._integers(shape)], shape, x.grid, options)

    def _transpose(self, x: Quantity[Tensor], order: Sequence[int]) -> Tensor:
        shape = [x.value.shape[axis] for axis in order]
        inputs = [x.value, self._integers(order)]
        return self.emit("TRANSPOSE", f"{x.name}.transposed", inputs, shape, x.grid, schema.TransposeOptionsT())

    def _prepend_row(self, x: Quantity[Tensor]) -> Tensor:
        batch, rows, values = x.value.shape
        inputs = [x.value, self._integers([[0, 0], [1, 0], [0, 0]])]
        return self.emit("PAD", f"{x.name}.padded", inputs, (batch, 1 + rows, values), x.grid, schema.PadOptionsT())

    def _first_row(self, x: Quantity[Tensor]) -> Tensor:
        batch, _, values = x.value.shape
        row = Quantity(self._corner(f"{x.name}.first_row", x, (batch, 1, values)), x.name, x.grid)
        return self._reshape(row, (batch, values))

    def _corner(self, name: str, x: Quantity[Tensor], shape: Sequence[int]) -> Tensor:
        inputs = [x.value, self._integers([0] * len(shape)), self._integers(shape)]
        return self.emit("SLICE", name, inputs, shape, x.grid, schema.SliceOptionsT())

    def _integers(self, values: Sequence[Any]) -> Tensor:
        array = np.array(values, np.int32)
        return self.model.constant(f"int32{array.tolist()}", array)


def _form(grid: Grid) -> Form:
    return Form(np.dtype(np.int8 if grid.bits == 8 else np.int16), grid.scale, grid.zero_point)
