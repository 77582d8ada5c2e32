"""One table of the three lowerings, and the proof that a lowering changed nothing in float.

Toolchains are imported only when their runtime is asked for.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vitedge.converters.artifact import build_manifest, operations_of
from vitedge.converters.checkpoint import Checkpoint
from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.quantization.integer_plan import IntegerPlan
from vitedge.quantization.plan import QuantizedLinear
from vitedge.quantization.saturation import certify_artifact
from vitedge.quantization.saved_plan import SavedPlan
from vitedge.runtimes.errors import ConversionError
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest, Operations
from vitedge.runtimes.preprocess import PixelValues
from vitedge.runtimes.saturation import Saturation

MAX_EXPORT_ERROR = 1e-3
_FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin"), "tflite": ("model.tflite",)}
)
RUNTIMES = tuple(_FILES)


def lower(
    runtime: str,
    folder: Path,
    *,
    encoder: Encoder,
    linears: Mapping[str, QuantizedLinear],
    checkpoint: Checkpoint,
    plan: SavedPlan,
    batch: int | None,
    calibration: Mapping[str, object],
    portable: bool = False,
) -> Manifest:
    """Writes one artifact for CPUs, or its FP32 twin, model and manifest, into a new folder.

    Args:
        runtime: A key of `RUNTIMES`.
        folder: Folder to make.
        encoder: What to lower: the smoothed encoder of the plan, or the one as loaded for the FP32 model.
        linears: The plan's integer linears for this runtime; empty for the FP32 model.
        checkpoint: For the manifest.
        plan: For the manifest and the target.
        batch: Fixed batch size, or None: any for ONNX and OpenVINO, 1 for TFLite.
        calibration: For the manifest.
        portable: Whether ONNX artifacts have standard operators only.
    """
    folder.mkdir(parents=True)
    module = importlib.import_module(f"vitedge.converters.{runtime}")
    options: dict[str, bool] = {}
    opsets: Mapping[str, int] = {}
    if runtime == "openvino":
        options = {"as_convolutions": plan.target == "avx2" and bool(linears)}
    elif runtime == "onnx":
        options = {"portable": portable}
        opsets = module.opsets(linears, portable=portable)
    module.convert(encoder, linears, folder, batch, **options)
    manifest = build_manifest(
        folder,
        _FILES[runtime],
        runtime=runtime,
        minimum_runtime=module.MINIMUM_RUNTIME,
        checkpoint=checkpoint,
        plan=plan,
        operations=operations_of(
            checkpoint.encoder.shape, tuple(linears), sum(linear.scores is not None for linear in linears.values())
        ),
        saturation=certify_artifact(linears, checkpoint.encoder.shape, runtime),
        batch=batch,
        calibration=calibration,
        opsets=opsets,
    )
    manifest.save(folder)
    return manifest


def lower_for_npu(
    folder: Path,
    *,
    checkpoint: Checkpoint,
    plan: IntegerPlan,
    batch: int | None,
    calibration: Mapping[str, object],
    integer_io: bool,
) -> Manifest:
    """Writes a TFLite artifact of integers throughout, model and manifest, into a new folder.

    Args:
        folder: Folder to make.
        checkpoint: What the plan was made for.
        plan: What to lower.
        batch: Fixed batch size; None is 1.
        calibration: For the manifest.
        integer_io: Whether input and outputs are integers, which the manifest then gives a meaning.
    """
    from vitedge.converters import tflite_npu  # noqa: PLC0415 - a toolchain, needed only for this target

    folder.mkdir(parents=True)
    shape = checkpoint.encoder.shape
    grids = tflite_npu.convert(plan.rounded(checkpoint.encoder), plan.precision, folder, batch, integer_io=integer_io)
    everything = operations_of(shape, tuple(shape.linears))
    manifest = build_manifest(
        folder,
        _FILES["tflite"],
        runtime="tflite",
        minimum_runtime=tflite_npu.MINIMUM_RUNTIME,
        checkpoint=checkpoint,
        plan=plan,
        operations=Operations(
            integer=everything.integer,
            floating={},
            integer_macs=everything.total_macs,
            total_macs=everything.total_macs,
            sixteen_bit=tuple(sorted(plan.precision.sixteen)),
        ),
        saturation=Saturation(True, "integer kernels of accelerators and of TFLite add in 32 bits", 0, 0, {}),
        batch=batch,
        calibration=calibration,
        grids=grids,
    )
    manifest.save(folder)
    return manifest


def export_error(folder: Path, pixel_values: PixelValues, expected: Mapping[str, FloatArray]) -> float:
    """The largest difference between an FP32 artifact and PyTorch, over all outputs.

    Args:
        folder: The FP32 artifact.
        pixel_values: float32 [n, 3, height, width].
        expected: PyTorch's outputs for them.

    Raises:
        ConversionError: An output is missing, not finite, or differs by more than `MAX_EXPORT_ERROR`.
    """
    outputs = load_encoder(folder)(pixel_values)
    if outputs.keys() != expected.keys():
        raise ConversionError(f"{folder.name}: expected outputs {list(expected)}, found {list(outputs)}")
    errors = {name: float(np.abs(outputs[name] - expected[name]).max()) for name in expected}
    name = max(errors, key=lambda key: np.inf if np.isnan(errors[key]) else errors[key])
    if not errors[name] <= MAX_EXPORT_ERROR:
        raise ConversionError(
            f"{folder.name}: the FP32 model differs from PyTorch by {errors[name]:.2e} in {name}, more than"
            f" {MAX_EXPORT_ERROR:.0e}; nothing was quantized. This is a bug in the lowering, please report it"
        )
    return errors[name]
