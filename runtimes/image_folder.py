"""The images below a folder, in a fixed order."""

import os
from pathlib import Path
from typing import NoReturn

from vitedge.runtimes.errors import ImageSetError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def list_images(folder: Path) -> tuple[Path, ...]:
    """Every image below a folder, by path; hidden files and folders are left out, links to folders not followed.

    Raises:
        ImageSetError: No such folder, no image in it, or a folder in it that cannot be read.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises where a folder above may not be entered
        raise ImageSetError(f"{folder}: no such folder; expected one with images ({', '.join(SUFFIXES)})")
    found = []
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(parent) / name for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise ImageSetError(f"{folder}: no images in it or below; expected {', '.join(SUFFIXES)} files")
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).as_posix()))


def _refuse(error: OSError) -> NoReturn:
    """Part of a folder's images would be taken for all of them."""
    raise ImageSetError(f"{error.filename}: cannot be read ({error.strerror}); give read permission") from error
