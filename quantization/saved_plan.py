"""What plans of all targets share on disk: `plan.json`, to read and edit, beside `plan.safetensors`, the arrays."""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.fields import parse_json

PLAN_FILE, ARRAYS_FILE = "plan.json", "plan.safetensors"
_MAX_DOCUMENT_BYTES = 16 << 20


class SavedPlan(Protocol):
    """A plan as a build and a manifest see it."""

    @property
    def target(self) -> str: ...

    def digest(self) -> str:
        """SHA-256 of everything in the plan."""

    def save(self, folder: Path) -> None:
        """Writes `plan.json` and `plan.safetensors` into the folder."""


def digest_of(document: object, arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """SHA-256 of both halves of a plan."""
    sha = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return sha.hexdigest()


def write(folder: Path, document: Mapping[str, Any], arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Writes both halves of a plan into a folder."""
    (folder / PLAN_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    save_file(dict(arrays), folder / ARRAYS_FILE)
    shutil.copymode(folder / PLAN_FILE, folder / ARRAYS_FILE)  # its own would keep it from everybody else


def read_document(path: Path, form: str, keys: Collection[str]) -> Mapping[str, Any]:
    """Reads a `plan.json`.

    Args:
        path: The file.
        form: What its `format` must be.
        keys: All that it may hold: an edit under another name would count for nothing.

    Raises:
        PlanError: There is no such file, it is too large, no JSON, of another format, or holds another key.
    """
    try:
        if path.stat().st_size > _MAX_DOCUMENT_BYTES:
            raise PlanError(f"{path}: expected a plan of at most {_MAX_DOCUMENT_BYTES} bytes; build it again")
        document = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PlanError(f"{path}: no such plan; expected the {PLAN_FILE} of a build") from error
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    if not isinstance(document, dict) or document.get("format") != form:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise PlanError(
            f"{path}: expected a plan of format {form}, found {found}; plans of target npu and of CPU targets differ:"
            " pass its own --target, or build it again"
        )
    if unknown := document.keys() - set(keys):
        raise PlanError(f"{path}: expected {', '.join(sorted(keys))}, found {', '.join(sorted(unknown))}")
    return document


def check_checkpoint(path: Path, expected: str, found: str) -> None:
    """Refuses a plan of another checkpoint.

    Args:
        path: Of the plan.
        expected: Digest of the checkpoint that it was made for.
        found: Digest of the one at hand.

    Raises:
        PlanError: They differ.
    """
    if expected != found:
        raise PlanError(
            f"{path}: made for the checkpoint with digest {expected[:12]}…, but this one has {found[:12]}…;"
            " build from that checkpoint, or without --plan"
        )


def unreadable(path: Path, error: Exception) -> PlanError:
    """What to raise for a plan that contradicts itself."""
    return PlanError(f"{path} is not a readable plan ({type(error).__name__}: {error}); build it again")
