"""A bundle's own package, run as on a device: isolated, with numpy and the runtimes, nothing else importable.

A `sitecustomize.py`, which every Python imports at its start, takes away what a device does not have: the processes
that measure are as isolated as the one that starts them.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitedge.runtimes.golden import GOLDEN_FOLDER

# A device has none of these; the test's own interpreter does.
ABSENT = ("torch", "transformers", "typer", "rich", "scipy", "sklearn", "safetensors", "onnx", "tensorflow", "cv2")
_SITE = """
import importlib.abc, importlib.metadata, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
def version(name, known=importlib.metadata.version):
    if name in {hidden!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
# Nor is this repository's own package there, which its finder would give in place of modules that a bundle lacks.
sys.meta_path[:] = [Absent(), *(finder for finder in sys.meta_path if "editable" not in repr(finder))]
importlib.metadata.version = version
"""


def write_site(folder: Path, *, absent: Sequence[str] = ABSENT, hidden: Sequence[str] = ()) -> Path:
    """Writes `sitecustomize.py` into a folder to put on PYTHONPATH: modules that are absent, packages that are."""
    (folder / "sitecustomize.py").write_text(_SITE.format(absent=set(absent), hidden=set(hidden)))
    return folder


def on_device(
    folder: Path,
    *arguments: str,
    absent: Sequence[str] = ABSENT,
    hidden: Sequence[str] = (),
    python: Sequence[str] = (sys.executable,),
    first: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's own package, and none of this repository's; before it, lines of Python, if there are any."""
    changed = f"{first}\nimport runpy\nrunpy.run_module('vitedge.device', run_name='__main__')"
    run = ["-c", changed] if first else ["-m", "vitedge.device"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as site:
        write_site(Path(site), absent=absent, hidden=hidden)
        return subprocess.run(
            [*python, *run, *arguments],
            cwd=folder,
            env={**environment, "PYTHONPATH": site, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )


def checks_of(folder: Path, *arguments: str) -> tuple[int, dict[tuple[str, str | None], Any]]:
    result = on_device(folder, "selftest", "--json", *arguments)
    document = json.loads(result.stdout)
    assert document["format"] == "vitedge-selftest/1"
    return result.returncode, {(check["step"], check["artifact"]): check for check in document["checks"]}


def sealed(folder: Path) -> None:
    """Writes hashes of files that were changed on purpose, so that only what follows from the change is found."""
    for name, root in (("golden.json", folder / GOLDEN_FOLDER), ("bundle.json", folder)):
        document = json.loads((root / name).read_text())
        for file, record in document["files"].items():
            data = (root / file).read_bytes()
            record |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        (root / name).write_text(json.dumps(document))
