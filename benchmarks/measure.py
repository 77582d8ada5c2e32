"""Latency, load time, memory and size of an artifact against its FP32 twin, on this machine.

How a pair is measured so that the numbers repeat:

- Each artifact has a process of its own (`worker.py`), loaded one after the other. Both stay alive; one runs at a time.
- Rounds: a block of inferences of the one, then of the other, the order reversed from round to round (ABBA), so that a
  clock that drifts or a neighbour that wakes up meets both alike.
- Each round gives one speedup, from the medians of its two blocks; the verdict is about the median of these and its
  95 % bootstrap interval (`speedup.py`). Latencies themselves are pooled over all rounds.
- What makes a run doubtful is said beside it (`flags.py`).
- As many rounds as fit the time given: a block is a share of that time, one inference of a large encoder or hundreds of
  a tiny one. In a block of several the first is discarded: it finds the caches full of the other's weights.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np

from vitedge.benchmarks.flags import clock_flags, conditions, machine_flags, outlier_share, pair_flags
from vitedge.benchmarks.machine import cpu_times, describe_machine, read_sensors, read_state
from vitedge.benchmarks.process import BenchmarkError, Command, Worker, running, worker_command
from vitedge.benchmarks.results import ArtifactResult, BenchReport, PairResult, RivalResult
from vitedge.benchmarks.speedup import Speedup, median_interval, speedup_of
from vitedge.runtimes.manifest import load_manifest

__all__ = ["BenchmarkError", "Rival", "interleaved", "measure_all", "measure_pair"]

_TARGET_ROUNDS = 20
_MAX_BLOCK_RUNS = 1000
_WARM_UP_RUNS = 2
_WARM_UP_MS = 300.0


@dataclass(frozen=True)
class Rival:
    """Another's model to run in the rounds of a pair: its name, precision, size in bytes if it has a file of its own,
    and what gives the command line of its measuring process. Or the artifact itself in another way, its `own` rival.
    """

    name: str
    precision: str
    size_bytes: int | None
    command: Command
    own: bool = False


def measure_all(
    pairs: Mapping[str, tuple[Path, Path | None]],
    *,
    threads: int,
    batch: int = 1,
    seconds: float = 8.0,
    cpus: Sequence[int] = (),
    rivals: Mapping[str, Sequence[Rival]] = MappingProxyType({}),
    sqnr_db: Mapping[str, float] = MappingProxyType({}),
    progress: Callable[[int], None] = lambda _: None,
) -> BenchReport:
    """Measures several pairs, one after the other.

    Args:
        pairs: Artifact folder, and folder of its FP32 twin or None, by name.
        threads: Threads of the runtime.
        batch: Images per inference.
        seconds: As in `measure_pair`, for each pair.
        cpus: As in `measure_pair`.
        rivals: As in `measure_pair`, by the name of the pair.
        sqnr_db: Accuracy of artifacts by name; of those that are equally fast the most accurate is the best.
        progress: Called with 1 when a pair is done.

    Raises:
        ArtifactError: A folder is not an artifact.
        BenchmarkError: A measuring process cannot load its artifact, died, or hung.
    """
    machine, before = describe_machine(cpus=cpus), read_state(cpus=cpus)
    results = {}
    for name, (artifact, twin) in pairs.items():
        results[name] = measure_pair(
            artifact, twin, threads=threads, batch=batch, seconds=seconds, cpus=cpus, rivals=rivals.get(name, ())
        )
        progress(1)
    after = read_state(cpus=cpus)
    clocks = clock_flags(machine.max_frequency_mhz, [pair.conditions for pair in results.values()])
    flags = (*machine_flags(machine, threads=threads, cpus=cpus), *clocks)
    return BenchReport(machine, threads, batch, tuple(cpus), results, before, after, flags, dict(sqnr_db))


def measure_pair(
    artifact: Path,
    twin: Path | None,
    *,
    threads: int,
    batch: int = 1,
    seconds: float = 8.0,
    cpus: Sequence[int] = (),
    rivals: Sequence[Rival] = (),
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
        seconds: Time for the rounds of two models, half of it more for each rival; loading and warm-up come on top.
        cpus: CPUs that the artifacts' processes are pinned to; empty leaves that to the system.
        rivals: Others' models, to run in the same rounds.
        minimum_rounds: Rounds to measure even if that takes longer.
        limit_seconds: Longest time that loading, or one block of inferences, may take.
        progress: Called after each round with the number of rounds so far.

    Raises:
        ArtifactError: A folder is not an artifact.
        BenchmarkError: A measuring process cannot load its artifact, died, or hung.
    """
    ours = [_ours(folder) for folder in (artifact, twin) if folder is not None]
    models = [*ours, *rivals]
    sensors = []

    def after_round(count: int) -> None:
        sensors.append(read_sensors(cpus=cpus))
        progress(count)

    with ExitStack() as stack:
        commands = [model.command(threads=threads, batch=batch, cpus=cpus) for model in models]
        workers = [stack.enter_context(running(command, limit_seconds=limit_seconds)) for command in commands]
        own_before, before = _own_seconds(workers), cpu_times()
        rounds = interleaved(
            workers,
            seconds=seconds * (1 + len(rivals) / 2),
            minimum_rounds=minimum_rounds,
            progress=after_round,
        )
        after, own_after = cpu_times(), _own_seconds(workers)
        blocks = [[blocks[place] for blocks in rounds] for place in range(len(models))]
        results = [_result(*measured) for measured in zip(models, workers, blocks, strict=True)]
    found = conditions(sensors, before, after, own_after - own_before)

    def speedup_over(place: int) -> Speedup:
        return speedup_of(list(zip(blocks[0], blocks[place], strict=True)))

    return PairResult(
        threads=threads,
        batch=batch,
        cpus=tuple(cpus),
        artifact=results[0],
        fp32=None if twin is None else results[1],
        speedup=None if twin is None else speedup_over(1),
        rivals=tuple(
            RivalResult(models[place].name, results[place], speedup_over(place), models[place].own)
            for place in range(len(ours), len(models))
        ),
        conditions=found,
        flags=pair_flags([model.name for model in models], rounds, found),
    )


def _ours(folder: Path) -> Rival:
    """An artifact, as what runs in the rounds."""
    manifest = load_manifest(folder)
    command = partial(worker_command, folder)
    return Rival(manifest.precision.upper(), manifest.precision, manifest.size_bytes, command)


def _own_seconds(workers: Sequence[Worker]) -> float:
    return time.process_time() + sum(worker.cpu_seconds() for worker in workers)


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


def _warm_up(runner: Runner) -> float:
    """Runs until caches, threads and clocks are up, and returns a typical latency in milliseconds."""
    latency_ms = min(runner.run(_WARM_UP_RUNS))
    more = min(int(_WARM_UP_MS / latency_ms), _MAX_BLOCK_RUNS)
    return float(np.median(runner.run(more))) if more else latency_ms


def _block(runner: Runner, count: int) -> list[float]:
    return runner.run(count) if count == 1 else runner.run(count + 1)[1:]


def _result(model: Rival, worker: Worker, blocks: Sequence[list[float]]) -> ArtifactResult:
    latencies_ms = np.concatenate(blocks)
    lower, median, upper, p90 = (float(value) for value in np.percentile(latencies_ms, (25, 50, 75, 90)))
    peak_bytes, bare_bytes = worker.memory()
    return ArtifactResult(
        precision=model.precision,
        latency_median_ms=median,
        latency_interval_ms=median_interval([float(np.median(block)) for block in blocks]),
        latency_p90_ms=p90,
        latency_iqr_ms=upper - lower,
        outlier_share=outlier_share(latencies_ms),
        samples=len(latencies_ms),
        load_ms=worker.load_ms,
        first_ms=worker.first_ms,
        peak_bytes=peak_bytes,
        bare_bytes=bare_bytes,
        size_bytes=model.size_bytes,
    )
