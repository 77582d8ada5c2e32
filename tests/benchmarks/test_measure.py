"""The arithmetic and the order of measuring on made-up latencies, and the measuring process itself."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from vitedge.benchmarks import measure, worker
from vitedge.benchmarks.measure import BenchmarkError, Rival, interleaved, measure_all, measure_pair
from vitedge.benchmarks.process import running, torch_command, worker_command
from vitedge.benchmarks.speedup import speedup_of
from vitedge.runtimes.errors import ArtifactError, VitedgeError
from vitedge.runtimes.manifest import FileRecord, Manifest, Operations, TensorRecord, sha256_of
from vitedge.runtimes.preprocess import Preprocessing
from vitedge.runtimes.saturation import Saturation


class Clock:
    """A clock that only fake inferences advance, and a log of which ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int]] = []

    def runner(self, name: str, latency_ms: Callable[[float], float]) -> Any:
        def run(count: int) -> list[float]:
            self.log.append((name, count))
            latencies = []
            for _ in range(count):
                latencies.append(latency_ms(self.now))
                self.now += latencies[-1] / 1000
            return latencies

        return SimpleNamespace(run=run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def test_order_reverses_from_round_to_round(clock: Clock) -> None:
    runners = [clock.runner("a", lambda _: 500.0), clock.runner("b", lambda _: 600.0)]
    seen: list[int] = []
    rounds = interleaved(runners, seconds=0, minimum_rounds=3, progress=seen.append)
    assert [name for name, count in clock.log] == ["a", "b", *"abbaabba"]
    assert [count for _, count in clock.log] == [2, 2, *[1] * 8]
    assert rounds == [([500.0], [600.0])] * 4  # an even number, each in the order given
    assert seen == [1, 2, 3, 4]


def test_blocks_and_rounds_fill_the_time_given(clock: Clock) -> None:
    rounds = interleaved(
        [clock.runner("a", lambda _: 1.0), clock.runner("b", lambda _: 50.0)], seconds=8, minimum_rounds=6
    )
    assert {(len(first), len(second)) for first, second in rounds} == {(200, 4)}  # 8 s / 20 rounds / 2
    assert len(rounds) == 16
    assert clock.now < 8 + 2 * 0.4  # and the warm-up


def test_slow_encoders_get_their_minimum_of_rounds(clock: Clock) -> None:
    rounds = interleaved([clock.runner("a", lambda _: 15_000.0)], seconds=8, minimum_rounds=6)
    assert rounds == [([15_000.0],)] * 6


def test_first_of_a_block_is_discarded(clock: Clock) -> None:
    runner = clock.runner("a", lambda _: 1.0)
    cold = SimpleNamespace(run=lambda count: [99.0, *runner.run(count - 1)])
    rounds = interleaved([cold], seconds=1, minimum_rounds=2)
    assert {latency for (block,) in rounds for latency in block} == {1.0}


def test_drifting_clock_does_not_bias_the_speedup(clock: Clock) -> None:
    """Latencies that grow by 30 % during the measurement, true speedup 2."""
    runners = [
        clock.runner("int8", lambda now: 20 * (1 + 0.04 * now)),
        clock.runner("fp32", lambda now: 40 * (1 + 0.04 * now)),
    ]
    assert speedup_of(interleaved(runners, seconds=8, minimum_rounds=6)).median == pytest.approx(2, rel=0.002)


# The measuring process, with a fake encoder in place of an artifact.

SERVE = """
import os, signal, sys, time
import numpy as np
from vitedge.benchmarks.worker import serve
from vitedge.runtimes.errors import RuntimeMissingError
from vitedge.runtimes.preprocess import Preprocessing

CONTRACT = Preprocessing(4, 6, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

class Fake:
    calls = 0

    def __call__(self, pixel_values):
        assert pixel_values.shape == (2, 3, 4, 6) and pixel_values.dtype == np.float32
        self.calls += 1
        {call}

def load():
    {load}
    return Fake(), CONTRACT

serve(load, batch=2, cpus={cpus})
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., list[str]]:
    def write(call: str = "pass", load: str = "pass", cpus: tuple[int, ...] = ()) -> list[str]:
        path = tmp_path / f"worker{len(list(tmp_path.iterdir()))}.py"
        path.write_text(SERVE.format(call=call, load=load, cpus=cpus))
        return [sys.executable, "-P", str(path)]

    return write


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


@pytest.mark.parametrize("request_line", ['{"quit": true}\n', ""])
def test_worker_ends_when_told_and_when_its_driver_died(script: Callable[..., list[str]], request_line: str) -> None:
    found = subprocess.run(script(), input=request_line, timeout=20, check=True, capture_output=True, encoding="utf-8")
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
        worker.pin((0,))


# Real artifacts: an ONNX model of one node.


@pytest.fixture
def artifacts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two artifacts, in folders whose names need quoting."""
    yield save_artifact(tmp_path / "my int8", "int8"), save_artifact(tmp_path / "my fp32", "fp32")


def save_artifact(folder: Path, precision: str) -> Path:
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"])],
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 3, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path)
    Manifest(
        runtime="onnx",
        precision=precision,
        target="avx2",
        instruction_sets=("any",),
        minimum_runtime="1.16",
        files=(FileRecord(path.name, sha256_of(path), path.stat().st_size),),
        inputs=(TensorRecord("pixel_values", "float32", ("batch", 3, 8, 8), "NCHW"),),
        outputs=(TensorRecord("pooled", "float32", ("batch", 3, 1, 1), "NCHW"),),
        preprocessing=Preprocessing(8, 8, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=(),
        operations=Operations((), {}, 0, 1),
        saturation=Saturation(True, "nothing is integer", 0, 0, {}),
        source={},
        calibration={},
        plan_digest="",
        tools={},
    ).save(folder)
    return folder


def test_report_of_real_artifacts(
    artifacts: tuple[Path, Path], script: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies in the current folder must not be imported in place of the runtime.
    for name in ("onnxruntime", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    int8, fp32 = artifacts
    done: list[int] = []
    report = measure_all(
        {"both": (int8, fp32), "alone": (int8, None)},
        threads=1,
        batch=3,
        seconds=0.1,
        cpus=(min(os.sched_getaffinity(0)),),
        rivals={"alone": [Rival("a sleeper", "int8", None, lambda **_: script(call="time.sleep(0.02)"))]},
        progress=done.append,
    )
    assert done == [1, 1]  # pairs
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document.keys() == {"format", "machine", "threads", "batch", "cpus", "pairs", "best", "flags"}
    assert (document["format"], document["threads"], document["batch"]) == ("vitedge-bench/2", 1, 3)
    assert document["cpus"] == [min(os.sched_getaffinity(0))]
    both, alone = document["pairs"]["both"], document["pairs"]["alone"]
    assert (both["artifact"]["precision"], both["fp32"]["precision"]) == ("int8", "fp32")
    assert both["verdict"] == report.verdict("both")
    assert both["verdict"].startswith(report.pairs["both"].verdict)
    assert both["speedup"]["low"] <= both["speedup"]["median"] <= both["speedup"]["high"]
    assert both["speedup"]["rounds"] >= 6
    for result in (both["artifact"], both["fp32"], alone["artifact"]):
        assert result["samples"] >= 6
        assert 0 < result["latency_median_ms"] <= result["latency_p90_ms"]
        assert 0 < result["latency_interval_ms"][0] <= result["latency_interval_ms"][1]
        assert 0 <= result["outlier_share"] < 0.5
        assert result["latency_iqr_ms"] >= 0
        assert min(result["load_ms"], result["first_ms"]) > 0
        assert 10 << 20 < result["bare_bytes"] <= result["peak_bytes"]
        assert result["size_bytes"] == (int8 / "model.onnx").stat().st_size
    assert (alone["fp32"], alone["speedup"]) == (None, None)
    assert alone["verdict"] == "no FP32 artifact to compare with"
    (rival,) = alone["rivals"]
    assert rival["result"]["latency_median_ms"] > 20
    assert rival["speedup"]["low"] > 1
    assert " faster than a sleeper here" in rival["verdict"]
    assert (both["rivals"], rival["result"]["size_bytes"]) == ([], None)
    assert 0 <= both["conditions"]["others_share"] <= 1
    assert document["best"]["verdict"] == report.best.verdict


def test_damaged_artifact_is_refused_in_its_own_words(artifacts: tuple[Path, Path]) -> None:
    model = artifacts[1] / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(BenchmarkError, match=r"my fp32/model\.onnx: expected SHA-256 .* copy the artifact again"):
        measure_pair(*artifacts, threads=1)


def test_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found no manifest"):
        measure_pair(tmp_path, None, threads=1)


def test_interrupt_ends_both_workers(
    artifacts: tuple[Path, Path], script: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    command = script(load=f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')")
    monkeypatch.setattr(measure, "worker_command", lambda *_, **__: command)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_pair(*artifacts, threads=1, seconds=0.01, progress=interrupt)
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_command_of_a_worker() -> None:
    found = worker_command(Path("a b"), threads=2, batch=4)
    assert found == [
        sys.executable, "-P", "-m", "vitedge.benchmarks.worker", "a b", "--threads", "2", "--batch", "4"
    ]  # fmt: skip
    assert worker_command(Path("a b"), threads=2, batch=4, cpus=(0, 3)) == [*found, "--cpus", "0,3"]
    assert torch_command(Path("a b"), model="m", threads=2, batch=4) == [
        *found[:3], "vitedge.benchmarks.torch_worker", "a b", "--model", "m", *found[5:]
    ]  # fmt: skip
