"""The certificate against brute force, and which inputs it pairs; `test_emulated_cpu.py` has the real kernels."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.tiny import SHAPE, random_encoder
from vitedge.quantization.plan import IntegerWeight, QuantizedLinear
from vitedge.quantization.saturation import (
    WORST_KEPT,
    Certificate,
    Pairing,
    certify,
    certify_artifact,
    pairings,
)
from vitedge.quantization.scores import ScoreGrids
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.saturation import Saturation, UnsafeLinear, UnsafePair

BYTES = np.array([0, 255, 1, 254, 128, 127, 17], np.int32)


def adjacent(width: int) -> Pairing:
    return np.arange(width // 2 * 2).reshape(-1, 2)


def excess_by_trying(v: int, w: int) -> int:
    """How far the sum of two products leaves int16, over a few bytes for each input, the extremes among them."""
    sums = BYTES[:, None] * v + BYTES[None, :] * w
    return int(max(sums.max() - 32767, -32768 - sums.min(), 0))


@given(st.integers(-128, 127), st.integers(-128, 127))
def test_one_pair_against_every_input(v: int, w: int) -> None:
    certificate = certify(np.array([[v, w]], np.int8), (adjacent(2),))
    excess = excess_by_trying(v, w)
    assert certificate.proven_safe == (excess == 0)
    assert certificate.max_excess == excess
    assert certificate.worst == ((UnsafePair(0, (0, 1), excess),) if excess else ())


def test_every_input_byte_of_the_pairs_at_the_limit() -> None:
    """All 65,536 pairs of bytes, for the pairs of weights on either side of the limit."""
    every = np.arange(256, dtype=np.int32)
    for v, w in [(1, 127), (2, 127), (64, 64), (65, 64), (-1, -127), (-2, -127), (-64, -64), (-65, -64), (-128, 127)]:
        sums = every[:, None] * v + every[None, :] * w
        fits = sums.max() <= 32767 and sums.min() >= -32768
        assert certify(np.array([[v, w]], np.int8), (adjacent(2),)).proven_safe == fits, (v, w)


@given(arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 9))), st.randoms())
def test_whole_linears_against_trying(values: np.ndarray[Any, np.dtype[np.int8]], random: Any) -> None:
    columns = list(range(values.shape[1]))
    random.shuffle(columns)
    pairing = np.array(columns[: len(columns) // 2 * 2], np.int64).reshape(-1, 2)
    certificate = certify(values, (pairing,))
    expected = {
        (output, *sorted(map(int, pair))): excess
        for output, row in enumerate(values.astype(int))
        for pair in pairing
        if (excess := excess_by_trying(row[pair[0]], row[pair[1]]))
    }
    assert certificate.pairs == len(values) * len(pairing)
    assert certificate.unsafe_pairs == len(expected)
    assert certificate.max_excess == max(expected.values(), default=0)
    assert [pair.excess for pair in certificate.worst] == sorted(expected.values(), reverse=True)[:WORST_KEPT]
    for pair in certificate.worst:
        assert expected[pair.output, *sorted(pair.inputs)] == pair.excess


@given(arrays(np.int8, (3, 8), elements=st.integers(-64, 64)))
def test_seven_bits_are_safe_however_paired(values: np.ndarray[Any, np.dtype[np.int8]]) -> None:
    every = np.array([(a, b) for a in range(8) for b in range(a)], np.int64)
    assert certify(values, (every,)) == Certificate(3 * 28, 0, 0, ())


def test_wide_weights_are_safe_beside_narrow_ones() -> None:
    values = np.array([[127, 1, -127, -1, 127, -128]], np.int8)
    assert certify(values, (adjacent(6),)).proven_safe
    assert certify(values[:, [0, 4, 1, 3, 2, 5]], (adjacent(6),)) == Certificate(
        3, 2, 255 * 255 - 32768, (UnsafePair(0, (4, 5), 255 * 255 - 32768), UnsafePair(0, (0, 1), 255 * 254 - 32767))
    )


def test_pair_of_two_pairings_counts_once() -> None:
    values = np.full((2, 2), 127, np.int8)
    assert certify(values, (adjacent(2), adjacent(2))).unsafe_pairs == 2


def test_odd_last_input_is_alone() -> None:
    assert certify(np.array([[0, 0, -128]], np.int8), (adjacent(3),)) == Certificate(1, 0, 0, ())


def test_weights_must_be_bytes() -> None:
    with pytest.raises(PlanError, match="expected int8 weights, found int32"):
        certify(np.zeros((2, 2), np.int32), (adjacent(2),))  # type: ignore[arg-type]


@pytest.mark.parametrize("runtime", ["onnx", "openvino", None])
def test_linears_pair_adjacent_inputs(runtime: str | None) -> None:
    (pairing,) = pairings("layers.1.mlp.fc2", SHAPE, runtime)
    np.testing.assert_array_equal(pairing, adjacent(96))


def test_patch_embedding_pairs_columns_or_channels() -> None:
    """Columns are in (channel, row, column) order: ONNX pairs columns of a row, OpenVINO red and green of a pixel."""
    (flat,) = pairings("patch_embedding", SHAPE, "onnx")
    np.testing.assert_array_equal(flat, adjacent(192))
    (channels,) = pairings("patch_embedding", SHAPE, "openvino")
    np.testing.assert_array_equal(channels, np.stack([np.arange(64), 64 + np.arange(64)], axis=1))
    both = pairings("patch_embedding", SHAPE)
    np.testing.assert_array_equal(np.concatenate(both), np.concatenate([flat, channels]))


def test_tflite_pairs_nothing() -> None:
    assert pairings("layers.0.mlp.fc1", SHAPE, "tflite") == ()


def test_unknown_linear_is_told() -> None:
    with pytest.raises(PlanError, match=r"layers\.2\.mlp\.fc1: expected a linear of the encoder"):
        pairings("layers.2.mlp.fc1", SHAPE)


def test_linears_of_a_runtime_are_certified_by_its_own_pairs() -> None:
    """Red and green of one pixel: adjacent in OpenVINO's convolution, far apart in ONNX Runtime's MatMul."""
    values = np.zeros(random_encoder().tensors["patch_embedding.weight"].shape, np.int8)
    values[3, [5, 64 + 5]] = 100
    weight = IntegerWeight(values, np.ones(48, np.float32), np.zeros(48, np.float32))
    linears = {"patch_embedding": QuantizedLinear(weight, None)}
    pairs = 48 * 96
    assert certify_artifact(linears, SHAPE, "onnx") == Saturation(True, None, 1, pairs, {})
    worst = UnsafePair(3, (5, 69), 255 * 200 - 32767)
    unsafe = {"patch_embedding": UnsafeLinear(1, worst.excess, (worst,))}
    assert certify_artifact(linears, SHAPE, "openvino") == Saturation(False, None, 1, 48 * 64, unsafe)


def test_where_nothing_is_added_in_16_bits_nothing_is_counted() -> None:
    weight = IntegerWeight(np.full((48, 192), 127, np.int8), np.ones(48, np.float32), np.zeros(48, np.float32))
    tflite = certify_artifact({"patch_embedding": QuantizedLinear(weight, None)}, SHAPE, "tflite")
    assert tflite == Saturation(True, tflite.not_applicable, 1, 0, {})
    assert "widens" in str(tflite.not_applicable)
    assert certify_artifact({}, SHAPE, "onnx") == Saturation(True, "nothing is integer", 0, 0, {})


def test_integer_scores_are_never_proven_safe() -> None:
    """Whatever the weights: queries and keys are activations."""
    weight = IntegerWeight(np.zeros((144, 48), np.int8), np.ones(144, np.float32), np.zeros(144, np.float32))
    name = "layers.1.attention.qkv"
    assert certify_artifact({name: QuantizedLinear(weight, None)}, SHAPE, "openvino").proven_safe
    scored = QuantizedLinear(weight, None, scores=ScoreGrids(1.0, 1.0))
    found = certify_artifact({name: scored}, SHAPE, "openvino")
    assert (found.proven_safe, found.linears) == (False, 2)
    (unsafe,) = found.unsafe.items()
    assert unsafe == ("layers.1.attention.scores", UnsafeLinear(SHAPE.hidden // 2, 2 * 255 * 128 - 32768, ()))
