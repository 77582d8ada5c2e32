"""What a benchmark finds, as values and as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from vitedge.benchmarks.best import Best, Candidate, best_of
from vitedge.benchmarks.flags import Conditions
from vitedge.benchmarks.machine import Machine, State
from vitedge.benchmarks.speedup import Speedup

FORMAT = "vitedge-bench/2"


@dataclass(frozen=True)
class ArtifactResult:
    """One artifact. Latencies are of one call of the wrapper with one batch, after warm-up.

    `latency_interval_ms` is the 95 % bootstrap interval of the median over rounds, `latency_iqr_ms` the distance
    between the quartiles, `outlier_share` the share of latencies beyond 1.5 times the median. `load_ms` is the
    construction of the wrapper, with the verification of the files; `first_ms` the first inference. `peak_bytes` is the
    most memory that its process ever held, of which `bare_bytes` are Python and the imported runtime; None where the
    system does not say. `size_bytes` is None where there is no file of the artifact's own.
    """

    precision: str
    latency_median_ms: float
    latency_interval_ms: tuple[float, float]
    latency_p90_ms: float
    latency_iqr_ms: float
    outlier_share: float
    samples: int
    load_ms: float
    first_ms: float
    peak_bytes: int | None
    bare_bytes: int | None
    size_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RivalResult:
    """Another's model that ran in the same rounds, or the artifact itself in another way if `own`; `speedup` is the
    artifact's over it.
    """

    name: str
    result: ArtifactResult
    speedup: Speedup
    own: bool = False

    @property
    def verdict(self) -> str:
        return self.speedup.over(self.name)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class PairResult:
    """An artifact and, unless it has none, its FP32 twin, measured in turn, with rivals if there were any.

    `flags` say in words what to doubt about it.
    """

    threads: int
    batch: int
    cpus: tuple[int, ...]
    artifact: ArtifactResult
    fp32: ArtifactResult | None
    speedup: Speedup | None
    rivals: tuple[RivalResult, ...]
    conditions: Conditions
    flags: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return "no FP32 artifact to compare with" if self.speedup is None else self.speedup.verdict

    def to_json(self) -> dict[str, Any]:
        document = {**asdict(self), "verdict": self.verdict}
        return document | {"rivals": [rival.to_json() for rival in self.rivals]}


@dataclass(frozen=True)
class BenchReport:
    """Several pairs, by name, and the machine they were measured on.

    `cpus` are those that the processes were pinned to; empty if they were not. `before` and `after` are the machine's
    state around all of them. `sqnr_db` is the accuracy of artifacts, by name, as far as it is known.
    """

    machine: Machine
    threads: int
    batch: int
    cpus: tuple[int, ...]
    pairs: Mapping[str, PairResult]
    before: State
    after: State
    flags: tuple[str, ...] = ()
    sqnr_db: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def best(self) -> Best:
        """The model to use on this machine."""
        candidates = []
        for name, pair in self.pairs.items():
            candidates.append(_candidate(name, pair.artifact, self.sqnr_db.get(name), pair.speedup))
            if pair.fp32 is not None:
                candidates.append(_candidate(name, pair.fp32, None, None))
        others = [rival for pair in self.pairs.values() for rival in pair.rivals if not rival.own]
        return best_of(candidates, [_candidate(rival.name, rival.result, None, None) for rival in others])

    def verdict(self, name: str) -> str:
        """The verdict on one artifact, which says so if it is the best."""
        pair = self.pairs[name]
        chosen = self.best.chosen
        is_best = (chosen.name, chosen.precision) == (name, pair.artifact.precision)
        return pair.verdict + ("; use this one" if is_best and pair.speedup is not None else "")

    def to_json(self) -> dict[str, Any]:
        pairs = {name: pair.to_json() | {"verdict": self.verdict(name)} for name, pair in self.pairs.items()}
        return {
            "format": FORMAT,
            "machine": self.machine.to_json(),
            "threads": self.threads,
            "batch": self.batch,
            "cpus": list(self.cpus),
            "before": self.before.to_json(),
            "after": self.after.to_json(),
            "pairs": pairs,
            "best": self.best.to_json(),
            "flags": list(self.flags),
        }


def _candidate(name: str, result: ArtifactResult, sqnr_db: float | None, over_fp32: Speedup | None) -> Candidate:
    return Candidate(name, result.precision, result.latency_median_ms, result.latency_interval_ms, sqnr_db, over_fp32)
