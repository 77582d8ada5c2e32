"""Latency, load time, memory and size of an artifact against its FP32 twin, on this machine.

How a pair is measured so that the numbers repeat:

- Each artifact has a process of its own (`worker.py`), loaded one after the other. Both stay alive; one runs at a time.
- Rounds: a block of inferences of the one, then of the other, the order reversed from round to round (ABBA), so that a
  clock that drifts or a neighbour that wakes up meets both alike.
- Each round gives one speedup, from the medians of its two blocks; the verdict is about the median and the spread of
  these. Latencies themselves are pooled over all rounds.
- As many rounds as fit the time given: a block is a share of that time, one inference of a large encoder or hundreds of
  a tiny one. In a block of several the first is discarded: it finds the caches full of the other's weights.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vitedge.benchmarks.machine import Machine, describe_machine
from vitedge.benchmarks.process import BenchmarkError, Worker, running, worker_command
from vitedge.runtimes.manifest import load_manifest

__all__ = [
    "ArtifactResult",
    "BenchReport",
    "BenchmarkError",
    "PairResult",
    "Speedup",
    "measure_all",
    "measure_pair",
]

FORMAT = "vitedge-bench/1"
# Two processes that run the same file differ: their memory is laid out differently, for as long as they live. Of 15
# files measured against themselves (0.1 to 90 ms, three runtimes) 5 had a 10th to 90th percentile that left out 1, the
# worst median was 1.03 and the worst 10th percentile 1.02. What is within that is no difference of the artifacts.
CLEAR_RATIO = 1.03
_TARGET_ROUNDS = 20
_MAX_BLOCK_RUNS = 1000
_WARM_UP_RUNS = 2
_WARM_UP_MS = 300.0


@dataclass(frozen=True)
class ArtifactResult:
    """One artifact. Latencies are of one call of the wrapper with one batch, after warm-up.

    `latency_iqr_ms` is the distance between the quartiles. `load_ms` is the construction of the wrapper, with the
    verification of the files; `first_ms` the first inference. `peak_bytes` is the most memory that its process ever
    held, of which `bare_bytes` are Python and the imported runtime; None where the system does not say.
    """

    precision: str
    latency_median_ms: float
    latency_p90_ms: float
    latency_iqr_ms: float
    samples: int
    load_ms: float
    first_ms: float
    peak_bytes: int | None
    bare_bytes: int | None
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Speedup:
    """FP32 latency divided by the artifact's, one quotient per round: their median, 10th and 90th percentile."""

    median: float
    p10: float
    p90: float
    rounds: int

    @property
    def verdict(self) -> str:
        """The result in words: a difference only if 8 of 10 rounds agree on it, and it exceeds `CLEAR_RATIO`."""
        if self.p10 > CLEAR_RATIO:
            return f"{self.median:.2f}× faster than FP32 here"
        if self.p90 < 1 / CLEAR_RATIO:
            return f"SLOWER than FP32 here ({self.median:.2f}×): use FP32 on this machine"
        return f"no clear difference from FP32 here ({self.p10:.2f}–{self.p90:.2f}×)"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class PairResult:
    """An artifact and, unless it has none, its FP32 twin, measured in turn."""

    threads: int
    batch: int
    artifact: ArtifactResult
    fp32: ArtifactResult | None
    speedup: Speedup | None

    @property
    def verdict(self) -> str:
        return self.speedup.verdict if self.speedup else "no FP32 artifact to compare with"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True)
class BenchReport:
    """Several pairs, by name, and the machine they were measured on."""

    machine: Machine
    threads: int
    batch: int
    pairs: Mapping[str, PairResult]

    def to_json(self) -> dict[str, Any]:
        pairs = {name: pair.to_json() for name, pair in self.pairs.items()}
        return {
            "format": FORMAT,
            "machine": self.machine.to_json(),
            "threads": self.threads,
            "batch": self.batch,
            "pairs": pairs,
        }


def measure_all(
    pairs: Mapping[str, tuple[Path, Path | None]],
    *,
    threads: int,
    batch: int = 1,
    seconds: float = 8.0,
    progress: Callable[[int], None] = lambda _: None,
) -> BenchReport:
    """Measures several pairs, one after the other.

    Args:
        pairs: Artifact folder, and folder of its FP32 twin or None, by name.
        threads: Threads of the runtime.
        batch: Images per inference.
        seconds: As in `measure_pair`, for each pair.
        progress: Called with 1 when a pair is done.

    Raises:
        ArtifactError: A folder is not an artifact.
        BenchmarkError: A measuring process cannot load its artifact, died, or hung.
    """
    machine = describe_machine()
    results = {}
    for name, (artifact, twin) in pairs.items():
        results[name] = measure_pair(artifact, twin, threads=threads, batch=batch, seconds=seconds)
        progress(1)
    return BenchReport(machine, threads, batch, results)


def measure_pair(
    artifact: Path,
    twin: Path | None,
    *,
    threads: int,
    batch: int = 1,
    seconds: float = 8.0,
    minimum_rounds: int = 6,
    limit_seconds: float = 300.0,
    progress: Callable[[int], None] = lambda _: None,
) -> PairResult:
    """Measures an artifact against its FP32 twin.

    Args:
        artifact: Artifact folder.
        twin: Artifact folder of the same encoder in FP32 for the same runtime, or None.
        threads: Threads of the runtime.
        batch: Images per inference.
        seconds: Time for the rounds; loading and warm-up come on top.
        minimum_rounds: Rounds to measure even if that takes longer.
        limit_seconds: Longest time that loading, or one block of inferences, may take.
        progress: Called after each round with the number of rounds so far.

    Raises:
        ArtifactError: A folder is not an artifact.
        BenchmarkError: A measuring process cannot load its artifact, died, or hung.
    """
    folders = [artifact] if twin is None else [artifact, twin]
    manifests = [load_manifest(folder) for folder in folders]
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                running(worker_command(folder, threads=threads, batch=batch), limit_seconds=limit_seconds)
            )
            for folder in folders
        ]
        rounds = interleaved(workers, seconds=seconds, minimum_rounds=minimum_rounds, progress=progress)
        results = [
            _result(manifest.precision, manifest.size_bytes, worker, [block[place] for block in rounds])
            for place, (manifest, worker) in enumerate(zip(manifests, workers, strict=True))
        ]
    if twin is None:
        return PairResult(threads, batch, results[0], None, None)
    return PairResult(threads, batch, results[0], results[1], speedup_of(rounds))


class Runner(Protocol):
    """What runs inferences and says how many milliseconds each took."""

    def run(self, count: int, /) -> list[float]: ...


def interleaved(
    runners: Sequence[Runner],
    *,
    seconds: float,
    minimum_rounds: int,
    progress: Callable[[int], None] = lambda _: None,
) -> list[tuple[list[float], ...]]:
    """Warms up, then runs rounds of one block each, every other round in reverse order.

    Returns:
        Latencies in milliseconds: by round, then by runner in the order given. The number of rounds is even.
    """
    warm_ms = [_warm_up(runner) for runner in runners]
    block_ms = seconds * 1000 / _TARGET_ROUNDS / len(runners)
    counts = [min(max(round(block_ms / latency_ms), 1), _MAX_BLOCK_RUNS) for latency_ms in warm_ms]
    rounds: list[tuple[list[float], ...]] = []
    start = time.perf_counter()
    while True:
        order = range(len(runners)) if len(rounds) % 2 == 0 else reversed(range(len(runners)))
        blocks = {place: _block(runners[place], counts[place]) for place in order}
        rounds.append(tuple(blocks[place] for place in range(len(runners))))
        progress(len(rounds))
        if len(rounds) % 2 or len(rounds) < minimum_rounds:
            continue
        elapsed = time.perf_counter() - start
        if elapsed + 2 * elapsed / len(rounds) > seconds:
            return rounds


def speedup_of(rounds: Sequence[tuple[list[float], ...]]) -> Speedup:
    """The speedup of the first over the second of two that were measured in rounds."""
    ratios = [np.median(second) / np.median(first) for first, second in rounds]
    p10, median, p90 = np.percentile(ratios, (10, 50, 90))
    return Speedup(float(median), float(p10), float(p90), len(ratios))


def _warm_up(runner: Runner) -> float:
    """Runs until caches, threads and clocks are up, and returns a typical latency in milliseconds."""
    latency_ms = min(runner.run(_WARM_UP_RUNS))
    more = min(int(_WARM_UP_MS / latency_ms), _MAX_BLOCK_RUNS)
    return float(np.median(runner.run(more))) if more else latency_ms


def _block(runner: Runner, count: int) -> list[float]:
    return runner.run(count) if count == 1 else runner.run(count + 1)[1:]


def _result(precision: str, size_bytes: int, worker: Worker, blocks: Sequence[list[float]]) -> ArtifactResult:
    latencies_ms = np.concatenate(blocks)
    lower, median, upper, p90 = (float(value) for value in np.percentile(latencies_ms, (25, 50, 75, 90)))
    peak_bytes, bare_bytes = worker.memory()
    return ArtifactResult(
        precision=precision,
        latency_median_ms=median,
        latency_p90_ms=p90,
        latency_iqr_ms=upper - lower,
        samples=len(latencies_ms),
        load_ms=worker.load_ms,
        first_ms=worker.first_ms,
        peak_bytes=peak_bytes,
        bare_bytes=bare_bytes,
        size_bytes=size_bytes,
    )
