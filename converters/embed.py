"""Source code that runs an artifact in an app: what `vitedge embed` writes.

A platform is a folder of files in `embed_files/`: `common/` for every runtime, and a folder for each runtime that it
has. Files are copied as they are, so that they can be read, compiled and tested as they are; only those that end in
`.in` are filled in from the manifest first (`$name`, as in `string.Template`), and lose that ending. So all that
depends on the artifact is in one of them, the contract. Two platforms take the model in another form instead.

    OUT/model/     the artifact: model and manifest.json, and labels.txt, a line each, if it has labels
    OUT/license/   the text of the checkpoint's licence, if its folder held one
    OUT/golden/    golden vectors, with what this artifact gave on the host; index.txt lists them for simple readers;
                   where the input is int8 or int16, quantized.bin is what it holds of them
"""

import json
import math
import re
import shutil
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import vitedge
from vitedge.converters.folders import Mark, replacing_folder
from vitedge.converters.golden import write_with_artifacts
from vitedge.converters.license import LICENSE_FOLDER, copy_license, kept_license
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.golden import GOLDEN_FILE, GOLDEN_FOLDER, Golden
from vitedge.runtimes.instruction_sets import ANY, X86
from vitedge.runtimes.manifest import Manifest, TensorRecord, load_manifest, verify_files
from vitedge.runtimes.tflite import quantize

MARK = Mark("embed.json", "vitedge-embed/1", "folder that vitedge embed made")
_FILES = Path(__file__).with_name("embed_files")
_TEMPLATE = ".in"
_PLAIN = re.compile(r"[\w.+-]+", re.ASCII)
_INTEGERS = ("int8", "int16")  # with scale and zero point, which the sources of the other platforms of TFLite apply
_NO_INTEGERS = {
    "web": "LiteRT.js has tensors of float32, int32 and uint8 only",
    "mediapipe": "MediaPipe's image tasks take and give float32 and uint8 only",
}


@dataclass(frozen=True)
class Subject:
    """An artifact to embed: its folder and manifest, and the golden vectors of its build."""

    folder: Path
    manifest: Manifest
    golden: Path


def platforms() -> dict[str, tuple[str, ...]]:
    """The runtimes that each platform has."""
    return {
        folder.name: tuple(sorted(path.name for path in folder.iterdir() if path.name != "common"))
        for folder in sorted(_FILES.iterdir())
    }


def take(folder: Path, platform: str) -> Subject:
    """Finds and checks what embedding an artifact needs.

    Raises:
        ArtifactError: No artifact there, one that the platform cannot run, a damaged file, or no golden vectors.
    """
    known = platforms()
    if platform not in known:
        raise ArtifactError(f"--platform: expected one of {', '.join(known)}, found {platform}")
    manifest = load_manifest(folder)
    if manifest.runtime not in known[platform]:
        raise ArtifactError(
            f"{folder}: {platform} takes artifacts of {' or '.join(known[platform])}, found {manifest.runtime}; pass"
            f" OUT/{known[platform][0]} instead"
        )
    _check_tensors(folder, manifest, platform)
    verify_files(manifest, folder)
    if manifest.precision == "fp32":
        raise ArtifactError(f"{folder}: expected an INT8 artifact, found an FP32 twin; pass OUT/{manifest.runtime}")
    golden = folder.resolve().parent / GOLDEN_FOLDER
    if not (golden / GOLDEN_FILE).is_file():
        raise ArtifactError(f"{golden}: expected golden vectors there; build again to get them")
    return Subject(folder, manifest, golden)


def write(subject: Subject, platform: str, out: Path, *, kind: str) -> tuple[str, ...]:
    """Writes the folder, in place at once or not at all; `kind` is this CPU's (`runtimes/instruction_sets.py`).

    Returns:
        The paths of its files.

    Raises:
        ArtifactError: Artifact and golden vectors do not belong together, or the artifact is not exact here.
        OutputError: `out` holds something else, or cannot be written.
    """
    with replacing_folder(out, MARK) as folder:
        _copy_model(subject, folder / "model")
        copy_license(kept_license(subject.golden.parent), folder / LICENSE_FOLDER)
        golden = write_with_artifacts(
            subject.golden, {subject.manifest.runtime: subject.folder}, folder / GOLDEN_FOLDER, kind=kind
        )
        (folder / GOLDEN_FOLDER / "index.txt").write_text(_index(golden), encoding="utf-8")
        _write_quantized(subject.manifest.inputs[0], golden, folder / GOLDEN_FOLDER)
        filled = {**values(subject, golden), **_make_model(subject, golden, platform, folder)}
        for name, source in _sources(platform, subject.manifest.runtime):
            destination = folder / name.removesuffix(_TEMPLATE)
            destination.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(_TEMPLATE):
                template = string.Template(source.read_text(encoding="utf-8"))
                destination.write_text(template.substitute(filled), encoding="utf-8")
            else:
                shutil.copyfile(source, destination)
        document = {"format": MARK.format, "vitedge": vitedge.__version__, "platform": platform}
        (folder / MARK.file).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def values(subject: Subject, golden: Golden) -> Mapping[str, Any]:
    """What templates may name. Numbers are written so that every language reads them. Names go into source code only if
    they are plain ones, as those of our own lowerings are; what else a checkpoint says, its labels above all, stays in
    data files.

    Raises:
        ArtifactError: A name in the manifest is not plain.
    """
    manifest, contract = subject.manifest, subject.manifest.preprocessing
    first = manifest.inputs[0]
    bounds = golden.tolerances[manifest.runtime][ANY]
    first_bound = bounds["last_hidden_state"]
    shapes = {record.name: record.shape[1:] for record in manifest.outputs}
    lists = {
        "output_names": ", ".join(f'"{name}"' for name in shapes),
        "output_dtypes": ", ".join(f'"{record.dtype}"' for record in manifest.outputs),
        "output_scales": ", ".join(_scale(record) for record in manifest.outputs),
        "output_zero_points": ", ".join(_zero_point(record) for record in manifest.outputs),
        "output_sizes": ", ".join(str(math.prod(shape)) for shape in shapes.values()),
        "output_widths": ", ".join(str(shape[-1]) for shape in shapes.values()),
        "normalization": "and nothing else, as the encoder normalizes"
        if contract.dtype == "uint8"
        else "then normalization, as in `model/manifest.json`",
        "min_cosines": ", ".join(repr(bounds[name].min_cosine) for name in shapes),
        "min_sqnrs_db": ", ".join(repr(bounds[name].min_sqnr_db) for name in shapes),
    }
    found = {
        "version": vitedge.__version__,
        "runtime": manifest.runtime,
        "precision": manifest.precision,
        "target": manifest.target,
        "minimum_runtime": manifest.minimum_runtime,
        "model_file": manifest.files[0].name,
        "model_sha256": manifest.files[0].sha256,
        "weights_sha256": manifest.files[-1].sha256,  # OpenVINO keeps them apart
        "height": contract.height,
        "width": contract.width,
        "resample": contract.resample,
        "rescale_factor": repr(contract.rescale_factor),
        **{f"mean{index}": repr(value) for index, value in enumerate(contract.mean)},
        **{f"std{index}": repr(value) for index, value in enumerate(contract.std)},
        "input_name": first.name,
        "input_dtype": first.dtype,
        "input_layout": first.layout,
        "input_scale": _scale(first),
        "input_zero_point": _zero_point(first),
        "exact_on_x86": str(X86 in manifest.instruction_sets).lower(),
        "tokens": shapes["last_hidden_state"][0],
        "hidden": shapes["last_hidden_state"][1],
        "classes": len(manifest.labels),
        "min_cosine": repr(first_bound.min_cosine),
        "min_sqnr_db": repr(first_bound.min_sqnr_db),
    }
    for name, value in {**found, **{f"output {name}": name for name in shapes}}.items():
        if not _PLAIN.fullmatch(str(value)):
            raise ArtifactError(
                f"{subject.folder}: {name}: expected letters, digits and . _ + -, found {value!r}; build it again"
            )
    return found | lists


def _check_tensors(folder: Path, manifest: Manifest, platform: str) -> None:
    """Refuses batches, and types that the platform cannot pass."""
    first = manifest.inputs[0]
    if first.shape[0] not in (1, "batch"):
        raise ArtifactError(
            f"{folder}: expected an input for one image, found {list(first.shape)}; build with --batch 1 or dynamic"
        )
    integers = _INTEGERS if manifest.runtime == "tflite" and platform not in _NO_INTEGERS else ()
    for record in (*manifest.inputs, *manifest.outputs):
        known = ("float32", "uint8", *integers) if record in manifest.inputs else ("float32", *integers)
        if record.dtype not in known:
            why = f": {_NO_INTEGERS[platform]}" if platform in _NO_INTEGERS else ""
            raise ArtifactError(
                f"{folder}: {record.name}: expected {' or '.join(known)} for {platform}, found {record.dtype}{why};"
                " build without --integer-io"
            )


def _scale(record: TensorRecord) -> str:
    return repr(1.0 if record.scale is None else record.scale)


def _zero_point(record: TensorRecord) -> str:
    return str(record.zero_point or 0)


def _write_quantized(record: TensorRecord, golden: Golden, folder: Path) -> None:
    """What an input of integers holds of the golden images, in its own layout, little-endian."""
    if record.dtype not in _INTEGERS:
        return
    pixel_values = golden.encoder_input()
    if record.layout == "NHWC":
        pixel_values = pixel_values.transpose(0, 2, 3, 1)
    integers = quantize(pixel_values, record)
    little = np.ascontiguousarray(integers, integers.dtype.newbyteorder("<"))
    (folder / "quantized.bin").write_bytes(little.tobytes())


def _make_model(subject: Subject, golden: Golden, platform: str, folder: Path) -> Mapping[str, str]:
    """What a platform wants in another form, from the artifact, and what its templates may name besides. Each toolchain
    is imported where it is used.
    """
    source = subject.folder / subject.manifest.files[0].name
    if platform == "mediapipe":
        from vitedge.converters import mediapipe  # noqa: PLC0415

        (folder / "mediapipe").mkdir()
        made_of = mediapipe.write(subject.manifest, source, folder / "mediapipe" / "model.tflite")
        bound = golden.tolerances[subject.manifest.runtime][ANY][made_of]
        return {"made_of": made_of, "made_of_min_cosine": repr(bound.min_cosine)}
    if platform == "ort":
        from vitedge.converters import ort_format  # noqa: PLC0415

        return {"ort_version": ort_format.write(source, folder)}
    return {}


def _sources(platform: str, runtime: str) -> Iterator[tuple[str, Path]]:
    """Files of a platform for a runtime, by the path that they get."""
    for part in ("common", runtime):
        folder = _FILES / platform / part
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _copy_model(subject: Subject, folder: Path) -> None:
    folder.mkdir()
    for record in subject.manifest.files:
        shutil.copyfile(subject.folder / record.name, folder / record.name)
    subject.manifest.published.save(folder)
    if subject.manifest.labels:
        (folder / "labels.txt").write_text(subject.manifest.label_lines, encoding="utf-8")


def _index(golden: Golden) -> str:
    """A line for each image: height, width, pixels, PNG."""
    return "".join(f"{image.height} {image.width} {image.pixels} {image.file}\n" for image in golden.images)
