"""The plan: decisions that people edit, consistent with itself, the same after a round trip, refused when damaged."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import (
    TARGETS,
    WEIGHT_FORMATS,
    IntegerWeight,
    ModulePlan,
    Plan,
    PlanDecisions,
    Recipe,
    StaticInput,
    load_decisions,
    load_plan,
)
from vitedge.quantization.quantize import Calibration, apply_rewrites, make_plan, observe
from vitedge.runtimes.errors import PlanError

FC1, FC2 = "layers.0.mlp.fc1", "layers.1.mlp.fc2"


@cache
def tiny_plan() -> tuple[Plan, Encoder, Encoder]:
    encoder, pixels = random_encoder(), random_pixels(count=16)
    calibration = Calibration(observe(encoder, [pixels]), lambda: [pixels], lambda: [pixels], (-1, 1), "i")
    plan, smoothed = make_plan(
        encoder, calibration, recipes=TARGETS["avx2"], target="avx2", checkpoint_digest="c" * 64, strengths=(0.8,)
    )
    return plan, smoothed, encoder


def edited(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A saved plan whose plan.json was changed by hand."""
    tiny_plan()[0].save(folder)
    path = folder / "plan.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return path


# Recipes


def test_the_last_pattern_that_matches_counts() -> None:
    recipe = Recipe("int8", {"*": "static", "layers.*.mlp.fc2": "dynamic", FC2: "float"})
    assert [recipe.precision(name) for name in (FC1, "layers.0.mlp.fc2", FC2)] == ["static", "dynamic", "float"]
    assert Recipe("int8", {FC1: "float", "*": "static"}).precision(FC1) == "static"


def test_changed_precisions_come_last() -> None:
    recipe = Recipe("int8", {FC2: "float", "*": "static"}).with_precisions({FC2: "dynamic"})
    assert list(recipe.precisions.items()) == [("*", "static"), (FC2, "dynamic")]
    assert recipe.precision(FC2) == "dynamic"


@pytest.mark.parametrize(
    ("target", "runtime"), [(target, runtime) for target in TARGETS for runtime in TARGETS[target]]
)
def test_every_targets_recipe_fits_an_encoder(target: str, runtime: str) -> None:
    TARGETS[target][runtime].check(SHAPE.linears)


@pytest.mark.parametrize(
    ("weights", "precisions", "message"),
    [
        ("int6", {"*": "static"}, "expected weights to be one of int8, int8-pair-safe, int7, found int6"),
        ("int8", {"*": "int4"}, r"\*: expected one of static, dynamic, float, found int4"),
    ],
)
def test_refuses_what_does_not_exist(weights: str, precisions: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Recipe(weights, precisions)


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        ({"*": "static", "layers.9.*": "float"}, r"layers\.9\.\* matches no linear of this encoder; it has patch_emb"),
        ({"layers.*": "static"}, "nothing matches patch_embedding; begin with a pattern for all"),
        ({}, "nothing matches patch_embedding"),
    ],
)
def test_refuses_recipes_that_do_not_fit(precisions: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Recipe("int8", precisions).check(SHAPE.linears)


@pytest.mark.parametrize(
    ("runtime", "precisions", "message"),
    [
        (
            "tflite",
            {"*": "static"},
            'tflite recipe: patch_embedding: TFLite has no fixed input ranges; make it "dynamic"',
        ),
        (
            "openvino",
            {"*": "dynamic"},
            'openvino recipe: patch_embedding: its input has no rows there; make it "static"',
        ),
    ],
)
def test_refuses_what_a_runtime_has_no_form_for(runtime: str, precisions: Any, message: str) -> None:
    path = Path("plan.json")
    with pytest.raises(PlanError, match=message):
        PlanDecisions(path, "c", "avx2", {runtime: Recipe("int8", precisions)}).check("c", SHAPE.linears)
    fitting = {"*": "dynamic", "patch_embedding": "float"}
    PlanDecisions(path, "c", "avx2", {runtime: Recipe("int8", fitting)}).check("c", SHAPE.linears)


# Resolving recipes and modules


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


@pytest.mark.parametrize("folder", [True, False], ids=["folder", "file"])
def test_a_recipe_edited_by_hand_counts_when_loaded_again(tmp_path: Path, folder: bool) -> None:
    path = edited(tmp_path, lambda document: document["recipes"]["onnx"]["precisions"].update({FC1: "float"}))
    decisions = load_decisions(tmp_path if folder else path)
    assert (decisions.path, decisions.target, decisions.checkpoint_digest) == (path, "avx2", "c" * 64)
    assert decisions.recipes["onnx"].precisions == {"*": "static", "layers.*.mlp.fc2": "dynamic", FC1: "float"}
    assert decisions.recipes["openvino"] == TARGETS["avx2"]["openvino"]
    decisions.check("c" * 64, SHAPE.linears)
    assert load_plan(tmp_path).linears("onnx").keys() == SHAPE.linears.keys() - {FC1}
    assert load_plan(tmp_path).linears("openvino").keys() == SHAPE.linears.keys()


@pytest.mark.parametrize(
    ("precisions", "message"),
    [
        ({"*": "static", "layers.7.mlp.fc1": "float"}, r"onnx recipe: layers\.7\.mlp\.fc1 matches no linear"),
        ({"layers.*": "static"}, "onnx recipe: nothing matches patch_embedding"),
    ],
)
def test_edits_that_do_not_fit_the_encoder_are_told(tmp_path: Path, precisions: Any, message: str) -> None:
    path = edited(tmp_path, lambda document: document["recipes"]["onnx"].update(precisions=precisions))
    with pytest.raises(PlanError, match=rf"plan\.json: {message}"):
        load_decisions(path).check("c" * 64, SHAPE.linears)


def test_refuses_a_plan_of_another_checkpoint(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda _: None)
    with pytest.raises(PlanError, match=r"digest cccccccccccc…, but this one has dddddddddddd…; build from that"):
        load_decisions(path).check("d" * 64, SHAPE.linears)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda document: document["recipes"]["onnx"]["precisions"].update({FC1: "int4"}), f"{FC1}: expected one of"),
        (lambda document: document["recipes"]["onnx"].update(weights="int9"), "found int9"),
        (lambda document: document["recipes"]["onnx"].pop("weights"), "KeyError: 'weights'"),
        (lambda document: document["recipes"]["onnx"].update(precisions=["static"]), "not a readable plan"),
        (lambda document: document.update(recipes=[]), "not a readable plan"),
        (lambda document: document.pop("target"), "KeyError: 'target'"),
        (lambda document: document.update(target="avx512"), "target: expected one of avx2, vnni, arm64, found avx512"),
        (
            lambda document: document["recipes"].update(onxx=document["recipes"]["onnx"]),
            "recipes: expected some of onnx, openvino, tflite, found onxx",
        ),
        (lambda document: document.update(format="vitedge-plan/1"), "format vitedge-plan/5, found vitedge-plan/1"),
    ],
)
def test_refuses_decisions_that_do_not_exist(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = edited(tmp_path, edit)
    for load in (lambda: load_decisions(path), lambda: load_plan(tmp_path)):
        with pytest.raises(PlanError, match=message) as caught:
            load()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "JSONDecodeError"), ("[]", "found list"), ("\xff", "UnicodeDecodeError"), ("[" * 100_000, "RecursionError")],
    ids=["cut off", "a list", "binary", "deep"],
)
def test_refuses_what_is_no_plan(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=message):
        load_decisions(path)


def test_refuses_no_file_and_one_that_is_too_large(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"no such plan; expected the plan\.json of a build"):
        load_decisions(tmp_path)
    (tmp_path / "plan.json").write_bytes(b" " * ((16 << 20) + 1))
    with pytest.raises(PlanError, match="at most 16777216 bytes"):
        load_decisions(tmp_path)


@pytest.mark.parametrize("damage", ["negative scale", "no inputs", "cut arrays", "no arrays", "other strength"])
def test_refuses_a_damaged_plan(tmp_path: Path, damage: str) -> None:
    edits: dict[str, Callable[[dict[str, Any]], object]] = {
        "negative scale": lambda document: document["inputs"][FC1].update(scale=-1),
        "no inputs": lambda document: document.pop("inputs"),
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
