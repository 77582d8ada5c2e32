"""Makes bundles: a folder, or a zip, that a device needs nothing else for but Python, numpy and one runtime."""

import json
import shutil
import string
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import vitedge
import vitedge.runtimes
from vitedge.benchmarks.machine import describe_machine
from vitedge.converters.folders import Mark, replacing_folder
from vitedge.converters.golden import write_with_artifacts
from vitedge.converters.license import LICENSE_FOLDER, copy_license, kept_license
from vitedge.runtimes.bundle import BUNDLE_FILE, FORMAT, Bundle
from vitedge.runtimes.encoder import DISTRIBUTIONS
from vitedge.runtimes.errors import ArtifactError, OutputError
from vitedge.runtimes.file_records import files_below
from vitedge.runtimes.files import replacing_file
from vitedge.runtimes.golden import GOLDEN_FILE, GOLDEN_FOLDER
from vitedge.runtimes.manifest import Manifest, artifact_folders, fp32_twins, load_manifest, verify_files

_PACKAGE = Path(vitedge.__file__).parent
# What measures on a device; the rest of the benchmarks needs a host.
_BENCHMARKS = ("__init__", "best", "flags", "machine", "measure", "memory", "process", "results", "speedup", "worker")
_MARK = Mark(BUNDLE_FILE, FORMAT, "vitedge bundle")
_TEMPLATES = Path(__file__).with_name("bundle_files")
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # equal contents give equal bytes


@dataclass(frozen=True)
class Ingredients:
    """What goes into a bundle: artifact folders and manifests by name, FP32 twins, and the folder of their build."""

    folders: Mapping[str, Path]
    manifests: Mapping[str, Manifest]
    twins: Mapping[str, Path]
    build: Path

    @property
    def golden(self) -> Path:
        return self.build / GOLDEN_FOLDER


def gather(artifacts: Sequence[Path], *, fp32: Literal["none", "kept", "all"]) -> Ingredients:
    """Finds and checks what a bundle of these artifacts needs.

    Args:
        artifacts: Artifact folders of one build, or the build's folder for all of them.
        fp32: Which FP32 twins go along: those that the build kept, or all, or it is an error.

    Raises:
        ArtifactError: No artifact there, two of one runtime, a damaged file, no golden vectors, or no twin.
    """
    folders: dict[str, Path] = {}
    for path in artifacts:
        for runtime, folder in artifact_folders(path).items():
            if runtime in folders and folders[runtime].resolve() != folder.resolve():
                raise ArtifactError(f"{folder}: a bundle holds one {runtime} artifact, and {folders[runtime]} is in it")
            folders[runtime] = folder
    manifests = {name: load_manifest(folder) for name, folder in folders.items()}
    for name, folder in folders.items():
        verify_files(manifests[name], folder)
    builds = {folder.resolve().parent for folder in folders.values()}
    if len(builds) > 1:
        raise ArtifactError(f"expected artifacts of one build, found some of {', '.join(map(str, sorted(builds)))}")
    build = builds.pop()
    if not (build / GOLDEN_FOLDER / GOLDEN_FILE).is_file():
        raise ArtifactError(f"{build}: expected golden vectors in {GOLDEN_FOLDER}; build again to get them")
    twins, missing = fp32_twins(folders) if fp32 != "none" else ({}, {})
    if missing and fp32 == "all":
        first = next(iter(missing.values()))
        raise ArtifactError(f"{first}: no FP32 twin; build with --keep-fp32, or leave --with-fp32 out")
    for twin in twins.values():
        verify_files(load_manifest(twin), twin)
    return Ingredients(folders, manifests, twins, build)


def write_bundle(ingredients: Ingredients, out: Path) -> int:
    """Writes the bundle, as a zip if `out` ends in .zip, in place at once or not at all.

    Returns:
        Its size in bytes.

    Raises:
        ArtifactError: Artifacts and golden vectors do not belong together, or an artifact is not exact here.
        OutputError: `out` holds something that is no bundle, or cannot be written.
    """
    if out.suffix != ".zip":
        with replacing_folder(out, _MARK) as new:
            _fill(ingredients, new)
            return sum(path.stat().st_size for path in new.rglob("*") if path.is_file())
    if out.is_dir():
        raise OutputError(f"{out}: expected a zip file, found a folder; pass another --out")
    with replacing_file(out) as new:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
            _fill(ingredients, Path(folder))
            _zip(Path(folder), new)
    return out.stat().st_size


def _fill(ingredients: Ingredients, folder: Path) -> None:
    artifacts = {name: f"artifacts/{name}" for name in ingredients.folders}
    twins = {name: f"fp32/{name}" for name in ingredients.twins}
    for paths, places in ((ingredients.folders, artifacts), (ingredients.twins, twins)):
        for name, path in paths.items():
            _copy_artifact(path, folder / places[name])
    kind = describe_machine().kind
    write_with_artifacts(ingredients.golden, ingredients.folders, folder / GOLDEN_FOLDER, kind=kind)
    copy_license(kept_license(ingredients.build), folder / LICENSE_FOLDER)
    _copy_package(folder / "vitedge")
    (folder / "requirements.txt").write_text(_requirements(ingredients.manifests), encoding="utf-8")
    _write_texts(ingredients, folder)
    bundle = Bundle(folder, vitedge.__version__, artifacts, twins, files_below(folder))
    (folder / BUNDLE_FILE).write_text(json.dumps(bundle.to_json(), indent=1) + "\n", encoding="utf-8")


def _copy_artifact(source: Path, destination: Path) -> None:
    destination.mkdir(parents=True)
    manifest = load_manifest(source)
    for record in manifest.files:
        shutil.copyfile(source / record.name, destination / record.name)
    manifest.save(destination)


def _copy_package(folder: Path) -> None:
    """The device half of this package, laid out as it is installed."""
    for name in ("__init__", "device"):
        _copy_module(_PACKAGE / f"{name}.py", folder / f"{name}.py")
    runtimes = Path(vitedge.runtimes.__file__).parent
    for path in sorted(runtimes.glob("*.py")):
        _copy_module(path, folder / "runtimes" / path.name)
    for name in _BENCHMARKS:
        _copy_module(Path(__file__).with_name(f"{name}.py"), folder / "benchmarks" / f"{name}.py")


def _copy_module(source: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, destination)


def _requirements(manifests: Mapping[str, Manifest]) -> str:
    """What pip installs on the device; one of the runtimes is enough."""
    lines = [
        "# numpy and one of the runtimes; opencv-python-headless only to decode photographs of your own",
        "numpy>=2.0",
    ]
    for name, manifest in manifests.items():
        distribution = DISTRIBUTIONS[manifest.runtime]
        tested = manifest.tools.get(distribution, "unknown")
        lines.append(f"{distribution}>={manifest.minimum_runtime}  # {name}; made and tested with {tested}")
    return "\n".join(lines) + "\n"


def _write_texts(ingredients: Ingredients, folder: Path) -> None:
    first = next(iter(ingredients.manifests.values()))
    text = f" (its text is in `{LICENSE_FOLDER}/`)" if kept_license(ingredients.build) else ""
    values = {
        "source": first.published.source.source,
        "license": f"{first.source.license or 'not stated by the checkpoint'}{text}",
        "names": ", ".join(ingredients.folders),
        "first": next(iter(ingredients.folders)),
        "version": vitedge.__version__,
    }
    for name in ("README.md", "LICENSES.md"):
        template = string.Template((_TEMPLATES / name).read_text(encoding="utf-8"))
        (folder / name).write_text(template.substitute(values), encoding="utf-8", errors="backslashreplace")


def _zip(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                info = zipfile.ZipInfo(f"bundle/{file.relative_to(folder).as_posix()}", _ZIP_DATE)
                info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                with file.open("rb") as data, archive.open(info, "w", force_zip64=True) as entry:
                    shutil.copyfileobj(data, entry)
