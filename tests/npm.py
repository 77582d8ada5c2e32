"""Packages of the npm registry that tests need, unpacked once and kept."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

_KEPT = Path(__file__).parents[1] / "build" / "npm"
# Headers of the C API, the Android library and the iOS framework, in one package.
ONNX_RUNTIME = ("com.github.asus4.onnxruntime", "0.4.9")

needs_npm = pytest.mark.skipif(os.environ.get("CI") is None and shutil.which("npm") is None, reason="needs npm")


def npm_package(name: str, version: str) -> Path:
    """The folder of a package, as it was published; its scripts are not run."""
    folder = _KEPT / f"{name.replace('/', '+')}-{version}"
    if not folder.is_dir():
        _KEPT.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "--pack-destination", str(_KEPT), f"{name}@{version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        packed = _KEPT / result.stdout.split()[-1]
        unpacked = folder.with_suffix(".new")
        shutil.rmtree(unpacked, ignore_errors=True)
        with tarfile.open(packed) as archive:
            archive.extractall(unpacked, filter="data")
        packed.unlink()
        (unpacked / "package").rename(folder)
        unpacked.rmdir()
    return folder
