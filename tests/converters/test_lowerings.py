"""The ONNX and OpenVINO lowerings: structure of the files, and agreement with PyTorch in float and in integers.

What only dynamic inputs have is in `test_dynamic_inputs.py`; TFLite has `test_tflite.py`; what holds for all
three as artifacts is in `test_artifact.py` and `tests/runtimes`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from tests.tiny import SHAPE, random_encoder, random_pixels, sqnr_db, variants
from vitedge.converters import onnx as onnx_lowering
from vitedge.converters import openvino as openvino_lowering
from vitedge.quantization.encoder import Encoder, EncoderShape, FloatArray, Linear, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import QuantizedLinear
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS, Recipe
from vitedge.quantization.scores import ScoreGrids

VARIANTS = variants()
LINEARS = 2 * 4 + 1 + 1  # of SHAPE: four a layer, patches, pooler
OPENVINO_PRODUCTS = LINEARS + 2 * 2  # qkv is three


STATIC = TARGETS["avx2"]["openvino"]
ALL_DYNAMIC = Recipe("int8-pair-safe", {"*": "dynamic"})  # exact on every CPU that runs these tests
DYNAMIC = ALL_DYNAMIC.with_precisions({"patch_embedding": "static"})
ROWS_FOR_FC2 = TARGETS["avx2"]["onnx"]
# The same arithmetic but for the order of float sums, which gives 127 dB and more. Where it turns one integer, that is
# amplified: half of the images may have 43 to 71 dB, so that agreement is that of the images in which none turned.
IMAGES, AGREEMENT_DB = 9, 110


def quantized(shape: EncoderShape, recipe: Recipe = STATIC) -> tuple[Encoder, dict[str, QuantizedLinear]]:
    encoder, pixels = random_encoder(shape), random_pixels(shape, count=16)
    calibration = Calibration(observe(encoder, [pixels]), lambda: [pixels], lambda: [pixels], (-1, 1), "i")
    plan, smoothed = make_plan(
        encoder, calibration, recipes={"onnx": recipe}, target="avx2", checkpoint_digest="c", strengths=(0.7,)
    )
    return smoothed, dict(plan.linears("onnx"))


def run_onnx(folder: Path, pixels: FloatArray) -> dict[str, FloatArray]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"pixel_values": pixels}), strict=True))


def compiled(folder: Path) -> Any:
    return openvino.Core().compile_model(folder / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run_openvino(folder: Path, pixels: FloatArray) -> dict[str, FloatArray]:
    outputs = compiled(folder)({"pixel_values": pixels})
    return {output.get_any_name(): np.array(value) for output, value in outputs.items()}


def hidden_states(encoder: Encoder, pixels: FloatArray, linear: Linear) -> FloatArray:
    return forward(encoder, pixels, linear)["last_hidden_state"]


def agreement_db(expected: FloatArray, found: FloatArray) -> float:
    """SQNR of the second best image: one chance is no agreement."""
    return sorted(sqnr_db(one, other) for one, other in zip(expected, found, strict=True))[-2]


def assert_as_predicted(
    encoder: Encoder,
    linears: Mapping[str, QuantizedLinear],
    pixels: FloatArray,
    folder: Path,
    runs: Sequence[Callable[[Path, FloatArray], dict[str, FloatArray]]],
) -> None:
    predicted = hidden_states(encoder, pixels, fake_quantized_linear(encoder, linears))
    exact = hidden_states(encoder, pixels, float_linear(encoder))
    for run in runs:
        found = run(folder, pixels)["last_hidden_state"]
        assert agreement_db(predicted, found) > AGREEMENT_DB
        assert abs(sqnr_db(exact, found) - sqnr_db(exact, predicted)) < 0.5
        assert sqnr_db(exact, found) > 30  # measured: 32.7 at worst
        alone = run(folder, pixels[:1])["last_hidden_state"]
        assert sqnr_db(predicted[:1], alone) > 40  # an integer turned at most


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_float_models_compute_what_pytorch_computes(shape: EncoderShape, batch: int | None, tmp_path: Path) -> None:
    encoder, pixels = random_encoder(shape), random_pixels(shape, batch or 2)
    expected = forward(encoder, pixels, float_linear(encoder))
    onnx_lowering.convert(encoder, {}, tmp_path, batch)
    openvino_lowering.convert(encoder, {}, tmp_path, batch)
    for outputs in (run_onnx(tmp_path, pixels), run_openvino(tmp_path, pixels)):
        assert list(outputs) == list(shape.outputs)
        for name, values in expected.items():
            np.testing.assert_allclose(outputs[name], values, atol=5e-5, rtol=0)


@pytest.mark.parametrize("recipe", [STATIC, DYNAMIC, ROWS_FOR_FC2], ids=["static", "dynamic", "fc2 dynamic"])
@pytest.mark.parametrize("as_convolutions", [True, False])
@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_integer_models_compute_what_fake_quantization_predicts(
    shape: EncoderShape, as_convolutions: bool, recipe: Recipe, tmp_path: Path
) -> None:
    """The same integers to a few that fall on the other side of a half: sums are made in another order."""
    encoder, linears = quantized(shape, recipe)
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    openvino_lowering.convert(encoder, linears, tmp_path, None, as_convolutions=as_convolutions)
    assert_as_predicted(encoder, linears, random_pixels(shape, IMAGES, seed=5), tmp_path, (run_onnx, run_openvino))


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_openvino_computes_integer_scores_as_predicted(shape: EncoderShape, tmp_path: Path) -> None:
    encoder, linears = quantized(shape, replace(TARGETS["vnni"]["openvino"], weights="int8-pair-safe"))
    assert sum(linear.scores is not None for linear in linears.values()) == shape.layers
    openvino_lowering.convert(encoder, linears, tmp_path, None)
    assert_as_predicted(encoder, linears, random_pixels(shape, IMAGES, seed=5), tmp_path, (run_openvino,))
    # The twin: with other steps it is another model.
    name = "layers.0.attention.qkv"
    coarse = {name: replace(linears[name], scores=ScoreGrids(linears[name].scores.query * 9, linears[name].scores.key))}  # type: ignore[union-attr]
    predicted = hidden_states(encoder, pixels := random_pixels(shape, 4), fake_quantized_linear(encoder, linears))
    openvino_lowering.convert(encoder, linears | coarse, tmp_path, None)
    assert agreement_db(predicted, run_openvino(tmp_path, pixels)["last_hidden_state"]) < 60


@pytest.mark.parametrize("recipe", [STATIC, ALL_DYNAMIC, ROWS_FOR_FC2], ids=["static", "dynamic", "fc2 dynamic"])
@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_portable_onnx_computes_the_same_in_standard_operators(
    shape: EncoderShape, recipe: Recipe, tmp_path: Path
) -> None:
    encoder, linears = quantized(shape, recipe)
    onnx_lowering.convert(encoder, linears, tmp_path, None, portable=True)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {node.domain for node in model.graph.node} == {""}
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulInteger"] == counts["QuantizeLinear"] == len(linears)
    # ONNX Runtime warns of every other one whenever the file is loaded.
    assert {entry.name for entry in model.graph.initializer} <= {
        name for node in model.graph.node for name in node.input
    }
    assert_as_predicted(encoder, linears, random_pixels(shape, IMAGES, seed=5), tmp_path, (run_onnx,))


def test_wrong_integers_show(tmp_path: Path) -> None:
    """The twin of the test above: one input range too narrow, and the model is no longer what was predicted."""
    encoder, linears = quantized(SHAPE)
    pixels = random_pixels(seed=5)
    predicted = forward(encoder, pixels, fake_quantized_linear(encoder, linears))["last_hidden_state"]
    name = "layers.0.mlp.fc1"
    static = linears[name].input
    assert static is not None
    linears[name] = QuantizedLinear(linears[name].weight, type(static)(static.scale / 4, static.zero_point))
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    assert sqnr_db(predicted, run_onnx(tmp_path, pixels)["last_hidden_state"]) < 20


def test_onnx_structure(tmp_path: Path) -> None:
    encoder, linears = quantized(SHAPE)
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 20, "com.microsoft": 1}
    assert model.ir_version == 9
    counts = Counter(node.op_type for node in model.graph.node)
    assert counts["MatMulIntegerToFloat"] == LINEARS
    assert counts["QuantizeLinear"] == LINEARS
    assert counts["MatMul"] == 2 * 2  # attention scores and context
    assert counts["DequantizeLinear"] == counts["Gemm"] == 0
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, linear in linears.items():
        np.testing.assert_array_equal(stored[f"{name}.weight"], linear.weight.values.T)
    dims = [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, 32, 32]


def test_onnx_float_model_needs_no_contrib_operators(tmp_path: Path) -> None:
    onnx_lowering.convert(random_encoder(), {}, tmp_path, 2)
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.domain for entry in model.opset_import] == [""]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_onnx_runtime_runs_the_integer_kernels(tmp_path: Path) -> None:
    """After its own optimizations the runtime still holds one integer kernel a linear."""
    encoder, linears = quantized(SHAPE)
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert counts["MatMulIntegerToFloat"] == LINEARS


@pytest.mark.parametrize("as_convolutions", [True, False])
def test_openvino_structure(as_convolutions: bool, tmp_path: Path) -> None:
    encoder, linears = quantized(SHAPE)
    openvino_lowering.convert(encoder, linears, tmp_path, None, as_convolutions=as_convolutions)
    assert {path.name for path in tmp_path.iterdir()} == {"model.xml", "model.bin"}
    model = openvino.Core().read_model(tmp_path / "model.xml")
    operations = Counter(operation.get_type_name() for operation in model.get_ordered_ops())
    assert operations["FakeQuantize"] == LINEARS
    assert operations["Convolution"] == (OPENVINO_PRODUCTS if as_convolutions else 1)
    assert operations["MatMul"] == 2 * 2 + (0 if as_convolutions else OPENVINO_PRODUCTS - 1)
    # Of attention four a layer, of patches one; before query, key and value one and behind each of them one, around
    # o_proj, the pair of fc1 and fc2, and the pooler two each.
    assert operations["Transpose"] == 2 * 4 + 1 + (2 * (4 + 2 + 2) + 2 if as_convolutions else 0)
    # Of weights one each, of LayerNorms one each: what divides the input of fc2 is part of its range.
    assert operations["Multiply"] == OPENVINO_PRODUCTS + 2 * 2 + 1
    integers = [
        operation
        for operation in model.get_ordered_ops()
        if operation.get_type_name() == "Constant" and operation.get_element_type() == openvino.Type.i8
    ]
    assert len(integers) == OPENVINO_PRODUCTS
    assert model.inputs[0].partial_shape.to_string() == "[?,3,32,32]"


@pytest.mark.parametrize("as_convolutions", [True, False])
def test_openvino_runs_integer_kernels(as_convolutions: bool, tmp_path: Path) -> None:
    """The compiled graph computes every linear from u8 inputs: none fell back to float."""
    encoder, linears = quantized(SHAPE)
    openvino_lowering.convert(encoder, linears, tmp_path, 1, as_convolutions=as_convolutions)
    nodes = compiled(tmp_path).get_runtime_model().get_ordered_ops()
    kinds = ("Convolution", "MatMul", "FullyConnected")
    runs = [node.get_rt_info() for node in nodes if node.get_rt_info()["layerType"].value in kinds]
    integer = [info for info in runs if info["runtimePrecision"].value in ("u8", "i8")]
    kernels = [(info["layerType"].value, info["runtimePrecision"].value) for info in runs]
    assert len(integer) == OPENVINO_PRODUCTS, kernels


def test_linear_that_the_plan_keeps_float_stays_float(tmp_path: Path) -> None:
    encoder, linears = quantized(SHAPE)
    del linears["layers.1.mlp.fc2"]
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    openvino_lowering.convert(encoder, linears, tmp_path, None, as_convolutions=True)
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert counts["MatMulIntegerToFloat"] == LINEARS - 1
    pixels = random_pixels(seed=5)
    predicted = forward(encoder, pixels, fake_quantized_linear(encoder, linears))["last_hidden_state"]
    for outputs in (run_onnx(tmp_path, pixels), run_openvino(tmp_path, pixels)):
        assert sqnr_db(predicted, outputs["last_hidden_state"]) > 25
