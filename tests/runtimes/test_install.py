"""The promise of the device side: each extra, in an environment of its own, is enough, and brings no toolchain along.

These install from the package index, some 15 seconds each; VITEDGE_SKIP_INSTALL_TESTS=1 leaves them out.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import vitedge
from tests.runtimes.conftest import CLASSES, Artifacts
from tests.runtimes.pictures import awkward
from vitedge.converters.lower import RUNTIMES
from vitedge.runtimes.load import load_encoder

pytestmark = pytest.mark.skipif(
    os.environ.get("VITEDGE_SKIP_INSTALL_TESTS") == "1", reason="VITEDGE_SKIP_INSTALL_TESTS is set"
)

REPOSITORY = Path(__file__).parents[2]
LEFT_OUT = (".*", "build", "dist", "*.egg-info", "__pycache__", "vitedge-demo", "out")
MODULES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert"}
TOOLCHAINS = ("torch", "transformers", "onnx", "nncf", "tensorflow", "PIL", "safetensors", "sklearn", "scipy")
# What an embedder writes; the modules of the command line must not come along either.
PROGRAM = """
import importlib.util, json, sys
import numpy as np
import vitedge
from vitedge.runtimes.load import load_encoder

folder, image, saved, *unwanted = sys.argv[1:]
outputs = load_encoder(folder, threads=1).encode([image])
np.savez(saved, **outputs)
print(json.dumps({
    "sums": {name: float(np.abs(values).sum()) for name, values in outputs.items()},
    "installed_in": vitedge.__file__,
    "importable": [name for name in unwanted if importlib.util.find_spec(name)],
    "loaded": [name for name in (*unwanted, "typer", "rich", "vitedge.cli") if name in sys.modules],
}))
"""


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment with one installation of this repository."""

    folder: Path

    def run(self, program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs, away from this repository and from this environment's variables."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [self.folder / "bin" / program, *map(str, arguments)],
            cwd=self.folder,
            env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "COLUMNS": "160", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository: pip builds in the source tree and leaves its traces there."""
    copy = tmp_path_factory.mktemp("source") / "vitedge"
    return Path(shutil.copytree(REPOSITORY, copy, ignore=shutil.ignore_patterns(*LEFT_OUT)))


def installed(folder: Path, requirement: str) -> Environment:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True)
    environment = Environment(folder)
    result = environment.run("python", "-m", "pip", "install", "--quiet", requirement)
    assert result.returncode == 0, result.stderr
    return environment


def photograph(folder: Path) -> Path:
    path = folder / "orientation-6.jpg"
    path.write_bytes(awkward()[path.name])
    return path


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_one_extra_runs_its_artifact(runtime: str, source: Path, artifacts: Artifacts, tmp_path: Path) -> None:
    environment = installed(tmp_path / "venv", f"{source}[{runtime}]")
    folder, image, saved = artifacts.folders[runtime], photograph(tmp_path), tmp_path / "outputs.npz"
    unwanted: Sequence[str] = (*TOOLCHAINS, *(module for name, module in MODULES.items() if name != runtime))

    result = environment.run("python", "-I", "-c", PROGRAM, folder, image, saved, *unwanted)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert Path(report["installed_in"]).is_relative_to(environment.folder)
    assert report["importable"] == []
    assert report["loaded"] == []

    expected = load_encoder(folder, threads=1).encode([image])
    assert list(report["sums"]) == list(expected)
    with np.load(saved) as found:
        for name, values in expected.items():
            # The same bits if the index has the release that is pinned for the host; a flip or two if a newer one.
            np.testing.assert_allclose(found[name], values, atol=0.02, rtol=0)
            assert report["sums"][name] == pytest.approx(float(np.abs(values).sum()), rel=1e-3)
            assert report["sums"][name] > 0.1

    result = environment.run("vitedge", "run", folder, image, "--json")
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(result.stdout)["images"]
    assert row["image"] == str(image)
    assert len(row["classes"]) == CLASSES

    result = environment.run("vitedge", "inspect", folder, "--json")
    assert result.returncode == 0, result.stderr

    other = next(name for name in RUNTIMES if name != runtime)
    result = environment.run("vitedge", "run", artifacts.folders[other], image)
    assert result.returncode == 2
    assert f"is not installed; install it with: pip install 'vitedge[{other}]'" in result.stderr


@pytest.fixture(scope="module")
def base(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Without any extra."""
    return installed(tmp_path_factory.mktemp("base") / "venv", str(source))


def test_the_base_helps(base: Environment) -> None:
    result = base.run("vitedge", "--version")
    assert (result.returncode, result.stdout) == (0, f"vitedge {vitedge.__version__}\n"), result.stderr
    result = base.run("vitedge", "--help")
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in ("demo", "build", "verify", "bench", "run", "inspect"))
    for command in ("demo", "build", "verify", "bench", "run", "inspect"):
        result = base.run("vitedge", command, "--help")
        assert result.returncode == 0, result.stderr


def test_the_base_says_which_runtime_to_install(base: Environment, artifacts: Artifacts, tmp_path: Path) -> None:
    image = photograph(tmp_path)
    for runtime, folder in artifacts.folders.items():
        result = base.run("vitedge", "run", folder, image)
        assert result.returncode == 2
        assert f"is not installed; install it with: pip install 'vitedge[{runtime}]'" in result.stderr
        assert "Traceback" not in result.stderr
        result = base.run("vitedge", "inspect", folder)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("command", ["demo", "build", "verify", "bench"])
def test_the_base_says_what_the_host_installs(
    command: str, base: Environment, artifacts: Artifacts, tmp_path: Path
) -> None:
    """What needs PyTorch says so in a line."""
    photograph(tmp_path)
    arguments: dict[str, tuple[str | Path, ...]] = {
        "demo": ("--out", tmp_path / "out"),
        "build": (tmp_path, "--images", tmp_path, "--out", tmp_path / "out"),
        "verify": (artifacts.folders["onnx"], "--eval", tmp_path),
        "bench": (artifacts.folders["onnx"],),
    }
    result = base.run("vitedge", command, *arguments[command])
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    needed = "onnx" if command == "bench" else "convert"
    assert f"pip install 'vitedge[{needed}]'" in result.stderr
