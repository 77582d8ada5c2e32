"""Packages of the npm registry that tests need."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.unpacked import unpacked

# Headers of the C API, the Android library and the iOS framework, in one package.
ONNX_RUNTIME = ("com.github.asus4.onnxruntime", "0.4.9")

needs_npm = pytest.mark.skipif(os.environ.get("CI") is None and shutil.which("npm") is None, reason="needs npm")


def npm_package(name: str, version: str) -> Path:
    """The folder of a package, as it was published; its scripts are not run."""

    def make(folder: Path) -> None:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        (packed,) = folder.iterdir()
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        packed.unlink()

    return unpacked(f"npm-{name.replace('/', '+')}-{version}", make) / "package"
