"""Which model to use on this machine: the fastest; of those that are as fast within noise, the most accurate.

FP32 is exact, so an INT8 artifact has to be clearly faster than every FP32 one to be chosen. An artifact and its FP32
twin ran in the same rounds, and their speedup decides. Models of different runtimes ran in different rounds, perhaps in
other conditions: one is clearly slower only if its whole interval is beyond the other's by `CLEAR_RATIO`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitedge.benchmarks.speedup import CLEAR_RATIO, Speedup


@dataclass(frozen=True)
class Candidate:
    """One model: the name of its pair, precision, latency with its 95 % interval, and accuracy as far as it is known.

    `sqnr_db` is of an INT8 artifact's last_hidden_state; `over_fp32` its speedup over its FP32 twin.
    """

    name: str
    precision: str
    latency_ms: float
    interval_ms: tuple[float, float]
    sqnr_db: float | None
    over_fp32: Speedup | None

    @property
    def is_fp32(self) -> bool:
        return self.precision == "fp32"

    @property
    def accuracy_db(self) -> float | None:
        return math.inf if self.is_fp32 else self.sqnr_db

    def __str__(self) -> str:
        return f"{self.name} {self.precision.upper()}"


@dataclass(frozen=True)
class Best:
    """The model to use, those that are as fast within noise, rivals that are clearly faster, and that in words."""

    chosen: Candidate
    equals: tuple[Candidate, ...]
    faster_rivals: tuple[Candidate, ...]
    verdict: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.chosen.name,
            "precision": self.chosen.precision,
            "latency_median_ms": self.chosen.latency_ms,
            "within_noise": [str(candidate) for candidate in self.equals],
            "faster_rivals": [rival.name for rival in self.faster_rivals],
            "verdict": self.verdict,
        }


def best_of(candidates: Sequence[Candidate], rivals: Sequence[Candidate] = ()) -> Best:
    """Chooses among at least one candidate; rivals are others' models, named if they beat the choice, never chosen."""
    fastest = min(candidates, key=lambda candidate: candidate.latency_ms)
    tied = [candidate for candidate in candidates if not _is_slower(candidate, fastest)]
    exact = [candidate for candidate in tied if candidate.is_fp32]
    floats = [candidate for candidate in candidates if candidate.is_fp32]
    faster_than_fp32 = [candidate for candidate in tied if all(_is_slower(other, candidate) for other in floats)]
    if exact:  # not clearly slower than the fastest of all
        chosen = min(exact, key=lambda candidate: candidate.latency_ms)
        reason = "no INT8 artifact is clearly faster"
    elif len(faster_than_fp32) > 1 and all(candidate.accuracy_db is not None for candidate in faster_than_fp32):
        chosen = max(faster_than_fp32, key=lambda candidate: (candidate.accuracy_db, -candidate.latency_ms))
        reason = "the most accurate of those that are as fast within noise"
    else:
        chosen, reason = fastest, "the fastest"
    equals = tuple(candidate for candidate in tied if candidate != chosen)
    faster = tuple(rival for rival in rivals if _is_slower(chosen, rival))
    words = _words(chosen, equals, reason)
    if not any(candidate.is_fp32 for candidate in candidates):
        words += "; no FP32 was measured"
    if faster:
        names = ", ".join(f"{rival.name}, {rival.latency_ms:.2f} ms" for rival in faster)
        words += f"; clearly faster, its accuracy not measured here: {names}"
    return Best(chosen, equals, faster, words)


def _is_slower(candidate: Candidate, fastest: Candidate) -> bool:
    """Whether a candidate is clearly slower than the fastest one."""
    if candidate is fastest:
        return False
    if candidate.name == fastest.name:  # twins
        if fastest.over_fp32 is not None:
            return fastest.over_fp32.is_faster
        if candidate.over_fp32 is not None:
            return candidate.over_fp32.is_slower
    return candidate.interval_ms[0] > CLEAR_RATIO * fastest.interval_ms[1]


def _words(chosen: Candidate, equals: Sequence[Candidate], reason: str) -> str:
    what = f"best on this machine: {chosen}, {chosen.latency_ms:.2f} ms"
    if chosen.is_fp32:
        what = f"use FP32 on this machine: {chosen}, {chosen.latency_ms:.2f} ms"
    within = ", ".join(f"{candidate}, {candidate.latency_ms:.2f} ms" for candidate in equals)
    noise = f"; within noise of it: {within}" if equals else ""
    return f"{what}, {reason}{noise}"
