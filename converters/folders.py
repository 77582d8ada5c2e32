"""Folders that are replaced whole or not at all.

A build writes into a hidden folder beside its destination and renames at the end, so that a build that fails, is
interrupted or killed leaves what was there before. Only a folder that vitedge made (a build holds `report.json` of our
format, other folders their own mark) is ever replaced.
"""

import errno
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vitedge.runtimes.errors import OutputError, VitedgeError

REPORT_FILE, REPORT_FORMAT = "report.json", "vitedge-report/1"
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_PROBE_BYTES = 1 << 20
_ABANDONED = 24 * 3600  # seconds: no build takes that long
_MAX_MARK_BYTES = 16 << 20


class Mark(NamedTuple):
    """What shows that vitedge made a folder: a JSON file in it, its format, and what the folder is called."""

    file: str
    format: str
    what: str


BUILD = Mark(REPORT_FILE, REPORT_FORMAT, "vitedge build")


@contextmanager
def replacing_folder(out: Path, mark: Mark = BUILD) -> Iterator[Path]:
    """Yields a fresh folder that becomes `out` when the block ends without an exception, and vanishes otherwise.

    Raises:
        OutputError: `check_replaceable` refuses it, or it cannot be written (a full disk, no permission).
    """
    out = out.resolve()
    _recover(out)
    check_replaceable(out, mark)
    unique = secrets.token_hex(4)  # not the process: in containers, their numbers repeat
    old, new = (out.parent / f".{out.name}.{kind}-{unique}" for kind in ("old", "new"))
    try:
        new.mkdir(parents=True)
        yield new
        _sync(new)
        try:
            if out.exists():
                out.rename(old)
            new.rename(out)
        except BaseException:  # an interrupt may arrive while either rename returns
            if old.exists() and not out.exists():
                old.rename(out)
            raise
    except VitedgeError:
        raise
    except Exception as error:
        refusal = error if isinstance(error, OSError) and error.errno in _NOT_WRITABLE else _refused_write(new)
        if refusal is None:
            raise
        raise OutputError(
            f"{out}: cannot be written ({refusal.strerror or refusal}); what was there before is unchanged"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_replaceable(out: Path, mark: Mark = BUILD) -> None:
    """Refuses a destination that holds something that vitedge did not build, or that cannot be renamed.

    Raises:
        OutputError: It is one.
    """
    if out.is_mount() or out.resolve() == Path.cwd():
        what = "a mount point" if out.is_mount() else "the current folder"
        raise OutputError(f"{out}: is {what}, which cannot be replaced; pass a folder in it, such as {out / 'out'}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        path = out / mark.file
        found = json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= _MAX_MARK_BYTES else None
        ours = isinstance(found, dict) and found.get("format") == mark.format
    except (OSError, ValueError, RecursionError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out}: exists and is not a {mark.what} (no {mark.file} of ours in it); pass another --out, or remove it"
        )


def _recover(out: Path) -> None:
    """Puts back what a build that was killed between its two renames had set aside; removes what others left."""
    name = glob.escape(out.name)
    set_aside = sorted(out.parent.glob(f".{name}.old-*"), key=lambda folder: folder.stat().st_mtime)
    if set_aside and not out.exists():
        set_aside.pop().rename(out)
    unfinished = (new for new in out.parent.glob(f".{name}.new-*") if time.time() - new.stat().st_mtime > _ABANDONED)
    for left in (*set_aside, *unfinished):
        shutil.rmtree(left, ignore_errors=True)


def _refused_write(folder: Path) -> OSError | None:
    """Why the disk takes nothing more, if so: the toolchains' writers hide it (OpenVINO says "iostream error")."""
    try:
        with (folder / "probe").open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _sync(folder: Path) -> None:
    """Flushes every file to the disk, so that a full disk is an error now and not an empty file later."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
