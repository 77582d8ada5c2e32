"""A bundle's own package, run as on a device: isolated, with numpy and the runtimes, nothing else importable."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# A device has none of these; the test's own interpreter does.
ABSENT = ("torch", "transformers", "typer", "rich", "scipy", "sklearn", "safetensors", "onnx", "tensorflow", "cv2")
PROGRAM = """
import importlib.abc, runpy, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, ".")
sys.argv[:] = ["device", *{arguments!r}]
runpy.run_module("vitedge.device", run_name="__main__")
"""


def on_device(folder: Path, *arguments: str, absent: Sequence[str] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's own package, and none of this repository's."""
    program = PROGRAM.format(absent=set(absent), arguments=list(arguments))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def checks_of(folder: Path, *arguments: str) -> tuple[int, dict[tuple[str, str | None], Any]]:
    result = on_device(folder, "selftest", "--json", *arguments)
    document = json.loads(result.stdout)
    assert document["format"] == "vitedge-selftest/1"
    return result.returncode, {(check["step"], check["artifact"]): check for check in document["checks"]}
