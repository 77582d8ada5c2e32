"""What integers a tensor is made of: 8 or 16 bits, a scale and a zero point, chosen tensor by tensor, by name.

Ranges cover everything that calibration saw. Clipping for the smallest squared error, the usual choice, is ruinous on
pretrained ViTs, whose outliers carry the function. Measured on vit-s14-real, SQNR of the output with one kind of tensor
in 8 bits: inputs of qkv and fc1 32.7 dB covering, 16.8 dB with the error-optimal range; outputs of linears that write
to the residual stream 27.4 against 19.3 dB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vitedge.runtimes.errors import PlanError

Bits = Literal[8, 16]
# For outliers that calibration did not meet. In 8 bits a finer step is worth more: 5 % of room gain nothing, 15 % lose
# 3 dB on vit-s14-real.
_ROOM_IN_16_BITS = 1.5


@dataclass(frozen=True)
class Grid:
    """real = scale · (q - zero_point), with q an int8 or int16; 16-bit grids are symmetric (zero point 0)."""

    scale: float
    zero_point: int
    bits: Bits

    def __post_init__(self) -> None:
        inside = -128 <= self.zero_point <= 127 if self.bits == 8 else self.zero_point == 0
        if not (np.isfinite(self.scale) and self.scale > 0 and inside):
            raise PlanError(f"integer grid: expected scale > 0 and a zero point that fits the bits, found {self}")

    @property
    def low(self) -> int:
        """The smallest integer."""
        return -(1 << (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Range:
    """The smallest and the largest value that a tensor took."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite((self.low, self.high)).all() and self.low <= self.high):
            raise PlanError(f"range of a tensor: expected finite low <= high, found {self}; check the checkpoint")

    def union(self, other: "Range") -> "Range":
        return Range(min(self.low, other.low), max(self.high, other.high))

    def grid(self, bits: Bits) -> Grid:
        """The grid of that many bits that covers the range and represents 0 exactly; 16 bits have room for more."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if bits == 16:
            return Grid(_scale(_ROOM_IN_16_BITS * max(-low, high) / 32767), 0, 16)
        scale = _scale((high - low) / 255)
        return Grid(scale, int(np.clip(round(-128 - low / scale), -128, 127)), 8)


# Right sides of matrix products are symmetric: XNNPACK ignores their zero point in BATCH_MATMUL up to LiteRT 2.0.2 and
# TensorFlow 2.21 (measured: 11 instead of 29 dB), not in LiteRT 2.1.6 and 2.3.
_RIGHT_FACTORS = ("key", "value", "summand")


def _scale(step: float) -> float:
    # A tensor that was always 0 still needs a scale; kernels refuse subnormal ones.
    return float(np.float32(max(step, 1e-12)))


# Operators whose result has a fixed grid in TFLite's 8-bit and 16-bit kernels (tflite/kernels/activations.cc, Prepare).
FIXED_GRIDS: Mapping[tuple[str, Bits], Grid] = {
    ("SOFTMAX", 8): Grid(1 / 256, -128, 8),
    ("SOFTMAX", 16): Grid(1 / 32768, 0, 16),
    ("LOGISTIC", 8): Grid(1 / 256, -128, 8),
    ("LOGISTIC", 16): Grid(1 / 32768, 0, 16),
    ("TANH", 8): Grid(1 / 128, 0, 8),
    ("TANH", 16): Grid(1 / 32768, 0, 16),
}


@dataclass(frozen=True)
class IntegerPrecision:
    """The integers of a program: what range each of its tensors covers, and which tensors are 16-bit.

    An operator computes at the precision of its result: its inputs are converted to that precision first.

    Attributes:
        ranges: By tensor.
        sixteen: The tensors that operators produce in 16 bits; all others are 8-bit.

    Raises:
        PlanError: A 16-bit tensor that the program does not have.
    """

    ranges: Mapping[str, Range]
    sixteen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = sorted(self.sixteen - self.ranges.keys())
        if unknown:
            raise PlanError(f"16-bit tensors: {unknown[:3]} are not tensors of this encoder; correct the plan")

    def to_json(self) -> dict[str, Any]:
        """A document: the 16-bit tensors and the range of every tensor, which people edit in a plan."""
        ranges = {name: [float(range_.low), float(range_.high)] for name, range_ in self.ranges.items()}
        return {"sixteen_bit": sorted(self.sixteen), "ranges": ranges}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "IntegerPrecision":
        """Reads what `to_json` wrote.

        Raises:
            PlanError: It is not such a document, or names a 16-bit tensor that has no range.
        """
        try:
            ranges = {str(name): Range(float(low), float(high)) for name, (low, high) in document["ranges"].items()}
            sixteen = frozenset(str(name) for name in document["sixteen_bit"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(
                f"integer precision: expected sixteen_bit, a list of tensors, and ranges, low and high by tensor; found"
                f" another document ({type(error).__name__}: {error}); build the plan again"
            ) from error
        return cls(ranges, sixteen)

    def bits(self, name: str) -> Bits:
        return 16 if name in self.sixteen else 8

    def grid(self, name: str, bits: Bits) -> Grid:
        """The grid of a tensor at a precision, its own or one that a reader asks for."""
        range_ = self.ranges[name]
        if bits == 8 and name.rpartition(".")[2] in _RIGHT_FACTORS:
            return Grid(_scale(max(-range_.low, range_.high) / 127), 0, 8)
        return range_.grid(bits)

    def result(self, name: str, operator: str = "") -> Grid:
        """The grid in which the operator leaves a tensor."""
        bits = self.bits(name)
        return FIXED_GRIDS.get((operator, bits)) or self.grid(name, bits)
