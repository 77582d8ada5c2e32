"""What a profile makes of its nodes; which kernels really run is in `test_profile_kernels.py`."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.benchmarks.profile import Fallback, Profile
from vitedge.benchmarks.profile_nodes import DELEGATED, OWN, RUNS, WARM_UP_RUNS, Node, Role, owner
from vitedge.benchmarks.profile_openvino import _mean_ms
from vitedge.benchmarks.profile_tflite import _inside


def node(kind: str, ms: float | None, role: Role = "other", kernel: str | None = None) -> Node:
    return Node(f"a {kind}", kind, kernel, role, None, ms)


def profile_of(*nodes: Node, partitions: int | None = None) -> Profile:
    return Profile(
        runtime="onnx",
        threads=1,
        runs=10,
        latency_ms=12.0,
        nodes=nodes,
        partitions=partitions,
        integer_macs_share=0.9,
        fallbacks=(),
    )


TIMED = profile_of(
    node("MatMul", 3.0),
    node("MatMulIntegerToFloat", 2.0, "integer"),
    node("MatMulIntegerToFloat", 4.0, "integer"),
    node("Mul", 0.5, "conversion"),
    node("Mul", 0.5),
)


def test_time_is_grouped_by_operator_and_role() -> None:
    assert TIMED.operators_ms == 10
    assert [(group.kind, group.role, group.count, group.ms, group.share) for group in TIMED.groups] == [
        ("MatMulIntegerToFloat", "integer", 2, 6.0, 0.6),
        ("MatMul", "other", 1, 3.0, 0.3),
        ("Mul", "conversion", 1, 0.5, 0.05),
        ("Mul", "other", 1, 0.5, 0.05),
    ]
    assert (TIMED.role_share("integer"), TIMED.role_ms("conversion"), TIMED.role_share("conversion")) == (
        0.6,
        0.5,
        0.05,
    )
    assert TIMED.warnings == ()


def test_json_holds_the_shares() -> None:
    document = json.loads(json.dumps(TIMED.to_json(), allow_nan=False))
    assert document["integer_time_share"] == 0.6
    assert (document["conversions_ms"], document["conversions_share"]) == (0.5, 0.05)
    assert document["groups"][0] == vars(TIMED.groups[0])
    assert document["nodes"][0]["ms"] == 3.0


def test_no_time_is_made_up() -> None:
    """Not even a zero, and not of the nodes that have one either."""
    for nodes in ([node("ADD", None)], [node("ADD", None, "integer"), node("MUL", 1.0)]):
        found = profile_of(*nodes)
        assert found.operators_ms is None
        assert {found.role_ms(role) for role in ("integer", "conversion", "other")} == {None}  # type: ignore[arg-type]
        assert {group.share for group in found.groups} == {None}


def test_fallbacks_are_told_in_words() -> None:
    fallbacks = [Fallback(f"layers.{layer}.mlp.fc2", "float MatMul") for layer in range(3)]
    fallbacks.append(Fallback("patch_embedding", "slow Convolution ref_any_I8"))
    assert replace(TIMED, fallbacks=tuple(fallbacks)).warnings == (
        "linears that the manifest calls integer, but no fast integer kernel computed: float MatMul: layers.*.mlp.fc2"
        " (3); slow Convolution ref_any_I8: patch_embedding (1)",
    )


def test_more_than_one_partition_and_nodes_outside_are_told() -> None:
    inside, outside = node("ADD", None, kernel=DELEGATED), node("GELU", None, kernel=OWN)
    assert profile_of(inside, partitions=1).warnings == ()
    assert profile_of(inside, outside, outside, partitions=2).warnings == (
        "2 XNNPACK partitions, expected one: tensors are copied between them",
        "2 of 3 nodes are not in XNNPACK: GELU (2)",
    )
    assert profile_of(outside, partitions=0).warnings[0].startswith("0 XNNPACK partitions, expected one")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.1.mlp.fc1", "layers.1.mlp.fc1"),
        ("layers.1.mlp.fc1.output", "layers.1.mlp.fc1"),
        ("layers.1.mlp.fc1/DequantizationMultiply", "layers.1.mlp.fc1"),
        ("layers.11.mlp.fc1.output", None),  # a prefix of letters is not one of names
        ("layers.1.mlp.fc10", None),
        ("layers.1.mlp", None),
        ("", None),
    ],
)
def test_nodes_belong_to_linears_by_name(name: str, expected: str | None) -> None:
    assert owner(name, ("layers.1.mlp.fc1", "patch_embedding")) == expected


@given(
    st.lists(st.floats(0, 5000), min_size=WARM_UP_RUNS, max_size=WARM_UP_RUNS),
    st.lists(st.floats(0, 5000), min_size=RUNS, max_size=RUNS),
)
def test_mean_after_warm_up_comes_from_two_rounded_means(warm_up_us: list[float], runs_us: list[float]) -> None:
    """To the microsecond and a half that the rounding of both leaves."""
    before, after = sum(warm_up_us) / WARM_UP_RUNS, sum(warm_up_us + runs_us) / (WARM_UP_RUNS + RUNS)
    found = _mean_ms(int(before), int(after))
    assert found >= 0
    assert found * 1e3 == pytest.approx(sum(runs_us) / RUNS, abs=(WARM_UP_RUNS + RUNS) / RUNS + 1e-6)


def test_partitions_hold_what_their_outputs_depend_on() -> None:
    """0 -> a -> 1 -> b -> 2 -> c -> 3 -> d -> 4, where c stayed outside, and d also reads 1."""
    graph = [
        {"index": index, "inputs": inputs, "outputs": [index + 1]}
        for index, inputs in enumerate([[0], [1], [2], [3, 1]])
    ]
    assert _inside({"inputs": [0], "outputs": [1, 2]}, graph) == {0, 1}
    assert _inside({"inputs": [3, 1], "outputs": [4]}, graph) == {3}
