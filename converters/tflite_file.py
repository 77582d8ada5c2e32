"""The TFLite file itself: tensors, buffers, operators, signature and metadata, written as one flatbuffer.

The schema's Python object API does the packing, with two additions it needs for models of this size:

- The schema demands 16-byte alignment of every buffer (`force_align: 16`), so that kernels can load it with SIMD where
  it lies in the mapped file. The generated Python code aligns to the element size only; `_AlignedBuffer` does it right.
- Arrays are copied once, straight into a builder of the final size, and written to disk from there: extra memory is the
  size of the file, whereas the builder's own doubling, `tobytes` and `Output()` would take four times that.

A constant is stored when it is added; equal constants are not merged, except those that bear the same name.

Operators must be listed in `tflite_versions`.
"""

import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from vitedge.converters.tflite_versions import INT8_WEIGHTS, VERSIONS, on_integers
from vitedge.runtimes.errors import ConversionError

FILE_IDENTIFIER, SCHEMA_VERSION = b"TFL3", 3
ALIGNMENT = 16
# Offsets in a flatbuffer are signed 32-bit numbers; the file must end before they do.
MAXIMUM_BYTES = 2**31 - 1

# Versions 1 of the shape-moving operators end at four dimensions, and so does broadcasting in SUB.
_MAXIMUM_RANK = 4
_TENSOR_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.int64): schema.TensorType.INT64,
    np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.uint8): schema.TensorType.UINT8,
}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the graph: its index in the file, its shape and its type."""

    index: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Form:
    """The type of a tensor and, for integers, their meaning: real = scale · (q - zero_point)."""

    dtype: np.dtype[Any]
    scale: float | None = None
    zero_point: int = 0


FLOAT = Form(np.dtype(np.float32))


class TfliteModel:
    """A TFLite model of one subgraph under construction: tensors and operators in order of execution."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[str, int] = {}
        # The first buffer is empty by convention: tensors without data refer to it.
        self._buffers = [_AlignedBuffer(None)]
        self._constants: dict[str, Tensor] = {}

    def tensor(self, name: str, shape: Sequence[int], form: Form = FLOAT) -> Tensor:
        """A tensor without data: an input or the result of an operator."""
        tensor = self._add(name, tuple(shape), form.dtype, buffer=0)
        if form.scale is not None:
            self._quantize(tensor, np.array([form.scale], np.float32), form.zero_point)
        return tensor

    def constant(self, name: str, value: NDArray[np.generic], scale: NDArray[np.float32] | None = None) -> Tensor:
        """A constant; a second one of the same name is the first one.

        Args:
            name: Its name.
            value: float32, int64, int32, int16 or int8.
            scale: float32 [value.shape[0]]: the value times its scale, channel by channel, is the real value; or [1],
                the scale of all.
        """
        if name not in self._constants:
            self._buffers.append(_AlignedBuffer(value))
            tensor = self._add(name, value.shape, value.dtype, buffer=len(self._buffers) - 1)
            self._constants[name] = tensor
            if scale is not None:
                self._quantize(tensor, scale, 0)
        return self._constants[name]

    def operator(
        self,
        code: str,
        inputs: Sequence[Tensor],
        outputs: Mapping[str, Sequence[int]],
        options: Any = None,
        form: Form = FLOAT,
    ) -> list[Tensor]:
        """Adds an operator.

        Args:
            code: Its name, with `INT8_WEIGHTS` if it has such on float32.
            inputs: What it reads.
            outputs: Name and shape of each result.
            options: The schema's options object, e.g. `schema.GeluOptionsT()`, or None if it has none.
            form: Of its results.
        """
        results = [self.tensor(name, shape, form) for name, shape in outputs.items()]
        code += on_integers(form.dtype if code == "QUANTIZE" else inputs[0].dtype)
        assert all(len(t.shape) <= _MAXIMUM_RANK for t in (*inputs, *results)), f"{code} of more than four dimensions"
        assert code in VERSIONS, f"look up the version of {code}"
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        operator.inputs = np.array([t.index for t in inputs], np.int32)
        operator.outputs = np.array([t.index for t in results], np.int32)
        if options is not None:
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
            operator.builtinOptions = options
        self._operators.append(operator)
        return results

    @property
    def minimum_runtime(self) -> str:
        """The first TensorFlow release that knows every operator in use."""
        return max((VERSIONS[code][1] for code in self._codes), key=lambda v: tuple(map(int, v.split("."))))

    def write(self, file: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Writes the model with one signature, `serving_default`.

        Args:
            file: Where to.
            inputs: Input tensors by the name that the signature gives them.
            outputs: Output tensors by the name that the signature gives them.

        Raises:
            ConversionError: The model does not fit into a flatbuffer.
        """
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = "main", self._tensors, self._operators
        graph.inputs = np.array([t.index for t in inputs.values()], np.int32)
        graph.outputs = np.array([t.index for t in outputs.values()], np.int32)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = "serving_default", 0
        signature.inputs = [_tensor_map(name, tensor) for name, tensor in inputs.items()]
        signature.outputs = [_tensor_map(name, tensor) for name, tensor in outputs.items()]
        # As the TFLite converter does: the release as text, padded with zeros to 16 bytes.
        minimum_runtime = np.frombuffer(self.minimum_runtime.encode().ljust(16, b"\0"), np.uint8)
        metadata = schema.MetadataT()
        metadata.name, metadata.buffer = b"min_runtime_version", len(self._buffers)
        model = schema.ModelT()
        model.version, model.description = SCHEMA_VERSION, "vitedge"
        model.operatorCodes = [operator_code(code) for code in self._codes]
        model.subgraphs, model.signatureDefs, model.metadata = [graph], [signature], [metadata]
        model.buffers = [*self._buffers, _AlignedBuffer(minimum_runtime)]
        write_model(model, file)

    def _add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], buffer: int) -> Tensor:
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.hasRank = name, np.array(shape, np.int32), True
        tensor.type, tensor.buffer = _TENSOR_TYPES[dtype], buffer
        self._tensors.append(tensor)
        return Tensor(len(self._tensors) - 1, shape, dtype)

    def _quantize(self, tensor: Tensor, scale: NDArray[np.float32], zero_point: int) -> None:
        parameters = schema.QuantizationParametersT()
        parameters.scale, parameters.zeroPoint = scale, np.full(len(scale), zero_point, np.int64)
        parameters.quantizedDimension = 0
        self._tensors[tensor.index].quantization = parameters


class _AlignedBuffer:
    """Stands in for the schema's `BufferT`, whose `Pack` leaves the data unaligned."""

    def __init__(self, data: NDArray[np.generic] | None) -> None:
        self.data = data

    @property
    def size_bytes(self) -> int:
        return 0 if self.data is None else self.data.nbytes

    def Pack(self, builder: Any) -> int:  # noqa: N802 - the schema's ModelT calls it so
        if self.data is not None:
            data = np.ascontiguousarray(self.data).reshape(-1).view(np.uint8)
            builder.StartVector(1, len(data), ALIGNMENT)
            builder.head -= len(data)
            np.frombuffer(builder.Bytes, np.uint8)[builder.head : builder.head + len(data)] = data
            vector = builder.EndVector()
        schema.BufferStart(builder)
        if self.data is not None:
            schema.BufferAddData(builder, vector)
        return int(schema.BufferEnd(builder))


def _tensor_map(name: str, tensor: Tensor) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, tensor.index
    return entry


def operator_code(code: str) -> Any:
    """The schema's entry for an operator of `VERSIONS`."""
    entry = schema.OperatorCodeT()
    entry.builtinCode = getattr(schema.BuiltinOperator, code.partition(" ")[0])
    # The byte that readers older than the 32-bit field look at; 127 sends newer ones to that field.
    entry.deprecatedBuiltinCode = min(entry.builtinCode, 127)
    entry.version = VERSIONS[code][0]
    return entry


def read_model(file: Path) -> Any:
    """A file as the schema's `ModelT`, to be changed and written again with `write_model`."""
    model = schema.ModelT.InitFromPackedBuf(file.read_bytes(), 0)
    model.buffers = [_AlignedBuffer(buffer.data) for buffer in model.buffers]
    return model


def add_buffer(model: Any, data: bytes) -> int:
    """Appends a buffer to what `read_model` gave; its index."""
    model.buffers.append(_AlignedBuffer(np.frombuffer(data, np.uint8)))
    return len(model.buffers) - 1


def write_model(model: Any, file: Path) -> None:
    """Writes the schema's `ModelT`, whose buffers are this module's.

    Raises:
        ConversionError: It does not fit into a flatbuffer.
    """
    data_bytes = sum(buffer.size_bytes + 4 * ALIGNMENT for buffer in model.buffers)
    # Generous for names, shapes and scales; a builder that is too small would double.
    graph_bytes = 2048 + 512 * sum(len(graph.tensors) + len(graph.operators) for graph in model.subgraphs)
    graph_bytes += sum(
        12 * len(t.quantization.scale) for g in model.subgraphs for t in g.tensors if t.quantization is not None
    )
    if data_bytes + graph_bytes > MAXIMUM_BYTES:
        raise ConversionError(
            f"{file}: the constants take {data_bytes:,} bytes, but a TFLite file ends at {MAXIMUM_BYTES:,};"
            " quantize more linears, or use another runtime"
        )
    builder = flatbuffers.Builder(data_bytes + graph_bytes)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    with file.open("wb") as stream:
        stream.write(memoryview(builder.Bytes)[builder.Head() :])


def count_operators(file: Path) -> Counter[str]:
    """Reads a TFLite file back and counts the operators of its first subgraph by name.

    Operators with int8 weights count under their name and `INT8_WEIGHTS`: `FULLY_CONNECTED int8`.
    """
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    counts: Counter[str] = Counter()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        model = schema.Model.GetRootAs(content, 0)
        graph = model.Subgraphs(0)
        for i in range(graph.OperatorsLength()):
            operator = graph.Operators(i)
            code = model.OperatorCodes(operator.OpcodeIndex())
            name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
            types = [graph.Tensors(operator.Inputs(j)).Type() for j in range(operator.InputsLength())]
            counts[name + INT8_WEIGHTS * (schema.TensorType.INT8 in types[1:2])] += 1
    return counts
