"""The licence of a checkpoint, as far as its folder states one, for those who pass artifacts on."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

LICENSE_FOLDER = "license"  # of a build, a bundle and an app
_MAX_BYTES = 1 << 20
_MAX_FILES = 8
# A model card begins with YAML between two lines of dashes (https://huggingface.co/docs/hub/model-cards).
_DASHES = "---"
_NAME = re.compile(r"[\w.+ ()-]{1,80}", re.ASCII)


@dataclass(frozen=True)
class License:
    """Its name, None if the checkpoint states none, and the files that hold its text."""

    name: str | None
    files: tuple[Path, ...]


def license_of(folder: Path) -> License:
    """What a checkpoint's folder says: `license` at the head of its README.md, or the first line of a LICENSE file."""
    found = sorted(path for path in folder.glob("LICENSE*") if path.is_file() and path.stat().st_size <= _MAX_BYTES)
    files = tuple(found[:_MAX_FILES])
    heads = (line.strip() for path in files for line in _text(path).splitlines())
    names = [*_stated(_text(folder / "README.md")), next((head for head in heads if head), "")]
    return License(next((name for name in names if _NAME.fullmatch(name)), None), files)


def copy_license(files: Sequence[Path], folder: Path) -> None:
    """Copies its text into a folder to make, if there is any."""
    if files:
        folder.mkdir()
    for path in files:
        shutil.copyfile(path, folder / path.name)


def kept_license(build: Path) -> tuple[Path, ...]:
    """The text that a build kept of its checkpoint's licence."""
    return tuple(sorted((build / LICENSE_FOLDER).glob("LICENSE*")))


def _stated(card: str) -> list[str]:
    """Names in a model card, the most telling first: a licence that the hub has no word for is `other` there."""
    first, *lines = [line.strip() for line in card.splitlines()] or [""]
    front = lines[: lines.index(_DASHES)] if first == _DASHES and _DASHES in lines else []
    pairs = (line.partition(":") for line in front)
    fields = {key: value.strip().strip("\"'") for key, _, value in pairs}
    name = fields.get("license", "")
    return [fields["license_name"], name] if name == "other" and "license_name" in fields else [name]


def _text(path: Path) -> str:
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
