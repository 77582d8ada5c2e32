"""Inputs quantized by row (token) in the ONNX and OpenVINO lowerings: where they may be, and rows without a span."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from tests.converters.test_lowerings import (
    AGREEMENT_DB,
    ALL_DYNAMIC,
    DYNAMIC,
    IMAGES,
    LINEARS,
    ROWS_FOR_FC2,
    VARIANTS,
    agreement_db,
    assert_as_predicted,
    hidden_states,
    quantized,
    run_onnx,
    run_openvino,
)
from tests.tiny import SHAPE, random_pixels
from vitedge.converters import onnx as onnx_lowering
from vitedge.converters import openvino as openvino_lowering
from vitedge.quantization.encoder import EncoderShape, FloatArray
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.runtimes.errors import PlanError


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_onnx_quantizes_patches_by_row(shape: EncoderShape, tmp_path: Path) -> None:
    encoder, linears = quantized(shape, ALL_DYNAMIC)
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    assert_as_predicted(encoder, linears, random_pixels(shape, IMAGES, seed=5), tmp_path, (run_onnx,))


@pytest.mark.parametrize("as_convolutions", [True, False])
def test_openvino_refuses_patches_by_row(as_convolutions: bool, tmp_path: Path) -> None:
    encoder, linears = quantized(SHAPE, ALL_DYNAMIC)
    with pytest.raises(PlanError, match="patch_embedding: OpenVINO convolves whole images"):
        openvino_lowering.convert(encoder, linears, tmp_path, None, as_convolutions=as_convolutions)
    assert list(tmp_path.iterdir()) == []


def test_one_range_for_all_rows_shows(tmp_path: Path) -> None:
    """The twin of the agreement of dynamic inputs: a single linear with a fixed range is not what was predicted."""
    encoder, linears = quantized(SHAPE, DYNAMIC)
    _, lowered = quantized(SHAPE, DYNAMIC.with_precisions({"layers.0.mlp.fc1": "static"}))
    pixels = random_pixels(seed=5)
    expected = hidden_states(encoder, pixels, fake_quantized_linear(encoder, linears))
    onnx_lowering.convert(encoder, lowered, tmp_path, None)
    openvino_lowering.convert(encoder, lowered, tmp_path, None)
    for outputs in (run_onnx(tmp_path, pixels), run_openvino(tmp_path, pixels)):
        assert agreement_db(expected, outputs["last_hidden_state"]) < AGREEMENT_DB / 2


def test_blank_pixels_stay_finite(tmp_path: Path) -> None:
    """They make rows of equal values, whose step would be zero."""
    encoder, linears = quantized(SHAPE, ALL_DYNAMIC)
    blank = 0 * random_pixels()
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    assert_as_predicted(encoder, linears, blank, tmp_path, (run_onnx,))
    assert len(steps := onnx_steps(tmp_path, blank)) == LINEARS
    assert all(step.min() > 0 for step in steps)


@pytest.mark.parametrize("as_convolutions", [True, False])
def test_tokens_of_equal_values_stay_finite(as_convolutions: bool, tmp_path: Path) -> None:
    """Behind a LayerNorm that gives a constant, where the minimum is searched, and a ReLU that never fires."""
    encoder, linears = quantized(VARIANTS["relu"], DYNAMIC)
    norm, fc1 = "layers.0.layernorm_before", "layers.1.mlp.fc1"
    constant = {f"{norm}.weight": np.zeros(SHAPE.hidden), f"{norm}.bias": np.full(SHAPE.hidden, 0.3)}
    encoder = encoder.with_tensors({name: values.astype(np.float32) for name, values in constant.items()})
    weight = linears[fc1].weight
    linears[fc1] = replace(linears[fc1], weight=replace(weight, bias=weight.bias - np.float32(100)))
    pixels = random_pixels(seed=5)
    expected = hidden_states(encoder, pixels, fake_quantized_linear(encoder, linears))
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    openvino_lowering.convert(encoder, linears, tmp_path, None, as_convolutions=as_convolutions)
    for outputs in (run_onnx(tmp_path, pixels), run_openvino(tmp_path, pixels)):
        assert agreement_db(expected, outputs["last_hidden_state"]) > AGREEMENT_DB
    for steps in (onnx_steps(tmp_path, pixels), openvino_steps(tmp_path, pixels)):
        assert len(steps) == LINEARS - 1
        assert all(step.min() > 0 for step in steps)
        assert sum(bool(step.max() < 1e-6) for step in steps) == 2  # qkv of layer 0 and fc2 of layer 1


def onnx_steps(folder: Path, pixels: FloatArray) -> list[FloatArray]:
    """What rows are divided by. A step of zero may show nowhere else: 0/0 becomes some integer, times zero."""
    model = onnx.load(folder / "model.onnx")
    names = [node.output[0] for node in model.graph.node if node.name.endswith(".row_scale")]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(step) for step in session.run(names, {"pixel_values": pixels})]


def openvino_steps(folder: Path, pixels: FloatArray) -> list[FloatArray]:
    """The same of OpenVINO; nothing else in the graph is a division."""
    core = openvino.Core()
    model = core.read_model(folder / "model.xml")
    divisions = [operation for operation in model.get_ordered_ops() if operation.get_type_name() == "Divide"]
    model.add_outputs([operation.input_value(1) for operation in divisions])
    found = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({"pixel_values": pixels})
    return [np.array(step) for step in found.to_tuple()[-len(divisions) :]]


def test_rows_behind_an_activation_know_their_minimum(tmp_path: Path) -> None:
    """One ReduceMax each, no ReduceMin: nothing is smaller than the activation's own minimum."""
    encoder, linears = quantized(SHAPE, ROWS_FOR_FC2)
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert (counts["ReduceMax"], counts["ReduceMin"]) == (SHAPE.layers, 0)
    assert counts["MatMulIntegerToFloat"] == counts["QuantizeLinear"] == LINEARS
    encoder, linears = quantized(SHAPE, DYNAMIC)
    onnx_lowering.convert(encoder, linears, tmp_path, None)
    counts = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert (counts["ReduceMax"], counts["ReduceMin"]) == (LINEARS - 1, LINEARS - 1 - SHAPE.layers)
