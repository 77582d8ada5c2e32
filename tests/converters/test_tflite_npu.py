"""The NPU lowering: integers between input and output, builtin operators only, and what fake quantization predicts."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tests.quantization.test_integer_program import nearest
from tests.tiny import SHAPE, random_encoder, random_pixels, sqnr_db, variants
from vitedge.converters.tflite_file import count_operators
from vitedge.converters.tflite_npu import MODEL_FILE, convert
from vitedge.quantization.encoder import EncoderShape, FloatArray, float_linear, forward
from vitedge.quantization.integer_fake import predict
from vitedge.quantization.integer_float import Observation, observe
from vitedge.quantization.integer_grid import Grid, IntegerPrecision
from vitedge.quantization.integer_operations import IntegerEncoder, round_linears

SHAPES = {**variants(), "pooler and classifier": replace(SHAPE, classes=7, pooler_activation="silu")}
BATCH = 16
BUILTIN = {
    "QUANTIZE", "FULLY_CONNECTED", "BATCH_MATMUL", "ADD", "MUL", "RSQRT", "SOFTMAX", "GELU", "RELU", "LOGISTIC", "TANH",
    "RESHAPE", "TRANSPOSE", "PAD", "SLICE", "DEQUANTIZE",
}  # fmt: skip


@cache
def calibrated(shape: EncoderShape = SHAPE) -> tuple[Observation, IntegerEncoder]:
    observation = observe(random_encoder(shape), lambda: [random_pixels(shape, BATCH)], (-1, 1))
    return observation, round_linears(observation.folded, nearest)


def precisions(shape: EncoderShape) -> dict[str, IntegerPrecision]:
    """8 bits, 16 bits, and every other tensor in 16 bits."""
    ranges = calibrated(shape)[0].ranges
    wide = [name for name in ranges if name != "pixel_values"]
    chosen = {"8": wide[:0], "16": wide, "mixed": wide[::2], "otherwise mixed": wide[1::2]}
    return {name: IntegerPrecision(ranges, frozenset(names)) for name, names in chosen.items()}


def run(file: Path, pixel_values: np.ndarray[Any, Any], **options: Any) -> dict[str, np.ndarray[Any, Any]]:
    runner = Interpreter(str(file), **options).get_signature_runner("serving_default")
    outputs: dict[str, np.ndarray[Any, Any]] = runner(
        pixel_values=np.ascontiguousarray(pixel_values.transpose(0, 2, 3, 1))
    )
    return outputs


def read_graph(file: Path) -> tuple[Any, list[tuple[str, Any]]]:
    """The subgraph, and its operators by name."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    model = schema.ModelT.InitFromPackedBuf(file.read_bytes())
    graph = model.subgraphs[0]
    return graph, [(names[model.operatorCodes[op.opcodeIndex].builtinCode], op) for op in graph.operators]


@pytest.mark.parametrize("precision", ["8", "16", "mixed", "otherwise mixed"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_artifact_computes_what_fake_quantization_predicts(shape: EncoderShape, precision: str, tmp_path: Path) -> None:
    integers, pixels = calibrated(shape)[1], random_pixels(shape, BATCH, seed=4)
    chosen = precisions(shape)[precision]
    convert(integers, chosen, tmp_path, BATCH)
    found, predicted = run(tmp_path / MODEL_FILE, pixels), predict(integers, chosen, pixels)
    encoder = random_encoder(shape)
    for name, expected in forward(encoder, pixels, float_linear(encoder)).items():
        # The outputs of one token are few numbers, whose error varies more from flip to flip.
        tolerance_db = 0.5 if name == "last_hidden_state" else 1.5
        difference = sqnr_db(expected, found[name]) - sqnr_db(expected, predicted[name])
        assert abs(difference) < tolerance_db
        assert sqnr_db(expected, found[name]) > 20
        if precision == "16":  # steps are so fine that flips do not spread: the arithmetic is the same
            assert sqnr_db(predicted[name], found[name]) > 65


@pytest.mark.parametrize("precision", ["8", "16", "mixed"])
def test_everything_between_input_and_output_is_integer(precision: str, tmp_path: Path) -> None:
    chosen = precisions(SHAPE)[precision]
    convert(calibrated()[1], chosen, tmp_path, None)
    graph, operators = read_graph(tmp_path / MODEL_FILE)
    kinds = schema.TensorType
    assert {name for name, _ in operators} <= BUILTIN
    assert operators[0][0] == "QUANTIZE"
    assert [name for name, _ in operators[-2:]] == ["DEQUANTIZE"] * 2  # last_hidden_state and pooler_output
    floats = {i for i, tensor in enumerate(graph.tensors) if tensor.type == kinds.FLOAT32}
    assert floats == {*graph.inputs, *graph.outputs}
    allowed = {"8": {kinds.INT8}, "16": {kinds.INT8, kinds.INT16}, "mixed": {kinds.INT8, kinds.INT16}}[precision]
    for name, operator in operators[1:-2]:
        types = [graph.tensors[i].type for i in (*operator.inputs, *operator.outputs)]
        assert set(types) - {kinds.INT32, kinds.INT64} <= allowed
        if name in ("ADD", "MUL", "BATCH_MATMUL", "SOFTMAX", "RSQRT", "GELU"):
            assert len(set(types)) == 1  # no operator mixes precisions
        if name == "FULLY_CONNECTED":
            assert types[0] == types[3]
            assert types[1:3] == [kinds.INT8, kinds.INT32 if types[0] == kinds.INT8 else kinds.INT64]
    counts = count_operators(tmp_path / MODEL_FILE)
    newton_steps = sum(name.endswith("inverse_deviation") for name in chosen.sixteen)
    # Linears, a scale for each LayerNorm, and a Newton step for each 16-bit one.
    assert counts["FULLY_CONNECTED int8"] == 1 + 2 * 6 + 1 + 5 + newton_steps
    assert sum(n for name, n in counts.items() if name.startswith("BATCH_MATMUL")) == 2 * 2 + 5


@pytest.mark.parametrize("precision", ["8", "mixed"])
def test_integer_input_and_output_are_the_same_numbers(precision: str, tmp_path: Path) -> None:
    integers, pixels = calibrated()[1], random_pixels(count=2, seed=4)
    chosen = precisions(SHAPE)[precision]
    (tmp_path / "float").mkdir()
    (tmp_path / "integer").mkdir()
    assert convert(integers, chosen, tmp_path / "float", 2) == {}
    grids = convert(integers, chosen, tmp_path / "integer", 2, integer_io=True)
    assert grids.keys() == {"pixel_values", "last_hidden_state", "pooler_output"}
    expected = run(tmp_path / "float" / MODEL_FILE, pixels)
    grid = grids["pixel_values"]
    assert grid.bits == 8
    quantized = np.clip(np.rint(pixels / np.float32(grid.scale)) + grid.zero_point, -128, 127).astype(np.int8)
    found = run(tmp_path / "integer" / MODEL_FILE, quantized)
    for name, output in found.items():
        assert output.dtype == (np.int8 if grids[name].bits == 8 else np.int16)
        real = (output.astype(np.float32) - grids[name].zero_point) * np.float32(grids[name].scale)
        np.testing.assert_allclose(real, expected[name], atol=1e-6)


@pytest.mark.parametrize("precision", ["8", "16"])
def test_tflites_own_kernels_agree(precision: str, tmp_path: Path) -> None:
    """The kernels that accelerators' converters are tested against, without XNNPACK."""
    integers, pixels = calibrated()[1], random_pixels(count=BATCH, seed=4)
    convert(integers, precisions(SHAPE)[precision], tmp_path, BATCH)
    expected = forward(random_encoder(), pixels, float_linear(random_encoder()))["last_hidden_state"]
    default, own = (
        run(tmp_path / MODEL_FILE, pixels, experimental_op_resolver_type=resolver)["last_hidden_state"]
        for resolver in (OpResolverType.AUTO, OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    )
    assert abs(sqnr_db(expected, default) - sqnr_db(expected, own)) < 0.5


@pytest.mark.parametrize(
    ("shape", "lines"), [((32, 32), 0), ((45, 37), 1)], ids=["patches cover the image", "a border is left"]
)
def test_a_border_without_patches_is_cut_off(shape: tuple[int, int], lines: int, tmp_path: Path) -> None:
    changed = replace(SHAPE, image_height=shape[0], image_width=shape[1], pooler=0)
    convert(calibrated(changed)[1], precisions(changed)["8"], tmp_path, None)
    graph, operators = read_graph(tmp_path / MODEL_FILE)
    assert [name for name, _ in operators].count("SLICE") == lines
    assert list(graph.tensors[graph.inputs[0]].shape) == [1, *shape, 3]


def test_a_row_of_zeros_keeps_its_bias(tmp_path: Path) -> None:
    """Its step is all but 0, and its bias in such steps would leave 32 bits."""
    encoder = random_encoder()
    weight, bias = (encoder.tensors[f"layers.0.mlp.fc1.{part}"].copy() for part in ("weight", "bias"))
    weight[0], bias[0] = 1e-30, 2.0
    encoder = encoder.with_tensors({"layers.0.mlp.fc1.weight": weight, "layers.0.mlp.fc1.bias": bias})
    pixels = random_pixels(count=BATCH)
    observation = observe(encoder, lambda: [pixels], (-1, 1))

    def tiny_steps(name: str, weight: FloatArray, bias: FloatArray) -> Any:
        rounded = nearest(name, weight, bias)
        return replace(rounded, scale=np.where(np.abs(weight).max(1) < 1e-20, np.float32(1e-32), rounded.scale))

    integers = round_linears(observation.folded, tiny_steps)
    convert(integers, IntegerPrecision(observation.ranges), tmp_path, BATCH)
    expected = forward(encoder, pixels, float_linear(encoder))["last_hidden_state"]
    assert sqnr_db(expected, run(tmp_path / MODEL_FILE, pixels)["last_hidden_state"]) > 25


def test_a_wrong_grid_shows_in_the_artifact(tmp_path: Path) -> None:
    """The comparison with the prediction can fail."""
    integers, pixels = calibrated()[1], random_pixels(count=BATCH, seed=4)
    right = precisions(SHAPE)["8"]
    narrow = right.ranges["layers.0.mlp.residual"]
    wrong = IntegerPrecision({**right.ranges, "layers.0.mlp.residual": replace(narrow, high=narrow.high / 3)})
    convert(integers, wrong, tmp_path, BATCH)
    predicted = predict(integers, right, pixels)["last_hidden_state"]
    assert sqnr_db(predicted, run(tmp_path / MODEL_FILE, pixels)["last_hidden_state"]) < 20


def test_minimum_runtime_covers_every_operator(tmp_path: Path) -> None:
    convert(calibrated()[1], precisions(SHAPE)["8"], tmp_path, None)
    assert b"2.17.0" in (tmp_path / MODEL_FILE).read_bytes()  # FULLY_CONNECTED with a scale per channel
    convert(calibrated()[1], precisions(SHAPE)["16"], tmp_path, None)
    assert b"2.22.0" in (tmp_path / MODEL_FILE).read_bytes()  # QUANTIZE from int8 to int16


def test_grids_of_fixed_results(tmp_path: Path) -> None:
    graph_of = {}
    for name in ("8", "16"):
        convert(calibrated()[1], precisions(SHAPE)[name], tmp_path, None)
        graph_of[name] = read_graph(tmp_path / MODEL_FILE)[0]
    for bits, expected in (("8", Grid(1 / 256, -128, 8)), ("16", Grid(1 / 32768, 0, 16))):
        tensor = next(t for t in graph_of[bits].tensors if t.name == b"layers.0.attention.weights")
        assert (tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]) == (expected.scale, expected.zero_point)


@pytest.mark.filterwarnings(r"ignore:[\s\S]*tf.lite.Interpreter is deprecated:UserWarning")  # in favor of LiteRT
def test_older_kernels_agree_in_8_bits(tmp_path: Path) -> None:
    """TensorFlow's XNNPACK ignores the zero point of a matrix product's right side, so that must be 0."""
    import tensorflow as tf

    integers, pixels = calibrated()[1], random_pixels(count=BATCH, seed=4)
    convert(integers, precisions(SHAPE)["8"], tmp_path, BATCH)
    runner = tf.lite.Interpreter(str(tmp_path / MODEL_FILE)).get_signature_runner("serving_default")
    found = runner(pixel_values=np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))["last_hidden_state"]
    expected = forward(random_encoder(), pixels, float_linear(random_encoder()))["last_hidden_state"]
    default = run(tmp_path / MODEL_FILE, pixels)["last_hidden_state"]
    assert abs(sqnr_db(expected, found) - sqnr_db(expected, default)) < 0.5
