"""Measuring processes of real artifacts: a tiny encoder, lowered to each runtime."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.tiny import random_pixels, save_checkpoint
from vitedge.benchmarks.process import BenchmarkError, running, worker_command
from vitedge.converters.checkpoint import load_checkpoint
from vitedge.converters.lower import RUNTIMES, lower
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS

LIMIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an INT8 artifact for each runtime, of batch 2."""
    root = tmp_path_factory.mktemp("artifacts")
    checkpoint = load_checkpoint(str(save_checkpoint(root / "checkpoint")))
    images = [random_pixels(checkpoint.encoder.shape, 8)]
    plan, smoothed = make_plan(
        checkpoint.encoder,
        Calibration(observe(checkpoint.encoder, images), lambda: images, lambda: images, (-1, 1), "digest"),
        recipes=TARGETS["avx2"],
        target="avx2",
        checkpoint_digest=checkpoint.origin.digest,
    )
    for runtime in RUNTIMES:
        lower(
            runtime,
            root / runtime,
            encoder=smoothed,
            linears=plan.linears(runtime),
            checkpoint=checkpoint,
            plan=plan,
            batch=2,
            calibration={},
        )
    return root


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_times_and_memory_of_a_real_encoder(artifacts: Path, runtime: str) -> None:
    command = worker_command(artifacts / runtime, threads=1, batch=2)
    with running(command, limit_seconds=LIMIT_SECONDS) as worker:
        assert worker.load_ms > 0
        assert worker.first_ms > 0
        latencies_ms = worker.run(20)
        peak_bytes, bare_bytes = worker.memory()
    assert len(latencies_ms) == 20
    assert 0 < min(latencies_ms) <= max(latencies_ms) < LIMIT_SECONDS * 1000
    assert sum(latencies_ms) < 20 * LIMIT_SECONDS
    assert peak_bytes is not None
    assert bare_bytes is not None
    assert 20 << 20 < bare_bytes < peak_bytes < 4 << 30


def test_memory_never_shrinks(artifacts: Path) -> None:
    with running(worker_command(artifacts / "onnx", threads=1, batch=2), limit_seconds=LIMIT_SECONDS) as worker:
        before = worker.memory()
        worker.run(50)
        after = worker.memory()
    assert after[0] is not None
    assert before[0] is not None
    assert after[0] >= before[0]
    assert after[1] == before[1]


def test_a_batch_of_another_size_than_the_artifacts(artifacts: Path) -> None:
    """The wrapper cuts 3 images into calls of 2; it is measured as a user would meet it."""
    with running(worker_command(artifacts / "onnx", threads=1, batch=3), limit_seconds=LIMIT_SECONDS) as worker:
        assert len(worker.run(4)) == 4


def test_no_artifact(tmp_path: Path) -> None:
    command = worker_command(tmp_path, threads=1, batch=1)
    with (
        pytest.raises(BenchmarkError, match="found no manifest"),
        running(command, limit_seconds=LIMIT_SECONDS),
    ):
        pytest.fail("it must not get here")


def test_a_worker_killed_in_the_middle_of_a_run(artifacts: Path) -> None:
    """As the kernel does when memory runs out: the driver is waiting for an answer that will not come."""
    command = worker_command(artifacts / "onnx", threads=1, batch=2)
    with running(command, limit_seconds=LIMIT_SECONDS) as worker:
        os.kill(worker._process.pid, signal.SIGSTOP)  # it cannot answer before it is killed
        killer = threading.Timer(0.2, worker._process.kill)
        killer.start()
        with pytest.raises(BenchmarkError, match="was killed, as happens when memory runs out") as caught:
            worker.run(5)
        killer.join()
    assert "--threads 1 --batch 2" in str(caught.value)


def test_a_worker_that_hangs_is_killed_at_the_limit(artifacts: Path) -> None:
    command = worker_command(artifacts / "onnx", threads=1, batch=2)
    with running(command, limit_seconds=LIMIT_SECONDS) as worker:
        os.kill(worker._process.pid, signal.SIGSTOP)
        worker._limit_seconds = 0.2
        with pytest.raises(BenchmarkError, match=r"gave no answer within 0\.2 s; this machine may be too slow or"):
            worker.run(1)
        assert worker._process.returncode == -signal.SIGKILL


def test_a_worker_that_hangs_while_loading_is_killed_at_the_limit(tmp_path: Path) -> None:
    script = "import os, signal, sys; print(os.getpid(), file=open(sys.argv[1], 'w'), flush=True); signal.pause()"
    command = [sys.executable, "-c", script, str(tmp_path / "pid")]
    with pytest.raises(BenchmarkError, match="gave no answer within 2 s"), running(command, limit_seconds=2):
        pytest.fail("it must not get here")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_the_process_ends_with_the_block(artifacts: Path) -> None:
    command = worker_command(artifacts / "onnx", threads=1, batch=2)
    with pytest.raises(RuntimeError, match="of the driver"), running(command, limit_seconds=LIMIT_SECONDS) as worker:
        process = worker._process
        assert process.poll() is None
        raise RuntimeError("of the driver")
    assert process.returncode == -signal.SIGKILL
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdin.closed
    assert process.stdout.closed


def test_a_long_complaint_is_cut_to_its_end() -> None:
    script = "import sys; [print('line', n, file=sys.stderr) for n in range(5000)]; sys.exit(9)"
    with (
        pytest.raises(BenchmarkError) as caught,
        running([sys.executable, "-c", script], limit_seconds=LIMIT_SECONDS),
    ):
        pytest.fail("it must not get here")
    lines = str(caught.value).splitlines()
    assert "ended with exit code 9; to see it alone run: " in lines[0]
    assert lines[1:] == [f"  | line {number}" for number in range(4988, 5000)]
