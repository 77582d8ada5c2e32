"""`bundle.json`: what travels to a device, so that it can be tested and measured there.

artifacts/<name>/    artifact folders, as a build made them        fp32/<name>/    their FP32 twins, if wanted
golden/              golden vectors of these artifacts             vitedge/        the device half of this package
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import mapping, parse_json, plain_path, text
from vitedge.runtimes.file_records import FileRecord, damages, files_from_json, files_to_json

FORMAT = "vitedge-bundle/1"
BUNDLE_FILE = "bundle.json"
_MAX_JSON_BYTES = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """The contents of `bundle.json`, and where it lies; folders are relative to that, by the artifact's name."""

    folder: Path
    version: str
    artifacts: Mapping[str, str]
    twins: Mapping[str, str]
    files: Mapping[str, FileRecord]

    def damages(self) -> dict[str, str]:
        """What is wrong with files that are not as `bundle.json` describes them, by path."""
        return damages(self.folder, self.files, BUNDLE_FILE)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "vitedge": self.version,
            "artifacts": dict(self.artifacts),
            "fp32": dict(self.twins),
            "files": files_to_json(self.files),
        }


def load_bundle(folder: Path) -> Bundle:
    """Reads `folder/bundle.json`, without looking at the files that it names.

    Raises:
        ArtifactError: There is none, or it is not one that this version can read.
    """
    path = folder / BUNDLE_FILE
    try:
        size_bytes = path.stat().st_size
        document = parse_json(path.read_text(encoding="utf-8")) if size_bytes <= _MAX_JSON_BYTES else None
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"{folder}: expected a bundle, found no {BUNDLE_FILE}; vitedge bundle OUT --out DIR makes one"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected a JSON file ({error}); copy the bundle again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else f"{size_bytes} bytes of something else"
        raise ArtifactError(f"{path}: expected format {FORMAT}, found {found}; copy the bundle again")
    try:
        return Bundle(
            folder,
            text(document["vitedge"]),
            {name: plain_path(value) for name, value in mapping(document["artifacts"]).items()},
            {name: plain_path(value) for name, value in mapping(document["fp32"]).items()},
            files_from_json(document["files"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: not readable ({type(error).__name__}: {error}); copy the bundle again") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; copy the bundle again") from error
