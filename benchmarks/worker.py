"""The measuring process: fresh, and holding exactly one artifact, so that its memory and its load time are its own.

    python -m vitedge.benchmarks.worker ARTIFACT --threads 1 --batch 1

It speaks JSON, one object a line, so that it can be driven over any pipe (`process.py` drives it here). It loads, runs
once, and says

    {"ready": true, "load_ms": …, "first_ms": …}     or     {"error": "…"} and ends.

Then it answers, until told to quit or until its standard input ends (its driver died):

    {"run": 20}       {"latencies_ms": [20 numbers]}      each is one call of the wrapper with the same input
    {"memory": true}  {"peak_bytes": …, "bare_bytes": …}  None where the system does not say
    {"quit": true}    nothing; it ends

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
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import numpy as np

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder
from vitedge.runtimes.errors import VitedgeError
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest

# What a wrapper imports when it loads, by runtime.
_MODULES: Mapping[str, str] = MappingProxyType(
    {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert.interpreter"}
)
_SEED = 0


def serve(load: Callable[[], RuntimeEncoder], *, batch: int, prepare: Callable[[], None] = lambda: None) -> None:
    """Loads one encoder and answers on the standard output until told to quit.

    Args:
        load: Makes the encoder; timed.
        batch: Images per call.
        prepare: Imports what `load` needs; not timed, and its memory counts as bare.
    """
    replies = _claim_stdout()
    try:
        prepare()
        bare_bytes = _memory_bytes("VmRSS")
        start = time.perf_counter_ns()
        encoder = load()
        load_ms = (time.perf_counter_ns() - start) / 1e6
        contract = encoder.manifest.preprocessing
        shape = (batch, 3, contract.height, contract.width)
        pixel_values = np.random.default_rng(_SEED).standard_normal(shape, dtype=np.float32)
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
                _reply(replies, {"peak_bytes": _memory_bytes("VmHWM"), "bare_bytes": bare_bytes})
            case {"quit": True}:
                return
            case unknown:
                _reply(replies, {"error": f"expected run, memory or quit, found {unknown}"})


def main() -> None:
    """Serves the artifact named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m vitedge.benchmarks.worker", description="Measures one artifact.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    serve(
        lambda: load_encoder(options.artifact, threads=options.threads),
        batch=options.batch,
        prepare=lambda: _import_runtime(options.artifact),
    )


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


def _latency_ms(encoder: RuntimeEncoder, pixel_values: FloatArray) -> float:
    start = time.perf_counter_ns()
    encoder(pixel_values)
    return (time.perf_counter_ns() - start) / 1e6


def _memory_bytes(field: str) -> int | None:
    """A field of Linux's /proc/self/status, such as VmHWM."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kibibytes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kibibytes[0]) * 1024 if kibibytes else None


if __name__ == "__main__":
    main()
