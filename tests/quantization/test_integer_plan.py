"""The plan of target npu: what it holds survives the disk, and edits that make no sense are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.quantization.test_integer_program import nearest
from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.quantization.decisions import load_decisions
from vitedge.quantization.integer_fake import predict
from vitedge.quantization.integer_float import observe
from vitedge.quantization.integer_grid import IntegerPrecision
from vitedge.quantization.integer_operations import round_linears
from vitedge.quantization.integer_plan import (
    IntegerPlan,
    load_integer_decisions,
    load_integer_plan,
    sixteen_bit,
)
from vitedge.runtimes.errors import PlanError

TENSORS = ("pixel_values", "patches", "residual", "layers.0.mlp.output", "layers.1.mlp.output", "layernorm.scale")


@pytest.fixture(scope="module")
def plan() -> IntegerPlan:
    observation = observe(random_encoder(), lambda: [random_pixels()], (-1, 1))
    integers = round_linears(observation.folded, nearest)
    precision = IntegerPrecision(observation.ranges, frozenset({"residual", "layers.1.mlp.output"}))
    return IntegerPlan(
        "checkpoint", "images", precision, observation.factors, observation.multipliers, integers.linears
    )


@pytest.fixture
def saved(plan: IntegerPlan, tmp_path: Path) -> Path:
    plan.save(tmp_path)
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_plan_survives_the_disk(plan: IntegerPlan, saved: Path) -> None:
    loaded = load_integer_plan(saved)
    assert loaded.digest() == plan.digest()
    encoder, pixels = random_encoder(), random_pixels(seed=3)
    outputs = [predict(it.rounded(encoder), it.precision, pixels) for it in (plan, loaded)]
    np.testing.assert_array_equal(outputs[0]["last_hidden_state"], outputs[1]["last_hidden_state"])


def test_digest_knows_every_part(plan: IntegerPlan) -> None:
    wider = replace(plan.precision, sixteen=plan.precision.sixteen | {"patches"})
    name, weight = next(iter(plan.weights.items()))
    changed = [
        plan,
        replace(plan, checkpoint_digest="another"),
        replace(plan, calibration_digest="another"),
        replace(plan, precision=wider),
        replace(plan, factors=plan.factors * 2),
        replace(plan, multipliers={k: v * 2 for k, v in plan.multipliers.items()}),
        replace(plan, weights={**plan.weights, name: replace(weight, bias=weight.bias + 1)}),
    ]
    assert len({it.digest() for it in changed}) == len(changed)


def test_patterns_stand_for_tensors_and_never_for_the_input() -> None:
    assert sixteen_bit(["layers.*.output", "residual"], TENSORS) == {TENSORS[2], TENSORS[3], TENSORS[4]}
    assert sixteen_bit(["*"], TENSORS) == set(TENSORS) - {"pixel_values"}
    assert sixteen_bit([], TENSORS) == set()


@pytest.mark.parametrize("pattern", ["layers.7.mlp.output", "pixel_values", "residue*", ""])
def test_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(PlanError, match="matches no tensor; there are patches, residual"):
        sixteen_bit(["residual", pattern], TENSORS)


def test_edited_decisions_are_read_from_the_file_or_its_folder(saved: Path) -> None:
    edit(saved, sixteen_bit=["layers.*.mlp.output"])
    for path in (saved, saved / "plan.json"):
        sixteen = load_integer_decisions(path).precision.sixteen
        assert sixteen == {f"layers.{layer}.mlp.output" for layer in range(SHAPE.layers)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sixteen_bit": ["nothing*"]}, r"plan.json: sixteen_bit: nothing\* matches no tensor"),
        ({"sixteen_bit": [7]}, "not a readable plan"),
        ({"sixteen_bit": 7}, "not a readable plan"),
        ({"sixteen_bit": "*"}, r"plan.json: sixteen_bit: expected a list of names or patterns, found '\*'"),
        ({"ranges": {"residual": [0, 10**400]}, "sixteen_bit": []}, "plan.json .*expected a finite number"),
        ({"ranges": []}, "sixteen_bit: residual matches no tensor|layers"),
        ({"ranges": {"residual": [1, 0]}, "sixteen_bit": []}, "low <= high"),
        ({"format": "vitedge-plan/5"}, "expected a plan of format vitedge-npu-plan/1, found vitedge-plan/5"),
    ],
)
def test_senseless_edits_are_refused(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(PlanError, match=message):
        load_integer_decisions(saved)


def test_plans_of_other_targets_and_checkpoints_are_refused(saved: Path) -> None:
    with pytest.raises(PlanError, match="pass its own --target"):
        load_decisions(saved)
    with pytest.raises(PlanError, match=r"plan\.json: made for the checkpoint with digest checkpoint"):
        load_integer_decisions(saved).check("another")
    load_integer_decisions(saved).check("checkpoint")


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_arrays_are_refused(saved: Path, damage: str) -> None:
    arrays = saved / "plan.safetensors"
    if damage == "missing":
        arrays.unlink()
    else:
        arrays.write_bytes(arrays.read_bytes()[:-9])
    with pytest.raises(PlanError, match="not a readable plan"):
        load_integer_plan(saved)
