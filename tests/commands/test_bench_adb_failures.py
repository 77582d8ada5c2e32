"""`vitedge bench --device adb:…` where something is in the way: told, and the device left as it was."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.adb_device import AdbDevice, connected
from tests.commands.benchmark_tool import bench, tool
from tests.commands.conftest import Site

pytestmark = [
    pytest.mark.skipif(os.environ.get("CI") is None and shutil.which("adb") is None, reason="needs Debian's adb"),
    pytest.mark.usefixtures("adb_server"),
]

# As it prints, and in that order.
TOO_NEW = """cat >&2 <<'END'
INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [int8.tflite]
INFO: Loaded model int8.tflite
ERROR: Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this builtin might be \
supported. Are you using an old TFLite binary with a newer model?

ERROR: Registration failed.

ERROR: Failed to initialize the interpreter
ERROR: Benchmarking failed.
END
exit 1"""


def test_model_changed_in_transit(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    phone.corrupts = True
    result = bench(site, built, phone, tool(tmp_path))
    assert result.exit_code == 2
    assert "benchmark_model was changed on its way: expected sha256 " in result.stderr
    assert phone.left() == []
    there = phone.program("tool", tool(tmp_path).read_text())
    result = bench(site, built, phone, f"device:{there}")
    assert "model.tflite was changed on its way: expected sha256 " in result.stderr
    assert phone.left() == []


def test_no_space(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    phone.answer("df", "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/block/dm-5 9 8 1 99% /data")
    result = bench(site, built, phone, tool(tmp_path))
    assert result.exit_code == 2
    assert "MB of free space in /data/local/tmp, found 0.0 MB; make room there" in result.stderr
    phone.answer("df", "df: no such command")
    assert "expected df to tell the free space" in bench(site, built, phone, tool(tmp_path)).stderr
    phone.answer("df", None)
    assert "df failed there (exit code 1)" in bench(site, built, phone, tool(tmp_path)).stderr
    assert phone.left() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "echo 'ERROR: Failed to load model' >&2; exit 1",
            "benchmark_model on the INT8 model failed there (exit code 1): Failed to load model",
        ),
        (
            TOO_NEW,
            "(exit code 1): Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'. An older version of this"
            " builtin might be supported. Are you using an old TFLite binary with a newer model? Likely cause: the"
            " model is too new for the TFLite in this benchmark_model; take a newer one",
        ),
        ("kill -SEGV $$", "benchmark_model on the INT8 model failed there (exit code 139)"),
        ("echo garbage; exit 0", "expected two lines with count= (warm-up and benchmark) and one of inference timings"),
        ("median=oops", "latency: expected a number of at least 1, found oops"),
    ],
)
def test_benchmark_model_fails(
    site: Site, built: Path, phone: AdbDevice, tmp_path: Path, change: str, message: str
) -> None:
    result = bench(site, built, phone, tool(tmp_path, change))
    assert result.exit_code == 2
    assert message in result.stderr
    assert phone.left() == []


def running(phone: AdbDevice) -> list[str]:
    """Command lines of `benchmark_model` on the phone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (process / "cmdline").read_text().replace("\0", " ")
            if f"{phone.root}" in line and "benchmark_model" in line and "pytest" not in line:
                found.append(line)
    return found


def test_benchmark_model_that_never_ends(
    site: Site, built: Path, phone: AdbDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitedge.benchmarks.measure_adb._LIMIT_SECONDS", 0.5)
    result = bench(site, built, phone, tool(tmp_path, "sleep 60"))
    assert result.exit_code == 2
    assert "no answer within 0.55 s: adb -s 127.0.0.1:" in result.stderr
    assert phone.left() == []
    assert running(phone) == []


@pytest.mark.parametrize("word", ["sync:", "chmod", "int8.tflite"])
def test_connection_lost_for_a_moment(site: Site, built: Path, phone: AdbDevice, tmp_path: Path, word: str) -> None:
    """While copying, in a step, and before a run; adb connects again, and the folder is removed."""
    phone.drops_on = word
    result = bench(site, built, phone, tool(tmp_path))
    assert result.exit_code == 2
    assert any(said in result.stderr for said in ("found it offline", "connection was lost", "failed there")), (
        result.stderr
    )
    assert "could not be removed" not in result.stderr
    assert phone.left() == []


def test_connection_lost_in_a_run(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    """adb itself ends with exit code 0 then."""
    script = "while [ ! -e $ROOT/cut ]; do touch $ROOT/waiting; sleep 0.05; done"
    with cut_when_waiting(phone):
        result = bench(site, built, phone, tool(tmp_path, script))
    assert result.exit_code == 2
    assert "found it offline; plug it in again" in result.stderr or "the connection was lost" in result.stderr
    assert phone.left() == []


@contextmanager
def cut_when_waiting(phone: AdbDevice) -> Iterator[None]:
    def cut() -> None:
        for _ in range(1200):
            if (phone.root / "waiting").exists():
                phone.disconnect()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=cut)
    thread.start()
    yield
    thread.join()


def test_connection_lost_for_good(
    site: Site, built: Path, phone: AdbDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error is told, and which folder is left."""
    monkeypatch.setattr("vitedge.benchmarks.adb._RETURN_SECONDS", 1.0)
    phone.drops_on, phone.drops = "int8.tflite", 99
    result = bench(site, built, phone, tool(tmp_path))
    assert result.exit_code == 2
    (folder,) = phone.left()
    assert f"and /data/local/tmp/{folder} could not be removed (no answer within 1 s: " in result.stderr
    assert f"remove it: adb -s {phone.serial} shell rm -r /data/local/tmp/{folder}" in result.stderr


def test_a_folder_that_cannot_be_removed_costs_no_measurement(
    site: Site, built: Path, phone: AdbDevice, tmp_path: Path
) -> None:
    phone.program("rm", "echo 'rm: Operation not permitted' >&2; exit 1")
    result = bench(site, built, phone, tool(tmp_path), "--json")
    assert result.exit_code == 0, result.stderr
    (folder,) = phone.left()
    left = f"{folder} could not be removed (rm: Operation not permitted); remove it: adb -s {phone.serial} shell rm -r"
    assert f"warning: left behind: /data/local/tmp/{left}" in result.stderr
    document = json.loads(result.stdout)
    assert left in document["left"]
    assert document["bench"]["runs"][0]["pairs"]["tflite"]["speedup"] is not None


def test_a_phone_that_is_gone_at_the_clean_up_costs_no_measurement(
    site: Site, built: Path, phone: AdbDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitedge.benchmarks.adb._RETURN_SECONDS", 1.0)
    phone.drops_on, phone.drops = "rm -rf", 99
    result = bench(site, built, phone, tool(tmp_path), "--json")
    assert result.exit_code == 0, result.stderr
    (folder,) = phone.left()
    assert f"left behind: /data/local/tmp/{folder} could not be removed (no answer within 1 s: " in result.stderr
    assert json.loads(result.stdout)["bench"]["runs"][0]["pairs"]["tflite"]["speedup"] is not None


def test_interrupt_leaves_nothing(built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    program = tool(tmp_path, "touch $ROOT/waiting; sleep 60")
    command = [sys.executable, "-m", "vitedge", "bench", str(built), "--device", f"adb:{phone.serial}"]
    command += ["--benchmark-model", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):
            if (phone.root / "waiting").exists():
                break
            time.sleep(0.05)
        assert len(phone.left()) == 1
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert phone.left() == []
    assert running(phone) == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("unauthorized", "expected it ready, found it unauthorized; unlock it, and allow USB debugging"),
        ("offline", "expected it ready, found it offline; plug it in again or restart it"),
    ],
)
def test_device_that_is_not_ready(site: Site, built: Path, tmp_path: Path, state: str, message: str) -> None:
    device = AdbDevice(tmp_path / "phone", authorized=state != "unauthorized", silent=state == "offline")
    with connected(device, state):
        result = bench(site, built, device, tool(tmp_path))
        assert device.left() == []
    assert result.exit_code == 2
    assert message in result.stderr


def test_device_that_is_absent(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    result = site.vitedge("bench", built, "--device", "adb:R5CT", "--benchmark-model", tool(tmp_path))
    assert result.exit_code == 2
    assert f"adb knows no device of that serial; it lists: {phone.serial} (device)" in result.stderr.replace("\n", " ")


def test_without_adb(site: Site, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = site.vitedge("bench", built, "--device", "adb:R5CT", "--benchmark-model", tool(tmp_path))
    assert result.exit_code == 2
    assert "adb is not installed here: install Android's platform-tools" in result.stderr
