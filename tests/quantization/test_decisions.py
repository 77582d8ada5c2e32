"""Decisions that people edit: read as they were left, and refused where they do not exist or do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.quantization.tiny_plan import FC1, edited
from tests.tiny import SHAPE
from vitedge.quantization.decisions import PlanDecisions, load_decisions
from vitedge.quantization.plan import load_plan
from vitedge.quantization.recipe import TARGETS, Recipe
from vitedge.runtimes.errors import PlanError


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
        (
            lambda document: document["recipes"]["onnx"].pop("weights"),
            "missing 1 required positional argument: 'weights'",
        ),
        (lambda document: document["recipes"]["onnx"].update(precision={}), "unexpected keyword argument 'precision'"),
        (lambda document: document["recipes"]["onnx"].update(precisions=["static"]), "not a readable plan"),
        (lambda document: document.update(recipes=[]), "not a readable plan"),
        (lambda document: document.pop("target"), "KeyError: 'target'"),
        (lambda document: document.update(target="avx512"), "target: expected one of avx2, vnni, arm64, found avx512"),
        (
            lambda document: document["recipes"].update(onxx=document["recipes"]["onnx"]),
            "recipes: expected some of onnx, openvino, tflite, found onxx",
        ),
        (lambda document: document.update(smoothing_strength=2), "smoothing_strength: expected a number from 0 to 1"),
        (lambda document: document.update(smoothing_strength="much"), "ValueError: could not convert string"),
        (lambda document: document.update(ranges="histogram"), "ranges: expected min-max or mse, found histogram"),
        (lambda document: document.update(inputs={}), "expected checkpoint_digest, .*, found inputs"),
        (lambda document: document.update(format="vitedge-plan/1"), "format vitedge-plan/6, found vitedge-plan/1"),
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
        PlanDecisions(path, "c", "avx2", {runtime: Recipe("int8", precisions)}, 0.5).check("c", SHAPE.linears)
    fitting = {"*": "dynamic", "patch_embedding": "float"}
    PlanDecisions(path, "c", "avx2", {runtime: Recipe("int8", fitting)}, 0.5).check("c", SHAPE.linears)
