"""The measuring process: what it answers, how it dies, where it may run."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vitedge.benchmarks import worker as worker_module
from vitedge.benchmarks.process import BenchmarkError, running
from vitedge.runtimes.errors import VitedgeError


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_pixels_come_as_the_contract_says(script: Callable[..., list[str]], dtype: str) -> None:
    """The fake encoder refuses another type or layout."""
    with running(script(dtype=dtype), limit_seconds=20) as worker:
        assert len(worker.run(2)) == 2


def test_protocol_survives_a_runtime_that_prints(script: Callable[..., list[str]]) -> None:
    chatter = """print('hello'); os.write(1, b'{"latencies_ms": [0]}\\n'); os.system('echo from a child')"""
    with running(script(call=chatter, load=chatter), limit_seconds=20) as worker:
        assert worker.load_ms > 0
        assert worker.first_ms > 0
        assert len(worker.run(3)) == 3
        assert min(worker.run(2)) > 0


def test_one_request_is_that_many_inferences(script: Callable[..., list[str]]) -> None:
    with running(script(call="assert self.calls <= 6, f'call {self.calls}'"), limit_seconds=20) as worker:
        worker.run(5)  # and the first one
        with pytest.raises(BenchmarkError, match="call 7"):
            worker.run(1)


def test_memory_is_of_the_fresh_process(script: Callable[..., list[str]]) -> None:
    large = np.ones(500 << 20, np.uint8)
    with running(script(), limit_seconds=20) as worker:
        peak_bytes, bare_bytes = worker.memory()
    assert peak_bytes is not None
    assert bare_bytes is not None
    assert 5 << 20 < bare_bytes <= peak_bytes < 200 << 20 < large.nbytes


def test_memory_has_the_peak_of_loading(script: Callable[..., list[str]]) -> None:
    """The twin of the test above: what the process itself held for a moment does count."""
    with running(script(load="np.ones(300 << 20, np.uint8)"), limit_seconds=20) as worker:
        peak_bytes, bare_bytes = worker.memory()
    assert peak_bytes is not None
    assert bare_bytes is not None
    assert peak_bytes - bare_bytes > 290 << 20


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("raise ValueError('bad kernel')", r"exit code 1.*-P .*worker0\.py\n(  \| .*\n)+  \| ValueError: bad kernel$"),
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "memory runs out"),
        ("os.kill(os.getpid(), signal.SIGILL)", "instruction that this CPU does not have"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11, a crash inside the runtime"),
    ],
)
def test_dying_worker_says_how_and_what_to_do(script: Callable[..., list[str]], call: str, expected: str) -> None:
    later = f"\n        if self.calls > 2: {call}"
    with running(script(call=later), limit_seconds=20) as worker, pytest.raises(BenchmarkError, match=expected):
        worker.run(9)


def test_dying_while_loading(script: Callable[..., list[str]]) -> None:
    with (
        pytest.raises(BenchmarkError, match="MemoryError"),
        running(script(load="raise MemoryError"), limit_seconds=20),
    ):
        pytest.fail("it must not get here")


def test_error_of_the_wrapper_is_passed_on_as_it_is(script: Callable[..., list[str]]) -> None:
    command = script(load="raise RuntimeMissingError('openvino is not installed; install it with: pip …')")
    with pytest.raises(BenchmarkError, match=r"^openvino is not installed; install it with: pip …$"):
        running(command, limit_seconds=20).__enter__()


def test_hanging_worker(script: Callable[..., list[str]]) -> None:
    call = "\n        if self.calls > 1: print('stuck here', flush=True); time.sleep(60)"
    with running(script(call=call), limit_seconds=3) as worker, pytest.raises(BenchmarkError) as caught:
        worker.run(1)
    assert "no answer within 3 s" in str(caught.value)
    assert str(caught.value).endswith("\n  | stuck here")


def test_asking_a_worker_that_is_gone(script: Callable[..., list[str]]) -> None:
    with running(script(), limit_seconds=20) as worker:
        worker._process.kill()
        worker._process.wait()
        for _ in range(2):
            with pytest.raises(BenchmarkError, match="the measuring process was killed"):
                worker.run(1)


def test_worker_ends_when_its_driver_died(script: Callable[..., list[str]]) -> None:
    found = subprocess.run(script(), input="", timeout=20, check=True, capture_output=True, encoding="utf-8")
    assert [json.loads(line).keys() for line in found.stdout.splitlines()] == [{"ready", "load_ms", "first_ms"}]
    assert found.stderr == ""


def test_unknown_request_is_an_error(script: Callable[..., list[str]]) -> None:
    with running(script(), limit_seconds=20) as worker, pytest.raises(BenchmarkError, match=r"found \{'walk': 1\}"):
        worker._ask({"walk": 1})


def test_cpu_time_counts_every_thread(script: Callable[..., list[str]]) -> None:
    busy = "end = time.thread_time() + 0.1\n        while time.thread_time() < end: pass"
    both = f"import threading\n        def spin():\n            {busy.replace('        while', '            while')}"
    call = f"{both}\n        other = threading.Thread(target=spin); other.start(); spin(); other.join()"
    with running(script(call=call), limit_seconds=20) as worker:
        before = worker.cpu_seconds()
        worker.run(1)
        assert worker.cpu_seconds() - before >= 0.2


# Pinning, in real processes


def affinity(script: Callable[..., list[str]], path: Path, cpus: tuple[int, ...]) -> set[int]:
    """CPUs that a measuring process, and a thread that it starts, may run on."""
    look = f"open({str(path)!r}, 'a').write(repr(os.sched_getaffinity(0)) + chr(10))"
    load = f"import threading; look = lambda: {look}; look(); t = threading.Thread(target=look); t.start(); t.join()"
    with running(script(load=load, cpus=cpus), limit_seconds=20) as worker:
        worker.run(1)
    own, threads = path.read_text().splitlines()
    assert own == threads
    return set(eval(own))


def test_worker_is_pinned_before_it_loads(script: Callable[..., list[str]], tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    for cpu in sorted(usable)[:2]:
        assert affinity(script, tmp_path / f"pinned{cpu}", (cpu,)) == {cpu}
    assert affinity(script, tmp_path / "free", ()) == usable
    assert os.sched_getaffinity(0) == usable  # the driver is as it was


@pytest.mark.parametrize("others", [False, True])
def test_cpu_that_does_not_exist_is_refused(script: Callable[..., list[str]], others: bool) -> None:
    """The system refuses a set of which no CPU exists, and cuts down one of which some do."""
    usable = sorted(os.sched_getaffinity(0))
    cpus = (usable[0], 1000) if others else (1000,)
    expected = (
        f"^--cpus: expected some of the CPUs that this process may run on, {', '.join(map(str, usable))}, found 1000$"
    )
    with pytest.raises(BenchmarkError, match=expected):
        running(script(cpus=cpus), limit_seconds=20).__enter__()


def test_system_without_affinity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(VitedgeError, match=r"^--cpus: .* cannot pin a process to CPUs; leave the option out$"):
        worker_module.pin((0,))
