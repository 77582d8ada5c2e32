"""A tiny classifier, its images, and one build of it that the tests of commands share."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.adb_device import AdbDevice, connected
from tests.commands.sshd import Host, serving
from tests.tiny import save_checkpoint, save_images
from vitedge.cli import app

CLASSES = 3
LINEARS = 2 * 4 + 2  # four per layer, patches, classifier


@dataclass(frozen=True)
class Site:
    """Where a user's things are."""

    model: Path
    calibration: Path
    evaluation: Path
    cache: Path

    def vitedge(self, *arguments: str | Path) -> Result:
        """Runs the command line in this process; stdout and stderr are apart in the result."""
        return CliRunner(env={"VITEDGE_CACHE": str(self.cache), "COLUMNS": "160"}).invoke(
            app, [str(a) for a in arguments]
        )

    def build(self, out: Path, *options: str | Path) -> Result:
        """Builds without a benchmark unless the options ask for one."""
        judged = () if "--eval" in options else ("--eval", self.evaluation)
        images = () if "--images" in options else ("--images", self.calibration)
        measured = () if "--bench-seconds" in options else ("--bench-seconds", "0")
        return self.vitedge("build", self.model, *images, *judged, *measured, "--out", out, *options)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("site")
    return Site(
        model=save_checkpoint(root / "model", classes=CLASSES),
        calibration=save_images(root / "calibration", 36, classes=CLASSES, seed=1),
        evaluation=save_images(root / "evaluation", 24, classes=CLASSES, seed=2),
        cache=root / "cache",
    )


@pytest.fixture(scope="session")
def built(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "out"
    result = site.build(out, "--keep-fp32", "--bench-seconds", "0.2")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def for_arm64(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What boards and phones are told to take; other operators in OpenVINO, and other weights than `built`."""
    out = tmp_path_factory.mktemp("arm64") / "out"
    result = site.build(out, "--target", "arm64")
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="session")
def bundled(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    result = site.vitedge("bundle", built, "--out", out, "--with-fp32")
    assert result.exit_code == 0, result.stderr
    assert "onnx, openvino, tflite" in result.stdout
    return out


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A device that is reached over ssh."""
    with serving(tmp_path_factory.mktemp("sshd")) as host:
        yield host


@pytest.fixture(scope="session")
def searched(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("searched") / "out"
    before = report_of(built)["accuracy"]["onnx"]["outputs"]["last_hidden_state"]["sqnr_db"]
    assert site.build(out, "--runtime", "onnx", "--min-sqnr", str(before + 3)).exit_code == 0
    return out


@pytest.fixture(scope="session")
def said(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a device says of the build: this machine, with the build's bundle."""
    bundle = tmp_path_factory.mktemp("bundle") / "bundle"
    assert site.vitedge("bundle", built, "--out", bundle, "--with-fp32").exit_code == 0

    def ask(*words: str) -> Any:
        command = [sys.executable, "-m", "vitedge.device", *words, "--json"]
        return json.loads(subprocess.run(command, cwd=bundle, capture_output=True, check=True).stdout)

    selftest, bench = ask("selftest"), ask("bench", "--seconds", "0.1")
    return {"format": "vitedge-device/1", "device": "ssh://pi@board", "selftest": selftest, "bench": bench}


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of adb's, and keys, that nobody else uses."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANDROID_ADB_SERVER_PORT", str(port))
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        subprocess.run(["adb", "start-server"], check=True, capture_output=True)
        yield
        subprocess.run(["adb", "kill-server"], check=True, capture_output=True)


@pytest.fixture
def phone(adb_server: None, tmp_path: Path) -> Iterator[AdbDevice]:
    with connected(AdbDevice(tmp_path / "phone")) as device:
        yield device


def report_of(out: Path) -> Any:
    return json.loads((out / "report.json").read_text())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
