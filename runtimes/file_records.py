"""What files were when they were written: sizes and SHA-256, and whether they still are so where they arrived."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.runtimes.fields import count, mapping, plain_path, text


@dataclass(frozen=True)
class FileRecord:
    """A file by its name, or by its path below the folder that it is listed for."""

    name: str
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> "FileRecord":
        """Of a file as it is, under its own name or another."""
        return cls(name or path.name, sha256_of(path), path.stat().st_size)


def damage(path: Path, record: FileRecord, listed_in: str) -> str | None:
    """What is wrong with a file and what to do about it, or None if it is the one that the record describes."""
    try:
        if not path.is_file():
            return f"named in {listed_in}, but missing; copy the whole folder again"
        if (size := path.stat().st_size) != record.size_bytes:
            return f"expected {record.size_bytes} bytes as in {listed_in}, found {size}; copy the artifact again"
        found = sha256_of(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error}); give read permission, or copy the artifact again"
    if found != record.sha256:
        return (
            f"expected SHA-256 {record.sha256[:12]}… as in {listed_in}, found {found[:12]}…;"
            " the file was changed or damaged, copy the artifact again"
        )
    return None


def damages(folder: Path, files: Mapping[str, FileRecord], listed_in: str) -> dict[str, str]:
    """What is wrong with files of a folder, by path; empty if all are as their records describe them."""
    found = {name: damage(folder / name, record, listed_in) for name, record in files.items()}
    return {name: what for name, what in found.items() if what}


def files_below(folder: Path) -> dict[str, FileRecord]:
    """Every file of a folder as it is, by path."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: FileRecord.of(path, name) for name, path in paths.items()}


def files_to_json(files: Mapping[str, FileRecord]) -> dict[str, Any]:
    """Records by path, as `files_from_json` reads them."""
    return {name: {"sha256": record.sha256, "size_bytes": record.size_bytes} for name, record in files.items()}


def files_from_json(value: Any) -> dict[str, FileRecord]:
    """Records by path; whatever is missing is a KeyError.

    Raises:
        ArtifactError: A path may leave the folder, or a field is not what it must be.
    """
    return {
        plain_path(name): FileRecord(name, text(entry["sha256"]), count(entry["size_bytes"]))
        for name, entry in mapping(value).items()
    }


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
