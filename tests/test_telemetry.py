"""What vitedge starts reports to nobody, and leaves no identifier behind. The apps' own tests ask them for the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.telemetry import left_behind, watch

IMPORTS = "import onnxruntime, openvino, ai_edge_litert.interpreter"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    watch(tmp_path / "home", monkeypatch)
    return tmp_path / "home"


def run(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=120)


def test_nothing_is_left_behind(home: Path) -> None:
    run(f"import vitedge; {IMPORTS}")
    assert left_behind(home) == set()


@pytest.mark.parametrize(("runtime", "trace"), [("onnxruntime", "deviceid"), ("openvino", "openvino_ga_cid")])
def test_the_runtimes_alone_leave_something(runtime: str, trace: str, home: Path) -> None:
    run(f"import {runtime}")
    assert trace in left_behind(home)


def test_the_users_own_setting_stays(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    run(f"import vitedge; {IMPORTS}")
    assert "deviceid" in left_behind(home)
