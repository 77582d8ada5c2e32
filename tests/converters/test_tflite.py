"""The TFLite lowering: structure of the file, agreement with PyTorch, and one XNNPACK partition."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tests.tiny import random_encoder, sqnr_db
from vitedge.converters import tflite, tflite_file
from vitedge.converters.tflite_file import count_operators
from vitedge.converters.tflite_versions import INT8_WEIGHTS
from vitedge.quantization.encoder import ACTIVATIONS, Encoder, EncoderShape, FloatArray, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import IntegerWeight, QuantizedLinear, StaticInput
from vitedge.runtimes.errors import ConversionError

PLAIN = EncoderShape(
    image_height=24,
    image_width=32,
    channels=3,
    patch_height=8,
    patch_width=8,
    hidden=24,
    layers=2,
    heads=3,
    intermediate=40,
    activation="gelu",
    layer_norm_eps=1e-6,
)
SHAPES = {
    "plain": PLAIN,
    "border": replace(PLAIN, image_height=29, image_width=37, patch_width=6),
    "pooler": replace(PLAIN, pooler=16),
    "classifier": replace(PLAIN, classes=7),
    "pooler and classifier": replace(PLAIN, pooler=16, pooler_activation="silu", classes=7),
    "one head": replace(PLAIN, heads=1, layers=1),
    **{activation: replace(PLAIN, activation=activation) for activation in ACTIVATIONS},
}


def integer_linears(encoder: Encoder) -> dict[str, QuantizedLinear]:
    def quantized(name: str) -> QuantizedLinear:
        weight = encoder.tensors[f"{name}.weight"]
        scale = np.abs(weight).max(axis=1) / np.float32(127)
        values = np.rint(weight / scale[:, None]).astype(np.int8)
        return QuantizedLinear(IntegerWeight(values, scale, encoder.tensors[f"{name}.bias"]), None)

    return {name: quantized(name) for name in encoder.shape.linears}


def random_pixels(shape: EncoderShape, batch: int) -> FloatArray:
    dims = (batch, shape.channels, shape.image_height, shape.image_width)
    return np.random.default_rng(1).standard_normal(dims).astype(np.float32)


def run(interpreter: Any, pixel_values: FloatArray) -> dict[str, FloatArray]:
    runner = interpreter.get_signature_runner("serving_default")
    outputs: dict[str, FloatArray] = runner(pixel_values=np.ascontiguousarray(pixel_values.transpose(0, 2, 3, 1)))
    return outputs


def partitions(interpreter: Any) -> list[tuple[set[str], set[str]]]:
    """What each delegate partition reads, but for constants, and what it writes."""
    tensors = {t["index"]: t["name"] for t in interpreter.get_tensor_details()}
    delegated = [op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE"]
    written = {int(i) for op in interpreter._get_ops_details() for i in op["outputs"]}
    written |= {int(t["index"]) for t in interpreter.get_input_details()}
    return [
        ({tensors[i] for i in op["inputs"] if i in written}, {tensors[i] for i in op["outputs"]}) for op in delegated
    ]


def read_model(file: Path) -> Any:
    return schema.ModelT.InitFromPackedBuf(file.read_bytes())


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float_model_computes_what_pytorch_computes(shape: EncoderShape, batch: int | None, tmp_path: Path) -> None:
    encoder, pixel_values = random_encoder(shape), random_pixels(shape, batch or 1)
    tflite.convert(encoder, {}, tmp_path, batch)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    outputs = run(interpreter, pixel_values)
    for name, expected in forward(encoder, pixel_values, float_linear(encoder)).items():
        assert outputs[name].shape == expected.shape
        np.testing.assert_allclose(outputs[name], expected, atol=2e-5, rtol=0)
    assert partitions(interpreter) == [({"pixel_values"}, set(shape.outputs))]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_integer_model_computes_what_fake_quantization_predicts(
    shape: EncoderShape, batch: int, tmp_path: Path
) -> None:
    encoder, pixel_values = random_encoder(shape), random_pixels(shape, batch)
    linears = integer_linears(encoder)
    tflite.convert(encoder, linears, tmp_path, batch)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    outputs = run(interpreter, pixel_values)
    predicted = forward(encoder, pixel_values, fake_quantized_linear(encoder, linears))
    exact = forward(encoder, pixel_values, float_linear(encoder))
    for name in shape.outputs:
        # A value on the edge between two integers may round either way: a few flips, not the whole quantization error.
        assert sqnr_db(predicted[name], outputs[name]) > sqnr_db(exact[name], outputs[name]) + 10
        assert 25 < sqnr_db(exact[name], outputs[name]) < 50
    assert partitions(interpreter) == [({"pixel_values"}, set(shape.outputs))]


@pytest.mark.parametrize("quantized", [False, True])
def test_tflites_own_kernels_agree(quantized: bool, tmp_path: Path) -> None:
    shape = SHAPES["pooler and classifier"]
    encoder, pixel_values = random_encoder(shape), random_pixels(shape, 2)
    linears = integer_linears(encoder) if quantized else {}
    tflite.convert(encoder, linears, tmp_path, 2)
    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(str(tmp_path / "model.tflite"), experimental_op_resolver_type=resolver)
    outputs = run(interpreter, pixel_values)
    assert partitions(interpreter) == []
    for name, expected in forward(encoder, pixel_values, fake_quantized_linear(encoder, linears)).items():
        assert sqnr_db(expected, outputs[name]) > (38 if quantized else 100)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("quantized", [False, True])
def test_tensorflows_interpreter_agrees(quantized: bool, tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    shape = SHAPES["pooler"]
    encoder, pixel_values = random_encoder(shape), random_pixels(shape, 1)
    linears = integer_linears(encoder) if quantized else {}
    tflite.convert(encoder, linears, tmp_path, None)
    outputs = run(tensorflow.lite.Interpreter(str(tmp_path / "model.tflite")), pixel_values)
    for name, expected in forward(encoder, pixel_values, fake_quantized_linear(encoder, linears)).items():
        assert sqnr_db(expected, outputs[name]) > (50 if quantized else 100)


def test_every_linear_of_the_plan_has_int8_weights_and_no_other(tmp_path: Path) -> None:
    encoder = random_encoder(SHAPES["pooler and classifier"])
    linears = integer_linears(encoder)

    def fully_connected(chosen: Mapping[str, QuantizedLinear]) -> tuple[int, int]:
        tflite.convert(encoder, chosen, tmp_path, None)
        counts = count_operators(tmp_path / "model.tflite")
        return counts["FULLY_CONNECTED" + INT8_WEIGHTS], counts["FULLY_CONNECTED"]

    assert len(linears) == 1 + 4 * 2 + 2
    assert fully_connected(linears) == (11, 0)
    assert fully_connected({}) == (0, 11)
    del linears["layers.0.mlp.fc2"], linears["patch_embedding"], linears["layers.1.attention.qkv"]
    assert fully_connected(linears) == (8, 3)


def test_partly_integer_model_computes_what_fake_quantization_predicts(tmp_path: Path) -> None:
    encoder, pixel_values = random_encoder(PLAIN), random_pixels(PLAIN, 1)
    linears = integer_linears(encoder)
    del linears["layers.0.attention.qkv"], linears["patch_embedding"]
    tflite.convert(encoder, linears, tmp_path, None)
    outputs = run(Interpreter(str(tmp_path / "model.tflite")), pixel_values)
    predicted = forward(encoder, pixel_values, fake_quantized_linear(encoder, linears))
    assert sqnr_db(predicted["last_hidden_state"], outputs["last_hidden_state"]) > 50


def test_pixels_are_multiplied_as_they_are(tmp_path: Path) -> None:
    """Also where no pixel of a patch is 255: its range would make other integers of them."""
    encoder = random_encoder(replace(PLAIN, uint8_input=True))
    name = "patch_embedding"
    linears = {name: integer_linears(encoder)[name]}
    tflite.convert(encoder, linears, tmp_path, None)
    model = tmp_path / "model.tflite"
    pixels = np.random.default_rng(2).integers(3, 201, (1, 24, 32, 3), np.uint8)
    interpreter = Interpreter(str(model))
    found = interpreter.get_signature_runner("serving_default")(pixel_values=pixels)["last_hidden_state"]
    exact = encoder.with_tensors({f"{name}.weight": linears[name].weight.dequantized()})
    np.testing.assert_allclose(found, forward(exact, pixels, float_linear(exact))["last_hidden_state"], atol=2e-5)
    assert len(partitions(interpreter)) == 1


def test_integers_in_the_file_are_those_of_the_plan(tmp_path: Path) -> None:
    encoder = random_encoder(replace(PLAIN, heads=6))
    linears = integer_linears(encoder)
    tflite.convert(encoder, linears, tmp_path, None)
    model = read_model(tmp_path / "model.tflite")
    tensors = {tensor.name.decode(): tensor for tensor in model.subgraphs[0].tensors}
    for name, linear in linears.items():
        weight = tensors[f"{name}.weight"]
        assert weight.type == schema.TensorType.INT8
        assert weight.quantization.quantizedDimension == 0
        assert not np.any(weight.quantization.zeroPoint)
        assert len(weight.quantization.zeroPoint) == len(linear.weight.scale)
        values = np.asarray(model.buffers[weight.buffer].data).view(np.int8).reshape(weight.shape)
        scale, bias = weight.quantization.scale, linear.weight.bias
        if name == "patch_embedding":
            values = values.reshape(-1, 8, 8, 3).transpose(0, 3, 1, 2).reshape(values.shape)
        if name.endswith("qkv"):  # heads of width 4: 1/√4 on the query's rows is exact
            scale, bias = scale.copy(), bias.copy()
            scale[:24] *= 2
            bias[:24] /= 2
        np.testing.assert_array_equal(values, linear.weight.values)
        np.testing.assert_array_equal(scale, linear.weight.scale)
        stored_bias = np.asarray(model.buffers[tensors[f"{name}.bias"].buffer].data).view(np.float32)
        np.testing.assert_array_equal(stored_bias, bias)


def test_signature_has_the_names_and_order_of_the_shape(tmp_path: Path) -> None:
    shape = SHAPES["pooler and classifier"]
    tflite.convert(random_encoder(shape), {}, tmp_path, 2)
    interpreter = Interpreter(str(tmp_path / "model.tflite"))
    names = ["last_hidden_state", "pooler_output", "logits"]
    signatures = interpreter.get_signature_list()
    assert signatures.keys() == {"serving_default"}
    assert signatures["serving_default"]["inputs"] == ["pixel_values"]
    assert sorted(signatures["serving_default"]["outputs"]) == sorted(names)
    assert [output["name"] for output in interpreter.get_output_details()] == names
    (pixel_values,) = interpreter.get_input_details()
    assert list(pixel_values["shape"]) == [2, 24, 32, 3]
    assert pixel_values["dtype"] == np.float32


def buffer_offsets(encoder: Encoder, folder: Path) -> list[int]:
    """Where in the file each buffer's data begins."""
    tflite.convert(encoder, integer_linears(encoder), folder, None)
    content = (folder / "model.tflite").read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    assert model.Buffers(0).DataIsNone()
    filled = [model.Buffers(i) for i in range(1, model.BuffersLength())]
    base = np.frombuffer(content, np.uint8).ctypes.data
    return [buffer.DataAsNumpy().ctypes.data - base for buffer in filled]


def test_buffers_are_aligned_for_simd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = random_encoder(replace(PLAIN, hidden=21, intermediate=37))  # weights whose sizes are not multiples of 16
    offsets = buffer_offsets(encoder, tmp_path)
    assert len(offsets) > 30
    assert {offset % 16 for offset in offsets} == {0}
    monkeypatch.setattr(tflite_file, "ALIGNMENT", 4)
    assert {offset % 16 for offset in buffer_offsets(encoder, tmp_path)} > {0}


def test_channels_of_zeros_load_and_compute(tmp_path: Path) -> None:
    encoder, pixel_values = random_encoder(PLAIN), random_pixels(PLAIN, 1)
    name, smallest = "layers.0.attention.qkv", np.finfo(np.float32).tiny
    linears = integer_linears(encoder)
    weight = linears[name].weight
    values, scale = weight.values.copy(), weight.scale.copy()
    values[[3, 30]], scale[[3, 30]] = 0, smallest  # a row of the query, whose scale shrinks, and one of the key
    linears[name] = replace(linears[name], weight=replace(weight, values=values, scale=scale))
    tflite.convert(encoder, linears, tmp_path, None)
    outputs = run(Interpreter(str(tmp_path / "model.tflite")), pixel_values)
    predicted = forward(encoder, pixel_values, fake_quantized_linear(encoder, linears))
    assert sqnr_db(predicted["last_hidden_state"], outputs["last_hidden_state"]) > 50


def test_operator_versions_and_minimum_runtime(tmp_path: Path) -> None:
    encoder = random_encoder(PLAIN)

    def facts(linears: Mapping[str, QuantizedLinear]) -> tuple[bytes, dict[int, int]]:
        tflite.convert(encoder, linears, tmp_path, None)
        content = (tmp_path / "model.tflite").read_bytes()
        assert content[4:8] == b"TFL3"
        model = read_model(tmp_path / "model.tflite")
        assert all(code.deprecatedBuiltinCode == min(code.builtinCode, 127) for code in model.operatorCodes)
        (metadata,) = model.metadata
        assert metadata.name == b"min_runtime_version"
        return bytes(model.buffers[metadata.buffer].data), {c.builtinCode: c.version for c in model.operatorCodes}

    minimum, versions = facts({})
    assert minimum == b"2.9.0".ljust(16, b"\0")  # GELU
    assert versions.pop(schema.BuiltinOperator.FULLY_CONNECTED) == 5
    assert set(versions.values()) == {1}
    minimum, versions = facts(integer_linears(encoder))
    assert minimum == b"2.17.0".ljust(16, b"\0")
    assert minimum.startswith(tflite.MINIMUM_TENSORFLOW.encode())
    assert versions[schema.BuiltinOperator.FULLY_CONNECTED] == 12


def test_fixed_input_scale_is_refused(tmp_path: Path) -> None:
    encoder = random_encoder(PLAIN)
    linears = integer_linears(encoder)
    linears["layers.1.mlp.fc1"] = replace(linears["layers.1.mlp.fc1"], input=StaticInput(0.1, 128))
    with pytest.raises(ConversionError, match=r"layers\.1\.mlp\.fc1.*dynamic"):
        tflite.convert(encoder, linears, tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_too_large_a_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tflite_file, "MAXIMUM_BYTES", 10_000)
    with pytest.raises(ConversionError, match="10,000"):
        tflite.convert(random_encoder(PLAIN), {}, tmp_path, None)
    assert not list(tmp_path.iterdir())


def test_conversion_is_deterministic(tmp_path: Path) -> None:
    encoder = random_encoder(PLAIN)
    tflite.convert(encoder, {}, tmp_path, None)
    first = (tmp_path / "model.tflite").read_bytes()
    tflite.convert(encoder, {}, tmp_path, None)
    assert (tmp_path / "model.tflite").read_bytes() == first
