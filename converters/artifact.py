"""Manifests of artifacts, from what made them."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import vitedge
from vitedge.converters.checkpoint import Checkpoint
from vitedge.quantization.encoder import EncoderShape
from vitedge.quantization.integer_grid import Grid
from vitedge.quantization.saved_plan import SavedPlan
from vitedge.runtimes.file_records import FileRecord
from vitedge.runtimes.manifest import Manifest, Operations, TensorRecord
from vitedge.runtimes.saturation import Saturation

_TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "numpy")


def build_manifest(
    folder: Path,
    files: tuple[str, ...],
    *,
    runtime: str,
    minimum_runtime: str,
    checkpoint: Checkpoint,
    plan: SavedPlan,
    operations: Operations,
    saturation: Saturation,
    batch: int | None,
    calibration: Mapping[str, Any],
    grids: Mapping[str, Grid] = MappingProxyType({}),
    opsets: Mapping[str, int] = MappingProxyType({}),
) -> Manifest:
    """The manifest of freshly converted model files; `grids` are those of inputs and outputs that are integers,
    `opsets` the operator sets of an ONNX model.
    """
    shape = checkpoint.encoder.shape
    layout = "NHWC" if runtime == "tflite" or shape.uint8_input else "NCHW"
    sizes = {"N": batch or "batch", "C": shape.channels, "H": shape.image_height, "W": shape.image_width}
    if runtime == "tflite":
        sizes["N"] = batch or 1
    records = tuple(FileRecord.of(folder / name) for name in files)

    def tensor(name: str, dims: tuple[int | str, ...], layout: str, dtype: str = "float32") -> TensorRecord:
        grid = grids.get(name)
        if grid is None:
            return TensorRecord(name, dtype, dims, layout)
        return TensorRecord(name, f"int{grid.bits}", dims, layout, grid.scale, grid.zero_point)

    return Manifest(
        runtime=runtime,
        precision="int8" if operations.integer else "fp32",
        target=plan.target,
        minimum_runtime=minimum_runtime,
        files=records,
        inputs=(tensor("pixel_values", tuple(sizes[x] for x in layout), layout, checkpoint.preprocessing.dtype),),
        outputs=tuple(
            tensor(name, (sizes["N"], *dims), "NTD" if len(dims) == 2 else "ND") for name, dims in shape.outputs.items()
        ),
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        operations=operations,
        saturation=saturation,
        source=checkpoint.origin,
        calibration=calibration,
        plan_digest=plan.digest(),
        tools={"vitedge": vitedge.__version__, **{name: importlib.metadata.version(name) for name in _TOOLS}},
        opsets=dict(opsets),
    )


def operations_of(shape: EncoderShape, integer: tuple[str, ...], integer_scores: int = 0) -> Operations:
    """Integer modules, float ones with the reason, and multiply-accumulates per image of each kind; in so many layers
    attention scores are integer.
    """
    tensor_shapes = shape.tensor_shapes
    macs = {
        name: rows * tensor_shapes[f"{name}.weight"][0] * tensor_shapes[f"{name}.weight"][1]
        for name, rows in shape.linears.items()
    }
    reasons = {name: "float by the plan" if integer else "FP32 model" for name in macs if name not in integer}
    by_design = {
        **_float_attention(shape.layers, integer_scores),
        "softmax, LayerNorm, GELU, residual adds": "outliers live here, and the CPU kernels are float",
    }
    return Operations(
        integer=integer,
        floating={**reasons, **by_design},
        integer_macs=sum(macs[name] for name in integer) + shape.attention_macs // 2 // shape.layers * integer_scores,
        total_macs=sum(macs.values()) + shape.attention_macs,
    )


def _float_attention(layers: int, integer_scores: int) -> dict[str, str]:
    if integer_scores == 0:
        return {"attention scores and context": "two MatMuls of activations, a few percent of the work, around softmax"}
    reasons = {"attention context": "probabilities times values: 8 bits are too coarse for probabilities"}
    if integer_scores < layers:
        reasons["attention scores"] = f"in {layers - integer_scores} of {layers} layers, where qkv is float by the plan"
    return reasons
