"""`vitedge bench --device adb:…` without `--benchmark-model`: the real adb, and a Python that plays Termux's."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import Result

from tests.adb_device import AdbDevice
from tests.commands.conftest import Site

pytestmark = pytest.mark.skipif(
    os.environ.get("CI") is None and shutil.which("adb") is None, reason="needs Debian's adb"
)
PYTHON = f'exec {sys.executable} "$@"'


def bench(site: Site, artifact: Path, phone: AdbDevice, *options: str) -> Result:
    return site.vitedge("bench", artifact, "--device", f"adb:{phone.serial}", "--seconds", "0.2", *options)


def files(phone: AdbDevice) -> set[str]:
    """All that lies on the phone but for what the tests' own scripts leave."""
    return {str(path.relative_to(phone.root)) for path in phone.root.rglob("*") if path.suffix != ".log"}


def test_tests_and_measures_in_termux(site: Site, built: Path, phone: AdbDevice) -> None:
    phone.install_termux(
        f'echo "$HOME $PREFIX $TMPDIR ${{LD_LIBRARY_PATH-unset}} $PATH" >> "$ROOT/environment.log"; {PYTHON}'
    )
    before = files(phone)
    result = bench(site, built, phone, "--json")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["format"], document["device"]) == ("vitedge-device/1", f"adb:{phone.serial}")
    assert document["selftest"]["passed"] is True
    passed = {check["artifact"] for check in document["selftest"]["checks"] if check["step"] == "inference"}
    (run,) = document["bench"]["runs"]
    assert passed == run["pairs"].keys() == {"onnx", "openvino", "tflite"}
    assert all(pair["speedup"] is not None for pair in run["pairs"].values())
    # What Android says of itself, beside what Python reads.
    for machine in (document["selftest"]["machine"], run["machine"]):
        assert (machine["system"], machine["product"], machine["soc"]) == ("Android 14", "Phone 1", "SM8550")
        assert (machine["architecture"], machine["max_frequency_mhz"]) == (os.uname().machine, 3187.2)
    assert (run["before"]["battery_percent"], run["after"]["thermal_status"]) == (85.0, "none")
    assert files(phone) == before
    assert list((phone.termux / "usr/tmp").iterdir()) == phone.left() == []
    home = "/data/data/com.termux/files"
    expected = f"{home}/home {home}/usr {home}/usr/tmp unset {home}/usr/bin:"
    lines = (phone.root / "environment.log").read_text().replace(str(phone.root), "").splitlines()
    assert all(line.startswith(expected) for line in lines if "/vitedge-" not in line)
    assert any(f"{home}/usr/tmp/vitedge-" in line for line in lines)  # the self-test's temporary folder is ours


def test_as_text_with_what_makes_it_doubtful(site: Site, built: Path, phone: AdbDevice) -> None:
    phone.install_termux()
    phone.answer("settings.low_power", "1")
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"adb:{phone.serial}: QTI SM8550, 2× Cortex-A520 + ")
    assert "PASS  inference onnx" in result.stdout
    assert "doubt: power saving is on, which lowers the clock: turn it off" in result.stdout


def test_a_python_of_the_shell(site: Site, built: Path, phone: AdbDevice) -> None:
    """One in the shell's own folder, whose name a shell would run; no app is entered."""
    path = phone.place / "python; touch trapped"
    path.write_text(f"#!/bin/sh\n{PYTHON}\n")
    path.chmod(0o755)
    phone.program("run-as", "echo 'run-as: must not be asked' >&2; exit 1")
    before = files(phone)
    result = bench(site, built / "onnx", phone, "--device-python", "/data/local/tmp/python; touch trapped", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["selftest"]["passed"] is True
    assert files(phone) == before
    assert not Path("trapped").exists()


def test_a_failed_self_test_is_exit_code_1(site: Site, built: Path, phone: AdbDevice, tmp_path: Path) -> None:
    """The bundle is changed when it has arrived: no number is taken of it."""
    change = 'case "$*" in *selftest*) echo x >> artifacts/onnx/model.onnx;; esac'
    phone.install_termux(f"{change}; {PYTHON}")
    result = bench(site, built / "onnx", phone, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["bench"] is None
    assert "model.onnx: expected" in document["selftest"]["checks"][0]["found"]
    assert list((phone.termux / "usr/tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("unknown package: com.termux", "com.termux is not installed there (unknown package: com.termux); install"),
        ("package not debuggable: com.termux", "run-as lets nobody into com.termux, as it is no debug build"),
        ("Package 'com.termux' is not debuggable", "adb forward tcp:8022 tcp:8022, and --device ssh://127.0.0.1:8022"),
        ("couldn't stat /data/user/0/com.termux: Permission denied", "run-as does not let adb into com.termux (could"),
        ("inaccessible or not found", "run-as does not let adb into com.termux (inaccessible or not found)"),
    ],
)
def test_termux_that_cannot_be_entered(site: Site, built: Path, phone: AdbDevice, said: str, message: str) -> None:
    phone.program("run-as", f'echo "run-as: {said}" >&2; exit 1')
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "or measure the TFLite model alone, with --benchmark-model" in result.stderr
    assert phone.left() == []


def probed(python: str, place: str, free_bytes: int, *found: str) -> str:
    """A Python that answers the probe so."""
    answer = json.dumps([[int(part) for part in python.split(".")], place, free_bytes, found])
    return f"echo '{answer}'"


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("exit 127", "found no /data/data/com.termux/files/usr/bin/python3 there; in Termux: pkg install python"),
        (probed("3.9", "/data", 1 << 40), "expected Python 3.11 or newer, found 3.9; in Termux: pkg install python"),
        (probed("3.12", "/data", 1 << 40), "python3 has no numpy and no onnxruntime; in Termux: pkg install python-n"),
        (probed("3.12", "/data", 1 << 40, "numpy"), "python3 has no onnxruntime; in Termux: pkg install python-numpy"),
        (probed("3.12", "/data", 1 << 40, "onnxruntime"), "python3 has no numpy; in Termux: pkg install python-numpy"),
        (probed("3.12", "/data", 1000, "numpy", "onnxruntime"), "MB of free space in /data, found 0 MB; make room"),
        ("echo garbage", "Python failed there: garbage"),
        ("echo []", "does not answer as Python does"),
        ("echo 1", "does not answer as Python does"),
        (probed("3.12", "data", 1 << 40, "numpy", "onnxruntime"), "does not answer as Python does"),
    ],
)  # fmt: skip
def test_pythons_that_will_not_do(site: Site, built: Path, phone: AdbDevice, python: str, message: str) -> None:
    phone.install_termux(python)
    before = files(phone)
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    assert message in result.stderr
    assert files(phone) == before


def test_a_python_that_never_answers(
    site: Site, built: Path, phone: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitedge.benchmarks.remote_python._ANSWER_SECONDS", 1.0)
    phone.install_termux("exec sleep 20")
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    assert "no answer within 1 s; is the device awake?" in result.stderr


def test_no_python_in_termux(site: Site, built: Path, phone: AdbDevice) -> None:
    phone.install_termux()
    (phone.termux / "usr/bin/python3").unlink()
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    assert "found no /data/data/com.termux/files/usr/bin/python3 there; in Termux: pkg install python" in result.stderr


def test_no_space_while_it_arrives(site: Site, built: Path, phone: AdbDevice) -> None:
    phone.install_termux(
        f'case "$*" in *tarfile*) cat > /dev/null; echo "No space left on device" >&2; exit 1;; esac; {PYTHON}'
    )
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    assert "the bundle did not arrive: No space left on device" in result.stderr
    assert list((phone.termux / "usr/tmp").iterdir()) == []


@pytest.mark.parametrize("word", ["mkdir", "tarfile", "selftest", "bench"])
def test_connection_lost_for_a_moment(site: Site, built: Path, phone: AdbDevice, word: str) -> None:
    """Before a step; adb connects again, and the folder is removed."""
    phone.install_termux()
    phone.drops_on = word
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    assert any(said in result.stderr for said in ("found it offline", "connection was lost")), result.stderr
    assert "is left there" not in result.stderr
    assert list((phone.termux / "usr/tmp").iterdir()) == []


def test_connection_lost_for_good(site: Site, built: Path, phone: AdbDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitedge.benchmarks.adb._RETURN_SECONDS", 1.0)
    phone.install_termux()
    phone.drops_on, phone.drops = "selftest", 99
    result = bench(site, built / "onnx", phone)
    assert result.exit_code == 2
    (left,) = (phone.termux / "usr/tmp").iterdir()
    assert f"/data/data/com.termux/files/usr/tmp/{left.name} is left there: remove it" in result.stderr
    assert result.stderr.count("; and ") == 1  # what failed first is said too


def test_a_phone_that_is_gone_at_the_clean_up_costs_no_measurement(
    site: Site, built: Path, phone: AdbDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitedge.benchmarks.adb._RETURN_SECONDS", 1.0)
    phone.install_termux()
    phone.drops_on, phone.drops = "rmtree", 99
    result = bench(site, built / "onnx", phone, "--json")
    assert result.exit_code == 0, result.stderr
    (left,) = (phone.termux / "usr/tmp").iterdir()
    assert f"/data/data/com.termux/files/usr/tmp/{left.name} is left there: remove it" in result.stderr
    document = json.loads(result.stdout)
    assert document["left"].endswith("is left there: remove it when the device is back")
    (run,) = document["bench"]["runs"]
    assert run["pairs"]["onnx"]["artifact"]["latency_median_ms"] > 0
    assert any(flag.startswith("nothing is known of the device's state afterwards") for flag in run["flags"])


def running(phone: AdbDevice) -> list[str]:
    """Command lines of what works on the phone, in Termux's temporary folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str((process / "cwd").readlink()).startswith(str(phone.termux)):
                found.append((process / "cmdline").read_text())
    return found


@pytest.mark.parametrize("cut", [True, False])
def test_neither_an_interrupt_nor_a_cut_leaves_anything(built: Path, phone: AdbDevice, cut: bool) -> None:
    """In the middle of the benchmark: the phone's processes end with the connection, which hangs up the shell alone."""
    phone.install_termux()
    command = [sys.executable, "-m", "vitedge", "bench", str(built / "onnx"), "--device", f"adb:{phone.serial}"]
    with subprocess.Popen([*command, "--seconds", "60"], stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):
            if any("vitedge.benchmarks.worker" in line for line in running(phone)):
                break
            time.sleep(0.05)
        assert len(list((phone.termux / "usr/tmp").iterdir())) == 1
        if cut:
            phone.disconnect()
        else:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == (2 if cut else 130), said
    assert list((phone.termux / "usr/tmp").iterdir()) == []
    for _ in range(100):
        if not running(phone):
            break
        time.sleep(0.05)
    assert running(phone) == []
