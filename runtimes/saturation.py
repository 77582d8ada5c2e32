"""What an artifact's saturation certificate says, on the device; `quantization/saturation.py` proves it."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class UnsafePair:
    """Two weights of one output whose 16-bit sum can leave the range of int16, by at most `excess`."""

    output: int
    inputs: tuple[int, int]
    excess: int


@dataclass(frozen=True)
class UnsafeLinear:
    """How many pairs of a linear can saturate, the largest excess among them, and the worst few."""

    pairs: int
    max_excess: int
    worst: tuple[UnsafePair, ...]


@dataclass(frozen=True)
class Saturation:
    """Whether the integer products of an artifact, linears and attention scores, can saturate on x86 CPUs without VNNI.

    `proven_safe` means that none can, so that the artifact is exact on every CPU. `linears` and `pairs` count what was
    looked at, and `unsafe` holds what can saturate, by name. Where no kernel adds in 16 bits, nothing needs
    a proof: `not_applicable` says why, and is None elsewhere.
    """

    proven_safe: bool
    not_applicable: str | None
    linears: int
    pairs: int
    unsafe: Mapping[str, UnsafeLinear]
