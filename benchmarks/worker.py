"""The measuring process: fresh, and holding exactly one artifact, so that its memory and its load time are its own.

    python -m vitedge.benchmarks.worker ARTIFACT --threads 1 --batch 1 [--cpus 0,1]

It speaks JSON, one object a line, so that it can be driven over any pipe (`process.py` drives it here). It loads, runs
once, and says

    {"ready": true, "load_ms": …, "first_ms": …}     or     {"error": "…"} and ends.

Then it answers, until its standard input ends:

    {"run": 20}       {"latencies_ms": [20 numbers]}      each is one call of the wrapper with the same input
    {"memory": true}  {"peak_bytes": …, "bare_bytes": …}  None where the system does not say
    {"cpu": true}     {"cpu_seconds": …}                  CPU time of all its threads so far

`load_ms` is the construction of the wrapper, hence with the verification of the files' hashes and with the runtime's
compilation, without the import of the runtime. `bare_bytes` is the memory after that import, before the artifact.
`peak_bytes` is the kernel's VmHWM, which starts at zero with a program; getrusage's ru_maxrss starts at the parent's.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from vitedge.benchmarks.memory import memory_bytes
from vitedge.runtimes.errors import VitedgeError
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.preprocess import Preprocessing

# What a wrapper imports when it loads, by runtime.
_MODULES: Mapping[str, str] = MappingProxyType(
    {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert.interpreter"}
)
_SEED = 0
Encode = Callable[[Any], object]


def serve(
    load: Callable[[], tuple[Encode, Preprocessing]],
    *,
    batch: int,
    cpus: Sequence[int] = (),
    prepare: Callable[[], None] = lambda: None,
) -> None:
    """Loads one encoder and answers on the standard output until the standard input ends.

    Args:
        load: Makes the encoder, and says what input it takes; timed.
        batch: Images per call.
        cpus: The only CPUs it may run on, from before `prepare`; empty leaves that to the system.
        prepare: Imports what `load` needs; not timed, and its memory counts as bare.
    """
    replies = _claim_stdout()
    try:
        if cpus:
            pin(cpus)
        prepare()
        bare_bytes = memory_bytes("VmRSS")
        start = time.perf_counter_ns()
        encoder, contract = load()
        load_ms = (time.perf_counter_ns() - start) / 1e6
        images = np.random.default_rng(_SEED).integers(0, 256, (batch, contract.height, contract.width, 3), np.uint8)
        pixel_values = contract.batch(list(images))
        first_ms = _latency_ms(encoder, pixel_values)
    except VitedgeError as error:
        _reply(replies, {"error": str(error)})
        return
    _reply(replies, {"ready": True, "load_ms": load_ms, "first_ms": first_ms})
    for line in sys.stdin:
        match json.loads(line):
            case {"run": int(count)}:
                _reply(replies, {"latencies_ms": [_latency_ms(encoder, pixel_values) for _ in range(count)]})
            case {"memory": True}:
                _reply(replies, {"peak_bytes": memory_bytes("VmHWM"), "bare_bytes": bare_bytes})
            case {"cpu": True}:
                _reply(replies, {"cpu_seconds": time.process_time()})
            case unknown:
                _reply(replies, {"error": f"expected run, memory or cpu, found {unknown}"})


def pin(cpus: Sequence[int]) -> None:
    """Restricts this thread, and all threads that it starts from now on, to some CPUs.

    Raises:
        VitedgeError: The system has no such notion, or no such CPU.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise VitedgeError(f"--cpus: {sys.platform} cannot pin a process to CPUs; leave the option out")
    usable = sorted(os.sched_getaffinity(0))
    try:
        os.sched_setaffinity(0, cpus)
    except OSError:  # none of them exists
        pinned = set[int]()
    else:
        pinned = os.sched_getaffinity(0)  # the system leaves out those that do not exist, and says nothing
    if missing := sorted(set(cpus) - pinned):
        raise VitedgeError(
            f"--cpus: expected some of the CPUs that this process may run on, {', '.join(map(str, usable))},"
            f" found {', '.join(map(str, missing))}"
        )


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses a measuring process's command line, as `process.py` writes it."""
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--cpus", type=lambda text: [int(part) for part in text.split(",")], default=[])
    return parser.parse_args()


def main() -> None:
    """Serves the artifact named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitedge.benchmarks.worker", description="Measures one artifact.")
    parser.add_argument("artifact", type=Path)
    options = arguments(parser)

    def load() -> tuple[Encode, Preprocessing]:
        encoder = load_encoder(options.artifact, threads=options.threads)
        return encoder, encoder.manifest.preprocessing

    serve(load, batch=options.batch, cpus=options.cpus, prepare=lambda: _import_runtime(options.artifact))


def _import_runtime(artifact: Path) -> None:
    runtime = load_manifest(artifact).runtime
    importlib.import_module(f"vitedge.runtimes.{runtime}")
    # A runtime that is absent is reported by the wrapper, which knows how to install it.
    with contextlib.suppress(ImportError):
        importlib.import_module(_MODULES[runtime])


def _claim_stdout() -> TextIO:
    """Keeps the standard output for replies; what a runtime prints, from Python or C, goes to the standard error."""
    sys.stdout.flush()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return replies


def _reply(replies: TextIO, message: Mapping[str, Any]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _latency_ms(encoder: Encode, pixel_values: object) -> float:
    start = time.perf_counter_ns()
    encoder(pixel_values)
    return (time.perf_counter_ns() - start) / 1e6


if __name__ == "__main__":
    main()
