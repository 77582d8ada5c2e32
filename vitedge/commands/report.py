"""`vitedge report`: one HTML page of everything that a build measured, and of what devices said."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitedge.commands.request import NPU
from vitedge.converters.folders import REPORT_FILE, REPORT_FORMAT
from vitedge.quantization.decisions import load_decisions
from vitedge.report.content import Documents, Page, page
from vitedge.report.devices import read_device
from vitedge.report.documents import ReportError, read_document
from vitedge.report.images import IMAGES_FOLDER, read_images
from vitedge.report.render import render
from vitedge.runtimes.errors import OutputError
from vitedge.runtimes.files import replacing_file
from vitedge.runtimes.manifest import artifact_folders, load_manifest

_ADVICE = "expected the OUT of a vitedge build of this version; build it again"
_SUFFIXES = (".html", ".htm")


def report(build: Path, out: Path, devices: Sequence[Path] = ()) -> int:
    """Writes the page, at once or not at all.

    Args:
        build: The folder of a build.
        out: The file to write; what is there is replaced.
        devices: Documents of devices, as `vitedge bench --device … --json` prints them.

    Returns:
        Its size in bytes.

    Raises:
        ReportError: Not a build, a damaged document, or a device's of something else.
        ArtifactError: A manifest is missing or damaged.
        PlanError: The plan is.
        OutputError: The file cannot be written, or is no .html file.
    """
    if out.suffix.lower() not in _SUFFIXES:
        raise OutputError(f"{out}: expected the name of an .html file to write")
    # Names of files may hold what is no text.
    html = render(_page(build, devices)).encode(errors="backslashreplace")
    with replacing_file(out) as new:
        new.write_bytes(html)
    return len(html)


def _page(build: Path, devices: Sequence[Path]) -> Page:
    def parse(document: Mapping[str, Any]) -> Page:
        manifests = {name: load_manifest(folder) for name, folder in artifact_folders(build).items()}
        recipes = {} if document["target"] == NPU else load_decisions(build).recipes
        kept = build / IMAGES_FOLDER
        images = read_images(kept) if kept.is_dir() else None  # builds without evaluation images keep none
        said = [read_device(path, document["source"]["digest"], manifests) for path in devices]
        return page(Documents(document, manifests, recipes, images), said)

    if not build.is_dir():
        raise ReportError(f"{build}: no such folder; {_ADVICE}")
    return read_document(build / REPORT_FILE, (REPORT_FORMAT,), _ADVICE, parse)
