"""Latency of a TFLite artifact and its FP32 twin on an Android device, by LiteRT's `benchmark_model`.

    probe device and free space ─► a private folder ─► models, benchmark_model ─► rounds ─► remove

As on the host (`measure.py`) the two run in turns, the order reversed from round to round, and the verdict is about the
quotients of neighbouring runs. A run is a process of its own, so that load times are medians too, and
memory is the largest of all. There is no self-test: `benchmark_model` feeds random numbers and shows no outputs.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.benchmarks.adb import (
    AdbDevice,
    ask,
    check_ready,
    check_space,
    failure,
    in_private_folder,
    killable,
    push,
    sha256_there,
    shell,
)
from vitedge.benchmarks.android import (
    SENSORS_BEGIN,
    SENSORS_SCRIPT,
    AndroidState,
    identify,
    parse_state,
    read_state,
    state_after,
    state_flags,
)
from vitedge.benchmarks.benchmark_model import Delegate, ToolRun, arguments, parse_run, why_failed
from vitedge.benchmarks.devices import DeviceError, DeviceResult
from vitedge.benchmarks.flags import Conditions, clock_flags, conditions, pair_flags
from vitedge.benchmarks.machine import Sensors
from vitedge.benchmarks.results import FORMAT
from vitedge.benchmarks.speedup import median_interval, speedup_of
from vitedge.runtimes.file_records import FileRecord
from vitedge.runtimes.manifest import Manifest, load_manifest, verify_files

_ON_DEVICE = "device:"
_RUNTIME = "tflite"
_ROUNDS = 6  # even, for ABBA
_LIMIT_SECONDS = 300.0  # for loading, warm-up and three inferences


@dataclass(frozen=True)
class ToolDevice(AdbDevice):
    """Which device, and what measures there.

    `benchmark_model` is LiteRT's program, built for the device: a path here, or `device:` and a path there. `delegate`
    is what it shall use besides the CPU's kernels.
    """

    benchmark_model: str
    delegate: Delegate = "none"

    def __post_init__(self) -> None:
        if self.installed is None and not (
            Path(self.benchmark_model).is_file() and os.access(self.benchmark_model, os.R_OK)
        ):
            raise DeviceError(
                f"--benchmark-model: expected a file that can be read, found none at {self.benchmark_model}"
            )
        if self.installed is not None and not self.installed.startswith("/"):
            raise DeviceError(f"--benchmark-model: expected device:/an/absolute/path, found {self.benchmark_model}")

    @property
    def installed(self) -> str | None:
        """The path of `benchmark_model` on the device, if it is there already."""
        there = self.benchmark_model.startswith(_ON_DEVICE)
        return self.benchmark_model.removeprefix(_ON_DEVICE) if there else None


@dataclass(frozen=True)
class _Model:
    """A model's file here and, once it is pushed, there."""

    manifest: Manifest
    file: Path
    record: FileRecord
    there: str = ""
    compared: str = ""

    @property
    def name(self) -> str:
        return self.manifest.precision.upper()


def measure_over_adb(
    device: ToolDevice, artifact: Path, twin: Path | None, *, threads: int, seconds: float
) -> DeviceResult:
    """Pushes a model and its twin, measures them in turns, and removes all, also after an error or an interrupt.

    Args:
        device: Where, and with what.
        artifact: A TFLite artifact's folder.
        twin: The folder of its FP32 twin, or None.
        threads: Of the CPU's kernels.
        seconds: For the benchmark of both; loading and warm-up come on top.

    Raises:
        ArtifactError: A folder is no artifact, or damaged.
        DeviceError: adb is missing, the device unknown, unauthorized, offline or full, a file changed on its way, or
            `benchmark_model` failed.
    """
    models = [_model(folder) for folder in (artifact, twin) if folder is not None]
    check_ready(device)
    check_space(device, sum(model.record.size_bytes for model in models) + _tool_bytes(device))
    return in_private_folder(device, lambda folder: _measured(device, models, folder, threads, seconds))


def _measured(device: ToolDevice, models: Sequence[_Model], folder: str, threads: int, seconds: float) -> DeviceResult:
    """As `measure_over_adb`, in a folder there."""
    tool, tool_sha256 = _tool(device, folder)
    models = [_pushed(device, model, folder) for model in models]
    machine, before = identify(device), read_state(device)
    rounds, sensors = _rounds(device, tool, models, threads=threads, seconds=seconds / _ROUNDS / len(models))
    after, doubts = state_after(device)
    found = conditions(sensors, None, None, 0.0)
    pair = _pair(device, models, rounds, found, threads)
    run = {
        "format": FORMAT,
        "machine": machine.to_json(),
        "threads": threads,
        "batch": pair["batch"],
        "cpus": [],
        "delegate": device.delegate,
        "tool": {"name": "benchmark_model", "sha256": tool_sha256},  # it prints no version
        "before": before.to_json(),
        "after": after.to_json(),
        "pairs": {_RUNTIME: pair},
        "flags": [
            *state_flags(machine, before, after),
            *clock_flags(machine.max_frequency_mhz, [found]),
            *doubts,
        ],
    }
    bench = {
        "format": "vitedge-benches/2",
        "source_digest": models[0].manifest.source.digest,
        "artifacts": {_RUNTIME: _identity(models[0])},
        "runs": [run],
    }
    return DeviceResult(device.name, None, bench)


def _model(folder: Path) -> _Model:
    manifest = load_manifest(folder)
    verify_files(manifest, folder)
    if manifest.runtime != _RUNTIME or len(manifest.files) != 1:
        raise DeviceError(f"{folder}: expected a TFLite artifact of one file, found one for {manifest.runtime}")
    return _Model(manifest, folder / manifest.files[0].name, manifest.files[0])


def _tool_bytes(device: ToolDevice) -> int:
    return 0 if device.installed else Path(device.benchmark_model).stat().st_size


def _tool(device: ToolDevice, folder: str) -> tuple[str, str | None]:
    """`benchmark_model` on the device, and its SHA-256; None if it was there and cannot be summed."""
    if device.installed is not None:
        return device.installed, sha256_there(device, device.installed)
    here, there = Path(device.benchmark_model), f"{folder}/benchmark_model"
    record = FileRecord.of(here)
    push(device, here, there, record)
    ask(device, f"chmod 700 {there}", "chmod")
    return there, record.sha256


def _pushed(device: ToolDevice, model: _Model, folder: str) -> _Model:
    there = f"{folder}/{model.manifest.precision}.tflite"
    return replace(model, there=there, compared=push(device, model.file, there, model.record))


def _rounds(
    device: ToolDevice, tool: str, models: Sequence[_Model], *, threads: int, seconds: float
) -> tuple[list[list[ToolRun]], list[Sensors]]:
    """Runs by round, then by model; and what the sensors said after each round."""
    rounds: list[list[ToolRun]] = []
    sensors = []
    for number in range(_ROUNDS):
        order = models if number % 2 == 0 else models[::-1]
        runs = {}
        for model in order:
            runs[model.there], state = _run(device, tool, model, threads=threads, seconds=seconds)
        rounds.append([runs[model.there] for model in models])
        sensors.append(state.sensors)
    return rounds, sensors


def _run(device: ToolDevice, tool: str, model: _Model, *, threads: int, seconds: float) -> tuple[ToolRun, AndroidState]:
    """One run, and the device's state right after it: a moment later the clock is an idle device's."""
    words = [tool, *arguments(model.there, threads=threads, seconds=seconds, delegate=device.delegate)]
    script = f"{killable(model.there.rpartition('/')[0], words)}; {SENSORS_SCRIPT}; exit $code"
    result = shell(device, script, seconds=_LIMIT_SECONDS + seconds)
    said, _, sensors = result.stdout.partition(SENSORS_BEGIN)
    if result.returncode:
        result.stdout = why_failed(said) or said
        raise failure(device, f"benchmark_model on the {model.name} model", result)
    return parse_run(said), parse_state(SENSORS_BEGIN + sensors)


def _pair(
    device: ToolDevice,
    models: Sequence[_Model],
    rounds: Sequence[Sequence[ToolRun]],
    found: Conditions,
    threads: int,
) -> dict[str, Any]:
    """As in `results.PairResult`, with what `benchmark_model` tells of each artifact."""
    latencies_ms = [[[run.latency_ms] for run in runs] for runs in rounds]
    names = [model.name for model in models]
    columns = list(zip(*rounds, strict=True))
    results = [_result(model, runs) for model, runs in zip(models, columns, strict=True)]
    speedup = speedup_of(latencies_ms) if len(models) == 2 else None
    flags = [f"{name}: {doubt}" for name, runs in zip(names, columns, strict=True) for doubt in _doubts(device, runs)]
    return {
        "threads": threads,
        "batch": models[0].manifest.inputs[0].shape[0],
        "cpus": [],
        "artifact": results[0],
        "fp32": results[1] if speedup else None,
        "speedup": speedup.to_json() if speedup else None,
        "verdict": speedup.verdict if speedup else "no FP32 artifact to compare with",
        "rivals": [],
        "conditions": found.to_json(),
        "flags": [*pair_flags(names, latencies_ms, found), *flags],
    }


def _result(model: _Model, runs: Sequence[ToolRun]) -> dict[str, Any]:
    """One artifact; `latency_p95_ms` is the median of the runs' percentiles."""
    latencies_ms = [run.latency_ms for run in runs]
    p95s_ms = [run.p95_ms for run in runs if run.p95_ms is not None]
    peaks = [run.memory_bytes for run in runs if run.memory_bytes is not None]
    return {
        "precision": model.manifest.precision,
        "latency_median_ms": float(np.median(latencies_ms)),
        "latency_interval_ms": list(median_interval(latencies_ms)),
        "latency_p95_ms": float(np.median(p95s_ms)) if p95s_ms else None,
        "samples": sum(run.samples for run in runs),
        "load_ms": float(np.median([run.load_ms for run in runs])),
        "first_ms": float(np.median([run.first_ms for run in runs])),
        "peak_bytes": max(peaks, default=None),
        "size_bytes": model.record.size_bytes,
        "compared": model.compared,
        "rounds": [run.to_json() for run in runs],
    }


def _doubts(device: ToolDevice, runs: Sequence[ToolRun]) -> Iterator[str]:
    if fallback := next(filter(None, (run.fallback(device.delegate) for run in runs)), None):
        yield fallback
    if not all(run.is_median for run in runs):
        yield "this benchmark_model prints no median: latencies are means, which outliers raise"


def _identity(model: _Model) -> dict[str, Any]:
    """What the result is about, as `python -m vitedge.device bench` tells it."""
    return {
        "runtime": _RUNTIME,
        "runtime_version": None,
        "target": model.manifest.target,
        "sha256": {model.record.name: model.record.sha256},
    }
