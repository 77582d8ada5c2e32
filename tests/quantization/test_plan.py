"""The plan: consistent with itself, the same after a round trip, unreadable when damaged."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.tiny import random_encoder, random_pixels
from vitedge.quantization.encoder import Encoder, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import TARGETS, IntegerWeight, ModulePlan, Plan, Recipe, StaticInput, load_plan
from vitedge.quantization.quantize import apply_smoothing, make_plan, observe
from vitedge.runtimes.errors import PlanError


def tiny_plan(target: str = "avx2") -> tuple[Plan, Encoder, Encoder]:
    encoder = random_encoder()
    statistics = observe(encoder, [random_pixels(count=16)])
    plan, smoothed = make_plan(
        encoder,
        statistics,
        pixel_range=(-1, 1),
        recipes=TARGETS[target],
        target=target,
        checkpoint_digest="c",
        calibration_digest="i",
    )
    return plan, smoothed, encoder


@pytest.mark.parametrize(("target", "low", "high"), [("avx2", -64, 63), ("vnni", -127, 127), ("arm64", -127, 127)])
def test_every_linear_is_integer_within_the_targets_range(target, low, high):
    plan, smoothed, _ = tiny_plan(target)
    for runtime in ("onnx", "openvino"):
        linears = plan.linears(runtime)
        assert linears.keys() == smoothed.shape.linears.keys()
        values = np.concatenate([linear.weight.values.ravel() for linear in linears.values()])
        assert low <= values.min() < low * 0.9 and high * 0.9 < values.max() <= high
        assert all(linear.input is not None for linear in linears.values())
    assert all(linear.input is None for linear in plan.linears("tflite").values())


def test_no_pair_of_avx2_products_can_saturate_16_bits():
    plan, _, _ = tiny_plan("avx2")
    for linear in plan.linears("onnx").values():
        weights = linear.weight.values.astype(np.int32)
        assert (255 * np.abs(weights)).max() * 2 <= 32767


@pytest.mark.parametrize(("target", "floor"), [("avx2", 27), ("vnni", 30)])
def test_predicts_a_sound_model(target, floor):
    plan, smoothed, encoder = tiny_plan(target)
    pixels = random_pixels(seed=9)
    expected = forward(encoder, pixels, float_linear(encoder))["last_hidden_state"]
    found = forward(smoothed, pixels, fake_quantized_linear(smoothed, plan.linears("onnx")))["last_hidden_state"]
    sqnr_db = 10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum())
    assert sqnr_db > floor


def test_round_trip(tmp_path):
    plan, smoothed, encoder = tiny_plan()
    plan.save(tmp_path)
    loaded = load_plan(tmp_path)
    assert loaded.digest() == plan.digest()
    assert loaded.recipes == plan.recipes
    for name, tensor in apply_smoothing(encoder, loaded).tensors.items():
        np.testing.assert_array_equal(tensor, smoothed.tensors[name])


def test_the_digest_sees_one_changed_integer():
    plan, _, _ = tiny_plan()
    module = plan.modules["layers.0.mlp.fc1"]
    weight = module.weights[7]
    values = weight.values.copy()
    values[0, 0] ^= 1
    changed = replace(module, weights={**module.weights, 7: replace(weight, values=values)})
    assert replace(plan, modules={**plan.modules, "layers.0.mlp.fc1": changed}).digest() != plan.digest()


@pytest.mark.parametrize("damage", ["no file", "not json", "other format", "bad scale", "no arrays"])
def test_refuses_a_damaged_plan(tmp_path, damage):
    plan, _, _ = tiny_plan()
    plan.save(tmp_path)
    path = tmp_path / "plan.json"
    document = json.loads(path.read_text())
    if damage == "no file":
        path.unlink()
    elif damage == "not json":
        path.write_text("{")
    elif damage == "no arrays":
        (tmp_path / "plan.safetensors").write_bytes(b"12345678")
    else:
        if damage == "other format":
            document["format"] = "vitedge-plan/99"
        else:
            document["modules"]["layers.0.mlp.fc1"]["input"]["scale"] = -1
        path.write_text(json.dumps(document))
    with pytest.raises(PlanError):
        load_plan(tmp_path)


def test_refuses_impossible_values():
    weight = IntegerWeight(np.full((1, 1), 100, np.int8), np.ones(1, np.float32), np.zeros(1, np.float32))
    with pytest.raises(PlanError, match=r"\[-64, 63\]"):
        ModulePlan("int8", "", StaticInput(1.0, 0), {7: weight})
    with pytest.raises(PlanError, match="input quantization"):
        StaticInput(float("nan"), 0)
    with pytest.raises(PlanError, match="zero point"):
        StaticInput(1.0, 256)
    with pytest.raises(PlanError, match="recipe"):
        Recipe(6, "static")
    with pytest.raises(PlanError, match="needs an input"):
        ModulePlan("int8", "")
