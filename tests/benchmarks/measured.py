"""Measurements that nobody made."""

from vitedge.benchmarks.flags import Conditions
from vitedge.benchmarks.machine import State, describe_machine
from vitedge.benchmarks.results import ArtifactResult, BenchReport, PairResult
from vitedge.benchmarks.speedup import Speedup

QUIET = Conditions(None, None, 0.0, 0.0)
STATE = State(None, None, None, None)


def result(precision: str, latency_ms: float, half_ms: float = 0.1) -> ArtifactResult:
    interval = (latency_ms - half_ms, latency_ms + half_ms)
    return ArtifactResult(precision, latency_ms, interval, latency_ms, 0.0, 0.0, 20, 1.0, 1.0, None, None, 10)


def pair(int8_ms: float, fp32_ms: float | None, spread: float = 0.01, half_ms: float = 0.1) -> PairResult:
    """A pair whose speedup is known to within a share."""
    fp32 = speedup = None
    if fp32_ms is not None:
        fp32, ratio = result("fp32", fp32_ms, half_ms), fp32_ms / int8_ms
        speedup = Speedup(ratio, ratio * (1 - spread), ratio * (1 + spread), 20)
    return PairResult(1, 1, (), result("int8", int8_ms, half_ms), fp32, speedup, (), QUIET, ())


def report(sqnr_db: dict[str, float] | None = None, /, **pairs: PairResult) -> BenchReport:
    return BenchReport(describe_machine(), 1, 1, (), pairs, STATE, STATE, (), sqnr_db or {})
