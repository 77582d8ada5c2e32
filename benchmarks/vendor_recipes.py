"""The vendors' own quantizers, each on the FP32 model that its own users would hand to it.

Start points. All three come from transformers' model itself, by each vendor's own exporter, and not from our lowerings:

- ONNX Runtime: `torch.onnx.export` (torch.export-based, the default since PyTorch 2.9), then `quant_pre_process`, the
  pre-processing that ONNX Runtime's documentation recommends before quantization. Our own FP32 graph would handicap the
  static recipes: on the reference encoder, calibrated and judged on 32 images, `quantize_static` reaches 11.0 dB on it
  and 12.0 dB on this export (U8S8 per-channel: 10.1 and 12.9 dB; 10.7 dB without the pre-processing).
- OpenVINO: `openvino.convert_model` with a static shape.
- LiteRT: `litert_torch.convert`.

Recipes. "defaults" is the quantizer called with nothing but what it requires. Beside them stand what ONNX Runtime
documents for CPUs without VNNI (U8S8, per-channel, reduce_range), and two tunings that its users arrive at after some
reading, so that nobody has to wonder what those would have given: the linears alone, static and dynamic.

Calibration images are decoded when a calibrator asks for them and not kept. A full-integer TFLite model gets float
inputs and outputs (`no_quantize` for them alone): the same numbers, with the two conversions inside the graph.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from vitedge.calibration.images import ImageSet, batches
from vitedge.converters.checkpoint import Checkpoint
from vitedge.runtimes.preprocess import PixelValues, Preprocessing

INPUT = "pixel_values"
_SIGNATURE = "serving_default"
_LINEARS = ("MatMul", "Gemm", "Conv")
# What the tools warn of that is theirs to change: their own use of deprecated functions, checks of sizes in
# transformers' Python (sizes are fixed here), and the memory that keeping every tensor of one image takes.
_WARNINGS = (
    r"Converting a tensor to a Python boolean might cause the trace to be incorrect",
    r"`is_gradient_checkpointing` is deprecated",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"`torch\.jit\.trace(_method)?` is deprecated",
    r"Warning: Enabling `experimental_preserve_all_tensors`",
)


@dataclass(frozen=True)
class CalibrationPixels:
    """Calibration images, one by one, as float32 [1, 3, height, width]; may be iterated any number of times."""

    images: ImageSet
    contract: Preprocessing

    def __iter__(self) -> Iterator[PixelValues]:
        return batches(self.images, self.contract, 1)


@dataclass(frozen=True)
class Recipe:
    """One way to call a vendor's quantizer.

    Attributes:
        name: As its vendor would call it.
        runtime: Which start point it takes and which wrapper runs it.
        quantize: From the folder of the FP32 model and the calibration images to the same files in another folder.
        slow: Runs in reference kernels, seconds an image, so that it is judged on fewer images.
        tuned: Called with options that its users have to find first.
    """

    name: str
    runtime: str
    quantize: Callable[[Path, CalibrationPixels, Path], None]
    slow: bool = False
    tuned: bool = False


class _Traceable(torch.nn.Module):
    """The reference as a module from one tensor to named ones."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self._reference = checkpoint.reference()
        self.model = self._reference.model  # registers its parameters

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        return self._reference.tensors(pixel_values)


def export_fp32(runtime: str, checkpoint: Checkpoint, folder: Path) -> None:
    """Writes the FP32 model that a recipe of `runtime` starts from, batch 1, into an existing folder."""
    shape = checkpoint.encoder.shape
    pixels = torch.zeros(1, shape.channels, shape.image_height, shape.image_width)
    with torch.no_grad():
        _EXPORTERS[runtime](_Traceable(checkpoint).eval(), pixels, tuple(shape.outputs), folder)


@contextmanager
def known_warnings_ignored() -> Iterator[None]:
    """Silences the warnings named above, and no others."""
    with warnings.catch_warnings():
        for message in _WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def _export_onnx(model: torch.nn.Module, pixels: torch.Tensor, outputs: tuple[str, ...], folder: Path) -> None:
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415 - one vendor at a time

    exported = folder / "exported.onnx"
    torch.onnx.export(
        model,
        (pixels,),
        str(exported),
        dynamo=True,
        external_data=False,
        input_names=[INPUT],
        output_names=list(outputs),
        verbose=False,
    )
    quant_pre_process(str(exported), str(folder / "model.onnx"))
    exported.unlink()


def _export_openvino(model: torch.nn.Module, pixels: torch.Tensor, outputs: tuple[str, ...], folder: Path) -> None:
    import openvino  # noqa: PLC0415

    with _no_telemetry():
        converted = openvino.convert_model(model, example_input={INPUT: pixels}, input=[(INPUT, list(pixels.shape))])
    for name, output in zip(outputs, converted.outputs, strict=True):
        output.get_tensor().set_names({name})
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def _export_tflite(model: torch.nn.Module, pixels: torch.Tensor, _: tuple[str, ...], folder: Path) -> None:
    import litert_torch  # noqa: PLC0415

    litert_torch.convert(model, (), {INPUT: pixels}).export(str(folder / "model.tflite"))


_EXPORTERS: Mapping[str, Callable[[torch.nn.Module, torch.Tensor, tuple[str, ...], Path], None]] = MappingProxyType(
    {"onnx": _export_onnx, "openvino": _export_openvino, "tflite": _export_tflite}
)


def _ort_static(linears_only: bool = False, **options: Any) -> Callable[[Path, CalibrationPixels, Path], None]:
    def quantize(start: Path, pixels: CalibrationPixels, folder: Path) -> None:
        from onnxruntime.quantization import CalibrationDataReader, quantize_static  # noqa: PLC0415

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._pixels = iter(pixels)

            def get_next(self) -> dict[str, PixelValues] | None:
                found = next(self._pixels, None)
                return None if found is None else {INPUT: found}

        model = start / "model.onnx"
        typed = _with_types(options) | (_linears_only(model) if linears_only else {})
        quantize_static(str(model), str(folder / "model.onnx"), Reader(), **typed)

    return quantize


def _linears_only(model: Path) -> dict[str, Any]:
    """Linears and the patch embedding, without quantized outputs. MatMulConstBOnly still quantizes attention's MatMuls
    in QDQ models (they are 24 of ViT-S's 96, and cost it 6 dB), so these are excluded by name.
    """
    import onnx  # noqa: PLC0415

    graph = onnx.load(model).graph
    constants = {tensor.name for tensor in graph.initializer}
    attention = [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
    return {
        "op_types_to_quantize": list(_LINEARS),
        "nodes_to_exclude": attention,
        "extra_options": {"OpTypesToExcludeOutputQuantization": list(_LINEARS)},
    }


def _ort_dynamic(**options: Any) -> Callable[[Path, CalibrationPixels, Path], None]:
    def quantize(start: Path, _: CalibrationPixels, folder: Path) -> None:
        from onnxruntime.quantization import quantize_dynamic  # noqa: PLC0415

        quantize_dynamic(str(start / "model.onnx"), str(folder / "model.onnx"), **_with_types(options))

    return quantize


def _with_types(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with `*_type` names as ONNX Runtime's enumeration."""
    from onnxruntime.quantization import QuantType  # noqa: PLC0415

    return {name: QuantType[value] if name.endswith("_type") else value for name, value in options.items()}


def _nncf(start: Path, pixels: CalibrationPixels, folder: Path) -> None:
    import openvino  # noqa: PLC0415

    with _no_telemetry():
        import nncf  # noqa: PLC0415

        model = openvino.Core().read_model(start / "model.xml")
        quantized = nncf.quantize(model, nncf.Dataset(pixels), model_type=nncf.ModelType.TRANSFORMER)
    openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Both tools report their use to Intel from forked processes, unless these variables say that it is a CI job."""
    before = dict(os.environ)
    os.environ.update(CI="true", NNCF_CI="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ai_edge(recipe_name: str) -> Callable[[Path, CalibrationPixels, Path], None]:
    def quantize(start: Path, pixels: CalibrationPixels, folder: Path) -> None:
        from ai_edge_quantizer import qtyping, quantizer, recipe  # noqa: PLC0415

        work = quantizer.Quantizer(str(start / "model.tflite"), getattr(recipe, recipe_name)())
        for boundary in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            work.update_quantization_recipe(".*", boundary, algorithm_key="no_quantize")
        statistics = work.calibrate({_SIGNATURE: _Named(pixels)}) if work.need_calibration else None
        work.quantize(statistics, enable_progress_report=False).export_model(str(folder / "model.tflite"))

    return quantize


@dataclass(frozen=True)
class _Named:
    """Calibration images as named inputs; ai-edge-quantizer counts them first, so an iterator would arrive empty."""

    pixels: CalibrationPixels

    def __iter__(self) -> Iterator[dict[str, PixelValues]]:
        return ({INPUT: found} for found in self.pixels)


RECIPES = (
    Recipe("quantize_static, defaults", "onnx", _ort_static()),
    Recipe(
        "quantize_static, U8S8 per-channel reduce_range",
        "onnx",
        _ort_static(activation_type="QUInt8", per_channel=True, reduce_range=True),
        tuned=True,
    ),
    Recipe(
        "quantize_static, tuned: linears only, U8U8",
        "onnx",
        _ort_static(linears_only=True, activation_type="QUInt8", weight_type="QUInt8", per_channel=True),
        tuned=True,
    ),
    Recipe("quantize_dynamic, defaults", "onnx", _ort_dynamic()),
    Recipe(
        "quantize_dynamic, tuned: MatMul, per-channel reduce_range",
        "onnx",
        _ort_dynamic(op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True),
        tuned=True,
    ),
    Recipe("NNCF quantize, TRANSFORMER", "openvino", _nncf),
    Recipe("static_wi8_ai8", "tflite", _ai_edge("static_wi8_ai8")),
    Recipe("static_wi8_ai16", "tflite", _ai_edge("static_wi8_ai16"), slow=True),
    Recipe("dynamic_wi8_afp32", "tflite", _ai_edge("dynamic_wi8_afp32")),
)
# What a benchmark can afford to run beside an artifact and its twin.
DEFAULT_RECIPES = tuple(recipe for recipe in RECIPES if not recipe.tuned and not recipe.slow)
