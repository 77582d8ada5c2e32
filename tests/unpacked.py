"""What tests download: unpacked below `build/`, by whichever process needs it first, and kept."""

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_KEPT = Path(__file__).parents[1] / "build" / "tests"


def unpacked(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of that name; `make` fills it if nobody did, or if who did was interrupted."""
    folder, done = _KEPT / name, _KEPT / f"{name}.done"
    _KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(_KEPT / f"{name}.lock"):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
