"""Calibration results, kept under a fingerprint of everything that they depend on.

They live in `$VITEDGE_CACHE`, else `$XDG_CACHE_HOME/vitedge`, else `~/.cache/vitedge`. A cache that cannot be read or
written costs time, not the build, so it is reported and passed over.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vitedge.calibration.observers import InputStatistics
from vitedge.runtimes.errors import OutputError
from vitedge.runtimes.files import replacing_file

_log = logging.getLogger(__name__)
_FIELDS = ("minimum", "maximum", "mean", "covariance")
# The covariances of ViT-B take 540 MB; the oldest entries make room for new ones.
_MAX_BYTES = 4 << 30


def folder() -> Path:
    """Where calibration results are kept."""
    # Path.home() raises where nobody has a home, as in some containers.
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111
    return Path(os.environ.get("VITEDGE_CACHE") or Path(base) / "vitedge") / "calibration"


def fingerprint(**parts: str) -> str:
    """SHA-256 of named parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def load(key: str) -> Mapping[str, InputStatistics] | None:
    """What was stored under a fingerprint, by linear; None if there is nothing, or it is damaged."""
    path = folder() / f"{key}.safetensors"
    try:
        return _read(path) if path.is_file() else None
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        _log.warning("%s is unreadable or damaged, and is not used (%s)", path, error)
        return None


def store(key: str, statistics: Mapping[str, InputStatistics]) -> None:
    """Keeps statistics under a fingerprint."""
    path = folder() / f"{key}.safetensors"
    arrays = {f"{name}/{field}": getattr(found, field) for name, found in statistics.items() for field in _FIELDS}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(path) as new:
            save_file(arrays, new, metadata={"sha256": _digest(arrays)})
    except (OSError, OutputError, SafetensorError) as error:
        _log.warning("calibration is not cached: %s", error)
        return
    try:
        _make_room(path)
    except OSError as error:
        _log.warning("%s: old entries cannot be removed: %s", path.parent, error)


def _make_room(newest: Path) -> None:
    """Removes the oldest entries until all take at most `_MAX_BYTES`; the newest stays in any case.

    What another build removes meanwhile is gone all the same.
    """
    found = []
    for path in (*newest.parent.glob("*.safetensors"), *newest.parent.glob(".*.safetensors.new-*")):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = newest.stat().st_size
    for _, size, path in sorted(found, reverse=True):
        if path != newest:
            total += size
            if total > _MAX_BYTES:
                path.unlink(missing_ok=True)


def _read(path: Path) -> Mapping[str, InputStatistics]:
    with safe_open(path, "numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        written = (file.metadata() or {}).get("sha256")
    if written != _digest(arrays):
        raise ValueError("its numbers are not those that were written")
    names = sorted({name.rpartition("/")[0] for name in arrays})
    return {name: InputStatistics(*(arrays[f"{name}/{field}"] for field in _FIELDS)) for name in names}


def _digest(arrays: Mapping[str, NDArray[np.float32]]) -> str:
    """SHA-256 of names, shapes and numbers: a damaged number is a number too, and would become a damaged range."""
    sha = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return sha.hexdigest()
