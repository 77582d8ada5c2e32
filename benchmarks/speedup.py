"""A ratio of two latencies, how sure it is, and what it means in words.

Each round of a measurement gives one ratio, from the medians of its two blocks. The interval is the percentile
bootstrap (Efron 1979) of their median at 95 %: rounds are drawn again with replacement, seeded, so that a result
repeats to the digit. It is computed with numpy alone, because it is computed on devices.

The interval knows of the rounds it saw and of nothing else. Two processes that run the same file differ too: their
memory is laid out differently, for as long as they live. `CLEAR_RATIO` stands for that.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

# Of 15 files measured against themselves (0.1 to 90 ms, three runtimes) 5 had a 10th to 90th percentile of their rounds
# that left out 1, and the worst median was 1.03. What is within that is no difference of the artifacts.
CLEAR_RATIO = 1.03
_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Speedup:
    """Another's latency divided by the artifact's: the median over rounds and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float
    rounds: int

    @property
    def is_faster(self) -> bool:
        return self.low > CLEAR_RATIO

    @property
    def is_slower(self) -> bool:
        return self.high < 1 / CLEAR_RATIO

    @property
    def verdict(self) -> str:
        """The result over the FP32 twin in words, and what follows from it."""
        return self.over("FP32") + (": use FP32 on this machine" if self.is_slower else "")

    def over(self, other: str) -> str:
        """The result in words: a difference only if the whole interval exceeds `CLEAR_RATIO`."""
        if self.is_faster:
            return f"{self} faster than {other} here"
        if self.is_slower:
            return f"SLOWER than {other} here ({self})"
        return f"no clear difference from {other} here ({self})"

    def __str__(self) -> str:
        return f"{self.median:.2f}× [{self.low:.2f}, {self.high:.2f}]"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def speedup_of(rounds: Sequence[Sequence[Sequence[float]]]) -> Speedup:
    """The speedup of the first over the second of two that were measured in rounds.

    Args:
        rounds: Latencies by round, then of the first and the second.
    """
    ratios = [float(np.median(second) / np.median(first)) for first, second in rounds]
    low, high = median_interval(ratios)
    return Speedup(float(np.median(ratios)), low, high, len(ratios))


def median_interval(values: ArrayLike) -> tuple[float, float]:
    """Where the median of values [n], n at least 1, could lie at 95 %; a single value is its own interval."""
    found = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).choice(found, (_RESAMPLES, found.size))
    tail = 50 * (1 - _CONFIDENCE)
    low, high = np.percentile(np.median(draws, axis=1), (tail, 100 - tail))
    return float(low), float(high)
