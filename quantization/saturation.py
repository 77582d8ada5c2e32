"""Saturation certificate: is an integer linear exact on x86 CPUs without VNNI? Proven from its integers alone.

Without VNNI those CPUs multiply unsigned by signed bytes with `vpmaddubsw`, which adds two products in 16 bits and
saturates: it computes sat16(a·v + b·w) for each pair of inputs that lie side by side in the kernel's packed weights,
a and b in [0, 255]. Everything after that is added in 32 bits. The sum is largest where the inputs of positive weights
are 255 and the others 0, and smallest the other way round, so a pair is safe if and only if

    255 · (max(v, 0) + max(w, 0)) ≤ 32767   and   255 · (min(v, 0) + min(w, 0)) ≥ -32768,   that is   |v + w| ≤ 128,

because weights of different signs add up to less than 128 in either form. A single int8 weight never saturates, so an
odd last input, which kernels pad with zero, has no pair. Weights within [-64, 64] are safe however they are paired.

The bound takes every input byte from 0 to 255, whatever range was seen in calibration: an input beyond that range is
clipped to 255, not to less, and no operator before a linear of a ViT proves a smaller bound than its own quantization.

Which inputs lie side by side is the kernel's choice. `pairings` knows it, by measurement of one output per pair (see
`tests/emulated_cpu.py`) and from the kernels' sources:

    ONNX Runtime (MLAS)       adjacent columns of the MatMul; the patch embedding is a MatMul over flattened patches
    OpenVINO (oneDNN)         adjacent input channels, of MatMul and 1×1 convolution alike; in the patch embedding,
                              adjacent channels at one position of the patch
    TFLite (XNNPACK)          none: it widens to 16 bits before it multiplies and adds in 32

Attention scores in integers are products of activations, of which nothing is known but that they have 8 bits: every
pair of a head's channels can saturate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from vitedge.quantization.encoder import EncoderShape
from vitedge.quantization.plan import QuantizedLinear
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.saturation import Saturation, UnsafeLinear, UnsafePair

# Which input columns are added in 16 bits: int64 [pairs, 2]. Within one pairing each column occurs at most once.
Pairing = NDArray[np.int64]

PAIR_SUM_LIMIT = 128  # 255 · 128 = 32640 fits into 16 bits, 255 · 129 = 32895 does not
WORST_KEPT = 5
# Runtimes whose kernels never add products in 16 bits, and why.
_WIDENING: Mapping[str, str] = MappingProxyType(
    {"tflite": "XNNPACK widens the bytes to 16 bits before it multiplies, and adds in 32"}
)
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Certificate:
    """What is known of one linear: how many pairs it has (over all outputs), how many can saturate, and the worst."""

    pairs: int
    unsafe_pairs: int
    max_excess: int
    worst: tuple[UnsafePair, ...]

    @property
    def proven_safe(self) -> bool:
        return self.unsafe_pairs == 0


def pairings(name: str, shape: EncoderShape, runtime: str | None = None) -> tuple[Pairing, ...]:
    """Which columns of a linear's weight [out, in] are added in 16 bits.

    Args:
        name: A key of `shape.linears`.
        shape: The encoder's shape.
        runtime: Only there; or None for every runtime, which is what weights that all of them share must satisfy.

    Returns:
        One pairing for nearly every linear, two for the patch embedding: a column may have a different partner in each.
        Weights are safe if |v + w| ≤ `PAIR_SUM_LIMIT` for every pair of every pairing.

    Raises:
        PlanError: The encoder has no such linear.
    """
    if name not in shape.linears:
        raise PlanError(f"{name}: expected a linear of the encoder, found none of that name")
    if runtime in _WIDENING:
        return ()
    adjacent = _side_by_side(np.arange(shape.tensor_shapes[f"{name}.weight"][1]))
    if name != "patch_embedding" or runtime == "onnx":
        return (adjacent,)
    convolved = _convolved_patch(shape)
    return (convolved,) if runtime == "openvino" else (adjacent, convolved)


def certify(values: NDArray[np.int8], pairings: Sequence[Pairing]) -> Certificate:
    """The certificate of one linear.

    Args:
        values: int8 [out, in], the integer weights.
        pairings: From `pairings`; a pair in two of them counts once.

    Raises:
        PlanError: The weights are not int8.
    """
    if values.dtype != np.int8:
        raise PlanError(f"saturation certificate: expected int8 weights, found {values.dtype}")
    pairs = np.unique(np.concatenate([np.empty((0, 2), np.int64), *pairings]), axis=0)
    sums = np.add(values[:, pairs[:, 0]], values[:, pairs[:, 1]], dtype=np.int16)
    outputs, unsafe = np.nonzero(np.abs(sums) > PAIR_SUM_LIMIT)
    extremes = 255 * sums[outputs, unsafe].astype(np.int32)
    excess = np.maximum(extremes - _INT16.max, _INT16.min - extremes)
    order = np.argsort(-excess, kind="stable")[:WORST_KEPT]
    worst = tuple(
        UnsafePair(int(outputs[at]), (int(pairs[unsafe[at], 0]), int(pairs[unsafe[at], 1])), int(excess[at]))
        for at in order
    )
    return Certificate(sums.size, len(excess), int(excess.max(initial=0)), worst)


def certify_artifact(linears: Mapping[str, QuantizedLinear], shape: EncoderShape, runtime: str) -> Saturation:
    """What the manifest of an artifact with these integer linears says; none of them is an FP32 model."""
    if not linears or runtime in _WIDENING:
        return Saturation(True, _WIDENING[runtime] if linears else "nothing is integer", len(linears), 0, {})
    certificates = {
        name: certify(linear.weight.values, pairings(name, shape, runtime)) for name, linear in linears.items()
    }
    unsafe = {
        name: UnsafeLinear(found.unsafe_pairs, found.max_excess, found.worst)
        for name, found in certificates.items()
        if not found.proven_safe
    }
    scores = {
        name.replace(".qkv", ".scores"): _unsafe_scores(shape) for name, linear in linears.items() if linear.scores
    }
    pairs = sum(found.pairs for found in certificates.values()) + sum(found.pairs for found in scores.values())
    return Saturation(not unsafe | scores, None, len(linears) + len(scores), pairs, unsafe | scores)


def _unsafe_scores(shape: EncoderShape) -> UnsafeLinear:
    """Query · key of a layer: unsigned by signed bytes, each at its largest."""
    return UnsafeLinear(shape.heads * (shape.head_width // 2), _INT16.min + 2 * 255 * 128, ())


def _convolved_patch(shape: EncoderShape) -> Pairing:
    """That of the patch embedding where it is a convolution; columns are in (channel, row, column) order."""
    columns = np.arange(shape.patch_values).reshape(shape.channels, shape.patch_height, shape.patch_width)
    return _side_by_side(columns.transpose(1, 2, 0))


def _side_by_side(columns: NDArray[np.int64]) -> Pairing:
    """Pairs of neighbors along the last axis; an odd last one stays alone."""
    even = columns.shape[-1] // 2 * 2
    return columns[..., :even].reshape(-1, 2)
