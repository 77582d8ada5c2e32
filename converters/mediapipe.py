"""A TFLite artifact as MediaPipe's ImageEmbedder and ImageClassifier take it: one output [1, n], and metadata.

The output is `logits` of a classifier, as probabilities; else `pooler_output`; else the class token of
`last_hidden_state`. Metadata is a flatbuffer of its own inside the model (schema: metadata_schema.fbs of MediaPipe,
whose field numbers are used below); labels are a zip archive behind it. MediaPipe normalizes all channels alike; where
they differ, two operators in front do it. It resizes without a filter that widens, so that its features of large
photographs are not those of the contract; of images that have the encoder's size they are.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from vitedge.converters.tflite_file import add_buffer, operator_code, read_model, write_model
from vitedge.runtimes.manifest import Manifest
from vitedge.runtimes.preprocess import Preprocessing

LABELS_FILE = "labels.txt"
_METADATA_NAME, _METADATA_IDENTIFIER, _PARSER = b"TFLITE_METADATA", b"M001", "1.0.0"
_FEATURE, _IMAGE, _NORMALIZATION = 1, 2, 1  # of the schema's unions
_RGB, _AXIS_LABELS = 1, 2  # of its enumerations


def write(manifest: Manifest, source: Path, file: Path) -> str:
    """Writes the model for MediaPipe.

    Args:
        manifest: Of the artifact.
        source: Its model.
        file: Where to.

    Returns:
        The output of the artifact that its own is made of.
    """
    model = read_model(source)
    contract = manifest.preprocessing
    if contract.dtype == "float32" and not _is_alike(contract):
        _normalize_channels(model, contract)
    made_of, name = _one_output(model, manifest)
    labels = manifest.label_lines if made_of == "logits" else ""
    entry = schema.MetadataT()
    entry.name = _METADATA_NAME
    entry.buffer = add_buffer(model, _metadata(manifest, name, LABELS_FILE if labels else None))
    model.metadata = [*(model.metadata or []), entry]
    write_model(model, file)
    if labels:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(LABELS_FILE), labels)
    return made_of


def _is_alike(contract: Preprocessing) -> bool:
    return len(set(contract.mean)) == len(set(contract.std)) == 1


def _normalize_channels(model: Any, contract: Preprocessing) -> None:
    """Puts a product and a sum in front of the graph, whose input is then pixels of 0 to 255 as floats."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    given = int(graph.inputs[0])
    shape = graph.tensors[given].shape
    pixels = _tensor(model, "pixels", shape, schema.TensorType.FLOAT32, buffer=0)
    std = np.array(contract.std)
    factor, offset = contract.rescale_factor / std, -np.array(contract.mean) / std
    product = _operator(model, "MUL", [pixels, _constant(model, factor.astype("<f4"))], shape, schema.MulOptionsT())
    _operator(model, "ADD", [product, _constant(model, offset.astype("<f4"))], shape, schema.AddOptionsT(), given)
    graph.operators = [*graph.operators[-2:], *graph.operators[:-2]]
    graph.inputs = np.array([pixels], np.int32)
    signature.inputs[0].tensorIndex = pixels


def _one_output(model: Any, manifest: Manifest) -> tuple[str, str]:
    """Leaves the signature and the graph one output [1, n]; which one it is made of, and its name."""
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    outputs = {entry.name.decode(): entry.tensorIndex for entry in signature.outputs}
    made_of = next(name for name in ("logits", "pooler_output", "last_hidden_state") if name in outputs)
    if made_of == "logits":
        softmax = schema.SoftmaxOptionsT()
        softmax.beta = 1.0
        shape = (1, len(manifest.labels))
        name, index = "probability", _operator(model, "SOFTMAX", [outputs[made_of]], shape, softmax)
    elif made_of == "pooler_output":
        name, index = "features", outputs[made_of]
    else:
        hidden = int(graph.tensors[outputs[made_of]].shape[-1])
        begin, size = (_constant(model, np.array(values, "<i4")) for values in ([0, 0, 0], [1, 1, hidden]))
        taken = [outputs[made_of], begin, size]
        token = _operator(model, "SLICE", taken, (1, 1, hidden), schema.SliceOptionsT())
        reshape = schema.ReshapeOptionsT()
        reshape.newShape = [1, hidden]
        shape_of = _constant(model, np.array([1, hidden], "<i4"))
        name, index = "features", _operator(model, "RESHAPE", [token, shape_of], (1, hidden), reshape)
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    graph.outputs, signature.outputs = np.array([index], np.int32), [entry]
    return made_of, name


def _operator(
    model: Any, code: str, inputs: Sequence[int], shape: Sequence[int], options: Any, result: int | None = None
) -> int:
    """Appends an operator with one float result, a new tensor unless it is given; the index of that."""
    graph, wanted = model.subgraphs[0], operator_code(code)
    codes = [(known.builtinCode, known.version) for known in model.operatorCodes]
    if (wanted.builtinCode, wanted.version) not in codes:
        model.operatorCodes.append(wanted)
        codes.append((wanted.builtinCode, wanted.version))
    operator = schema.OperatorT()
    operator.opcodeIndex = codes.index((wanted.builtinCode, wanted.version))
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
    operator.builtinOptions = options
    if result is None:
        result = _tensor(model, f"mediapipe.{code.lower()}", shape, schema.TensorType.FLOAT32, buffer=0)
    operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array([result], np.int32)
    graph.operators.append(operator)
    return result


def _constant(model: Any, values: NDArray[Any]) -> int:
    """A vector of float32 or int32."""
    buffer = add_buffer(model, values.tobytes())
    kind = schema.TensorType.INT32 if values.dtype == np.int32 else schema.TensorType.FLOAT32
    return _tensor(model, f"mediapipe.constant{buffer}", values.shape, kind, buffer)


def _tensor(model: Any, name: str, shape: Sequence[int], kind: int, buffer: int) -> int:
    tensor = schema.TensorT()
    tensor.name, tensor.shape, tensor.hasRank = name, np.array(shape, np.int32), True
    tensor.type, tensor.buffer = kind, buffer
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


class _Writer:
    """Tables of a flatbuffer by field number; a value is an offset, unless it comes as a byte."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder(1024)

    def text(self, value: str) -> int:
        return int(self.builder.CreateString(value))

    def table(self, offsets: dict[int, int], scalars: dict[int, int] | None = None) -> int:
        self.builder.StartObject(8)  # as many fields as the largest table in use
        for field, offset in offsets.items():
            self.builder.PrependUOffsetTRelativeSlot(field, offset, 0)
        for field, value in (scalars or {}).items():
            self.builder.PrependInt8Slot(field, value, 0)
        return int(self.builder.EndObject())

    def tables(self, *offsets: int) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def floats(self, values: Sequence[float]) -> int:
        return int(self.builder.CreateNumpyVector(np.array(values, np.float32)))


def _metadata(manifest: Manifest, output: str, labels: str | None) -> bytes:
    writer = _Writer()
    image = writer.table({1: writer.table({}, {0: _RGB})}, {0: _IMAGE})
    units = {4: writer.tables(*_normalization(writer, manifest.preprocessing))}
    pixels = writer.table({0: writer.text("image"), 3: image, **units})
    feature = writer.table({1: writer.table({})}, {0: _FEATURE})
    files = {6: writer.tables(writer.table({0: writer.text(labels)}, {2: _AXIS_LABELS}))} if labels else {}
    values = writer.table({0: writer.text(output), 3: feature, **files})
    graph = writer.table({2: writer.tables(pixels), 3: writer.tables(values)})
    name = writer.text(f"ViT encoder, {manifest.precision}, by vitedge")
    root = writer.table({0: name, 3: writer.tables(graph), 7: writer.text(_PARSER)})
    writer.builder.Finish(root, _METADATA_IDENTIFIER)
    return bytes(writer.builder.Output())


def _normalization(writer: _Writer, contract: Preprocessing) -> list[int]:
    """(pixel - mean) / std for pixels of 0 to 255; none where the encoder takes pixels as they are."""
    if contract.dtype == "uint8":
        return []
    alike, factor = _is_alike(contract), contract.rescale_factor
    mean = writer.floats([contract.mean[0] / factor if alike else 0.0])
    std = writer.floats([contract.std[0] / factor if alike else 1.0])
    return [writer.table({1: writer.table({0: mean, 1: std})}, {0: _NORMALIZATION})]
