"""The driver's end of one measuring process (`worker.py`): started, asked, watched, and always ended."""

import json
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from vitedge.runtimes.errors import VitedgeError

_TAIL_BYTES, _TAIL_LINES = 4000, 12


class BenchmarkError(VitedgeError):
    """A measurement is impossible: the measuring process cannot load the artifact, died, or took too long."""


class Command(Protocol):
    """What gives the command line of a measuring process, one that answers as `worker.py` does."""

    def __call__(self, *, threads: int, batch: int, cpus: Sequence[int]) -> list[str]: ...


def worker_command(artifact: Path, *, threads: int, batch: int, cpus: Sequence[int] = ()) -> list[str]:
    """The command line of a measuring process, which may run on all CPUs, or on some."""
    return _command("worker", str(artifact), threads=threads, batch=batch, cpus=cpus)


def torch_command(
    artifact: Path, *, model: str | None = None, threads: int, batch: int, cpus: Sequence[int] = ()
) -> list[str]:
    """The same for the checkpoint that an artifact was built from, or `model` if that moved, in PyTorch."""
    moved = [] if model is None else ["--model", model]
    return _command("torch_worker", str(artifact), *moved, threads=threads, batch=batch, cpus=cpus)


def _command(module: str, *arguments: str, threads: int, batch: int, cpus: Sequence[int]) -> list[str]:
    """-P keeps the current folder out of its imports: an `onnx.py` that lies there must not be measured instead."""
    pinned = ["--cpus", ",".join(map(str, cpus))] if cpus else []
    run = [sys.executable, "-P", "-m", f"vitedge.benchmarks.{module}", *arguments]
    return [*run, "--threads", str(threads), "--batch", str(batch), *pinned]


class Worker:
    """One measuring process that has loaded its artifact and is idle between requests."""

    load_ms: float
    first_ms: float

    def __init__(self, process: subprocess.Popen[str], errors: IO[bytes], limit_seconds: float) -> None:
        self._process = process
        self._errors = errors
        self._limit_seconds = limit_seconds
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_loaded(self) -> None:
        ready = self._reply()
        self.load_ms, self.first_ms = float(ready["load_ms"]), float(ready["first_ms"])

    def run(self, count: int) -> list[float]:
        """Latencies of `count` inferences in milliseconds."""
        latencies: list[float] = self._ask({"run": count})["latencies_ms"]
        return latencies

    def memory(self) -> tuple[int | None, int | None]:
        """Peak memory so far, and memory before the artifact was loaded, in bytes."""
        reply = self._ask({"memory": True})
        return reply["peak_bytes"], reply["bare_bytes"]

    def cpu_seconds(self) -> float:
        """CPU time of all its threads since it started."""
        return float(self._ask({"cpu": True})["cpu_seconds"])

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        # A process that is gone cannot be written to; _reply then says why it went.
        if self._process.poll() is None:
            with suppress(BrokenPipeError):
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        try:
            line = self._replies.get(timeout=self._limit_seconds)
        except queue.Empty:
            raise BenchmarkError(
                f"{self._command}: the measuring process gave no answer within {self._limit_seconds:g} s; this machine"
                f" may be too slow or too short of memory for this model{self._tail()}"
            ) from None
        if line is None:
            self._replies.put(None)  # whoever asks again hears it again
            raise BenchmarkError(self._obituary())
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchmarkError(reply["error"])
        return reply

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._replies.put(line)
        self._replies.put(None)

    def _obituary(self) -> str:
        code = self._process.wait()
        how = f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how = "was killed, as happens when memory runs out; close other programs, or measure a smaller --batch"
        elif code == -signal.SIGILL:
            how = "used an instruction that this CPU does not have; install a build of the runtime for this CPU"
        elif code < 0:
            how = f"was killed by signal {-code}, a crash inside the runtime"
        return f"the measuring process {how}; to see it alone run: {self._command}{self._tail()}"

    @property
    def _command(self) -> str:
        assert isinstance(self._process.args, list)
        return shlex.join(self._process.args)

    def _tail(self) -> str:
        """The end of what the process wrote to its standard error; it ends first: it shares the file position."""
        self._process.kill()
        self._process.wait()
        size = self._errors.seek(0, 2)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        lines = self._errors.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        return "".join(f"\n  | {line}" for line in lines)

    def end(self) -> None:
        """Kills the process: it has nothing to save, and a runtime's own way of ending may hang."""
        self._process.kill()
        self._reader.join()
        with suppress(BrokenPipeError):  # what was written and not read
            assert self._process.stdin is not None
            self._process.stdin.close()


@contextmanager
def running(command: Sequence[str], *, limit_seconds: float) -> Iterator[Worker]:
    """Runs a measuring process for the length of a block; it ends with the block, however that ends.

    Args:
        command: Its command line, as from `worker_command`.
        limit_seconds: Longest time for loading, and for each request.

    Yields:
        The process, its artifact loaded.

    Raises:
        BenchmarkError: It cannot load its artifact, died, or exceeded the limit.
    """
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            # Not in the terminal's foreground group: Ctrl-C is for the driver, which ends the process in its own order.
            process_group=0,
        )
        with process:
            worker = Worker(process, errors, limit_seconds)
            try:
                worker.wait_until_loaded()
                yield worker
            finally:
                worker.end()
