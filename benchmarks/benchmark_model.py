"""LiteRT's `benchmark_model`: its command line, and what it prints.

It measures twice, a warm-up and then the benchmark, and prints a line for each (microseconds; new versions add
percentiles, and of equal latencies only `curr` is left):

    INFO: count=50 first=74456 curr=74516 min=73909 max=75323 avg=74481.6 std=268 p5=74100 median=74470 p95=75001

then a summary. Numbers of six digits and more are in scientific notation. It says of each delegate that it was told to
use how much of the graph that runs; TFLite's own kernels run the rest, and latencies look plausible all the same.
A run that fails tells the reason first and that it failed last, with what followed from the reason in between:

    ERROR: Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this builtin might be
    supported. Are you using an old TFLite binary with a newer model?
    ERROR: Registration failed.
    ERROR: Failed to initialize the interpreter
    ERROR: Benchmarking failed.

Source: tflite/tools/benchmark and tensorflow/core/util/stats_calculator.h of LiteRT and TensorFlow; for the failure,
TensorFlow's issue 50641.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from vitedge.benchmarks.devices import DeviceError

Delegate = Literal["none", "gpu", "nnapi"]
# XNNPACK, the CPU's kernels, is on always: it takes what another delegate leaves.
_FLAGS: Mapping[Delegate, tuple[str, ...]] = MappingProxyType(
    {"none": (), "gpu": ("--use_gpu=true",), "nnapi": ("--use_nnapi=true",)}
)
_NAMES: Mapping[Delegate, str] = MappingProxyType({"none": "XNNPACK", "gpu": "GPU", "nnapi": "NNAPI"})
_MINIMUM_RUNS = 3
_BLOCK = re.compile(r"^.*\bcount=\d.*$", re.MULTILINE)
_FIELD = re.compile(r"\b(\w+)=([^\s(]+)")  # "curr=74516(all same)"
_SUMMARY = re.compile(r"Inference timings in us: Init: ([^\s,]+), First inference: ([^\s,]+),")
_MEMORY = re.compile(r"[Mm]emory footprint[^\n:]*\(MB\): init=\S+ overall=(\S+)")
_ERROR = re.compile(r"^ERROR: *(.*\S)", re.MULTILINE)
# Operators, versions of them, or a whole format that the tool was built before.
_TOO_NEW = re.compile(r"builtin opcode|builtin_code out of range|newer model|schema version")
_DELEGATE = re.compile(
    r"(?:Explicitly applied|Though) (\w+) delegate\b.*\bthe model graph will (?:be )?(completely|partially|not)"
    r"(?: be)? executed by the delegate(?: w/ (\d+) delegate kernels)?"
)


@dataclass(frozen=True)
class ToolRun:
    """One run of `benchmark_model`.

    Attributes:
        latency_ms: The median of the benchmark's latencies, or their mean where the tool prints no median.
        is_median: Which of the two.
        p95_ms: The 95th percentile, if printed.
        samples: Inferences of the benchmark, warm-up not counted.
        load_ms: Loading the model, delegates included.
        first_ms: The first inference of the warm-up.
        memory_bytes: How much the most memory that the process ever held grew since the tool began.
        delegates: By name, how much of the graph it runs: completely, partially (in N parts), not.
    """

    latency_ms: float
    is_median: bool
    p95_ms: float | None
    samples: int
    load_ms: float
    first_ms: float
    memory_bytes: int | None
    delegates: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def fallback(self, delegate: Delegate) -> str | None:
        """What is to doubt if that delegate was asked for; None if it runs the whole graph."""
        name = _NAMES[delegate]
        found = self.delegates.get(name)
        if found == "completely":
            return None
        if found is None:
            return f"benchmark_model does not say that {name} was applied: other kernels may have run"
        if found == "not":
            return f"{name} runs nothing of the graph: these are latencies of other kernels"
        return f"{name} runs the graph {found}: other kernels run the rest"


def arguments(model: str, *, threads: int, seconds: float, delegate: Delegate) -> list[str]:
    """The options of one run of at least so many seconds, warm-up of half a second not counted."""
    runs = [f"--graph={model}", f"--num_threads={threads}", f"--num_runs={_MINIMUM_RUNS}", f"--min_secs={seconds:g}"]
    return [*runs, "--use_xnnpack=true", *_FLAGS[delegate]]


def parse_run(text: str) -> ToolRun:
    """Reads what one run printed, stdout and stderr together.

    Raises:
        DeviceError: It is not what `benchmark_model` prints at the end of a good run.
    """
    blocks, summary = _BLOCK.findall(text), _SUMMARY.search(text)
    if len(blocks) != 2 or summary is None:
        last = text.strip().splitlines()[-1:] or ["nothing"]
        raise DeviceError(
            f"benchmark_model: expected two lines with count= (warm-up and benchmark) and one of inference timings,"
            f" found {len(blocks)} and {int(summary is not None)}; it ended with: {last[0][:200]}"
        )
    fields = dict(_FIELD.findall(blocks[1]))
    is_median = "median" in fields
    typical = fields.get("median") or fields.get("avg") or fields.get("curr", "")
    memory = _MEMORY.search(text)
    return ToolRun(
        latency_ms=_number("latency", typical) / 1000,
        is_median=is_median or "avg" not in fields,  # of equal latencies, each is the median
        p95_ms=_number("p95", fields["p95"]) / 1000 if "p95" in fields else None,
        samples=int(_number("count", fields["count"])),
        load_ms=_number("Init", summary[1]) / 1000,
        first_ms=_number("First inference", summary[2]) / 1000,
        memory_bytes=int(_number("memory", memory[1], minimum=0) * (1 << 20)) or None if memory else None,
        delegates={
            name: f"{share} (in {count} parts)" if count else share for name, share, count in _DELEGATE.findall(text)
        },
    )


def why_failed(text: str) -> str | None:
    """The reason of a run that failed, of what it printed, and its likely cause; None if it tells no reason."""
    reasons = _ERROR.findall(text)
    if not reasons:
        return None
    if _TOO_NEW.search(reasons[0]):
        return (
            f"{reasons[0]} Likely cause: the model is too new for the TFLite in this benchmark_model; take a newer one"
        )
    return str(reasons[0])


def _number(what: str, text: str, minimum: float = 1) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < minimum:
        raise DeviceError(
            f"benchmark_model: {what}: expected a number of at least {minimum}, found {text or 'nothing'}"
        )
    return value
