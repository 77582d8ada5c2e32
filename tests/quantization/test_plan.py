"""The plan: consistent with itself, the same after a round trip, refused when damaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.quantization.tiny_plan import FC1, FC2, edited, tiny_plan
from tests.tiny import SHAPE
from vitedge.quantization.plan import IntegerWeight, ModulePlan, StaticInput, load_plan
from vitedge.quantization.quantize import apply_rewrites
from vitedge.quantization.recipe import WEIGHT_FORMATS, Recipe
from vitedge.runtimes.errors import PlanError


def test_linears_resolve_precision_and_format() -> None:
    plan, _, _ = tiny_plan()
    onnx, tflite = plan.linears("onnx"), plan.linears("tflite")
    assert onnx.keys() == tflite.keys() == SHAPE.linears.keys()
    assert {name for name, linear in onnx.items() if linear.input is None} == {"layers.0.mlp.fc2", FC2}
    assert all(linear.input is None for linear in tflite.values())
    for name, module in plan.modules.items():
        assert onnx[name].weight is module.weights["int8-pair-safe"]
        assert onnx[name].input in (None, module.input)
        assert tflite[name].weight is module.weights["int8"]


# Files


def test_round_trip(tmp_path: Path) -> None:
    plan, smoothed, encoder = tiny_plan()
    plan.save(tmp_path)
    loaded = load_plan(tmp_path)
    assert loaded.digest() == plan.digest()
    assert loaded.recipes == plan.recipes
    assert (loaded.strength, loaded.target, loaded.calibration_digest) == (0.8, "avx2", "i")
    for name, tensor in apply_rewrites(encoder, loaded).tensors.items():
        np.testing.assert_array_equal(tensor, smoothed.tensors[name])
    for name, linear in loaded.linears("onnx").items():
        expected = plan.linears("onnx")[name]
        assert linear.input == expected.input
        for part in ("values", "scale", "bias"):
            np.testing.assert_array_equal(getattr(linear.weight, part), getattr(expected.weight, part))


def test_the_digest_sees_one_changed_integer() -> None:
    plan, _, _ = tiny_plan()
    module = plan.modules[FC1]
    values = module.weights["int8"].values.copy()
    values[0, 0] ^= 1
    weights = {**module.weights, "int8": replace(module.weights["int8"], values=values)}
    assert replace(plan, modules={**plan.modules, FC1: replace(module, weights=weights)}).digest() != plan.digest()


def test_the_digest_sees_the_order_of_patterns(tmp_path: Path) -> None:
    """The last one counts, so that another order is another plan."""
    plan, _, _ = tiny_plan()
    turned = Recipe("int8-pair-safe", dict(reversed(plan.recipes["onnx"].precisions.items())))
    other = replace(plan, recipes={**plan.recipes, "onnx": turned})
    assert other.linears("onnx")[FC2].input is not None
    assert other.digest() != plan.digest()
    other.save(tmp_path)
    assert list(load_plan(tmp_path).recipes["onnx"].precisions) == ["layers.*.mlp.fc2", "*"]


@pytest.mark.parametrize("damage", ["negative scale", "no inputs", "cut arrays", "no arrays", "other strength"])
def test_refuses_a_damaged_plan(tmp_path: Path, damage: str) -> None:
    edits: dict[str, Callable[[dict[str, Any]], object]] = {
        "negative scale": lambda document: document["results"]["inputs"][FC1].update(scale=-1),
        "no inputs": lambda document: document["results"].pop("inputs"),
        "other strength": lambda document: document.update(smoothing_strength="much"),
    }
    edited(tmp_path, edits.get(damage, lambda _: None))
    arrays = tmp_path / "plan.safetensors"
    if damage == "cut arrays":
        arrays.write_bytes(arrays.read_bytes()[:-1])
    elif damage == "no arrays":
        arrays.unlink()
    with pytest.raises(PlanError):
        load_plan(tmp_path)


# Values


@pytest.mark.parametrize(("name", "beyond"), [("int7", 65), ("int7", -65), ("int8", -128), ("int8-pair-safe", -128)])
def test_refuses_weights_beyond_their_format(name: str, beyond: int) -> None:
    def module(value: int) -> ModulePlan:
        values = np.full((1, 1), value, np.int8)
        weight = IntegerWeight(values, np.ones(1, np.float32), np.zeros(1, np.float32))
        return ModulePlan(StaticInput(1.0, 0), {name: weight})

    limit = WEIGHT_FORMATS[name].limit
    module(int(np.sign(beyond)) * limit)
    with pytest.raises(PlanError, match=rf"{name} weights must lie within \[-{limit}, {limit}\]"):
        module(beyond)


@pytest.mark.parametrize(
    ("scale", "zero_point"), [(float("nan"), 0), (0.0, 0), (float("inf"), 0), (1.0, 256), (1.0, -1)]
)
def test_refuses_impossible_inputs(scale: float, zero_point: int) -> None:
    with pytest.raises(PlanError, match=r"expected scale > 0 and zero point in \[0, 255\]"):
        StaticInput(scale, zero_point)
