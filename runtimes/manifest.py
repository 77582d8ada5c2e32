"""`manifest.json`: everything a device must know about an artifact, and everything an auditor wants to.

It is read on devices, where nobody vouches for it, and trusted in nothing: unknown formats, missing fields, paths that
leave the folder and hashes that do not match are refused.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import count, integer, many, mapping, parse_json, printable, text
from vitedge.runtimes.file_records import FileRecord, damage
from vitedge.runtimes.instruction_sets import KINDS, exact_kinds
from vitedge.runtimes.preprocess import Preprocessing
from vitedge.runtimes.saturation import Saturation, UnsafeLinear, UnsafePair

FORMAT = "vitedge-artifact/4"
MANIFEST_FILE = "manifest.json"
RUNTIMES = ("onnx", "openvino", "tflite")
PRECISIONS = ("int8", "fp32")
_MAX_MANIFEST_BYTES = 16 << 20
_MAX_BATCH = 4096
_ADVICE = "copy the artifact again, or build it again"


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint came from: enough to load it again and to see that it is the same.

    `source` is a folder, a hub id or a preset of random weights; `digest` the SHA-256 of config and weights;
    `image_size` the size asked for, if any; `license` the name of its licence, if it states one.
    """

    source: str
    digest: str
    revision: str | None = None
    image_size: int | None = None
    random_weights: bool = False
    seed: int = 0
    license: str | None = None


@dataclass(frozen=True)
class TensorRecord:
    """One input or output: the dimensions are numbers or the word `batch`.

    `layout` names the dimensions by letter (N batch, C channel, H height, W width, T token, D feature). `scale` and
    `zero_point` are set only where the tensor itself is an integer one: real = scale · (q - zero_point).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Operations:
    """What is integer and what is float, by module, and the share of multiply-accumulates done in integers.

    `sixteen_bit` names the activations that have 16 bits where all are integers (target npu).
    """

    integer: tuple[str, ...]
    floating: Mapping[str, str]
    integer_macs: int
    total_macs: int
    sixteen_bit: tuple[str, ...] = ()

    @property
    def integer_share(self) -> float:
        return self.integer_macs / self.total_macs


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    `source` names the checkpoint; `calibration` the images it was calibrated on (`seen` lists digests of their pixels,
    the first letters of each); `tools` the versions that made it.
    `opsets` are the operator sets that an ONNX model needs of its engine, version by domain (`ai.onnx` is the standard
    one); empty for other runtimes. `accuracy` and `latency` are what was measured, with the machine.
    """

    runtime: str
    precision: str
    target: str
    minimum_runtime: str
    files: tuple[FileRecord, ...]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    operations: Operations
    saturation: Saturation
    source: Origin
    calibration: Mapping[str, Any]
    plan_digest: str
    tools: Mapping[str, str]
    opsets: Mapping[str, int]
    accuracy: Mapping[str, Any] | None = None
    latency: Mapping[str, Any] | None = None

    @property
    def instruction_sets(self) -> tuple[str, ...]:
        """The kinds of CPU (`instruction_sets.py`) that the artifact is exact on, in any program."""
        return exact_kinds(self.saturation)

    @property
    def exact_in_wrapper(self) -> tuple[str, ...]:
        """The kinds of CPU that the wrapper in `runtimes` is exact on. ONNX Runtime's takes slower kernels where
        others saturate (`onnx.saturates_here`).
        """
        return KINDS if self.runtime == "onnx" else self.instruction_sets

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def label_lines(self) -> str:
        """The labels as mobile runtimes read them: a line each, so without line breaks of their own."""
        return "".join(printable(" ".join(label.split())) + "\n" for label in self.labels)

    @property
    def published(self) -> "Manifest":
        """As apps give it to everyone: without what was measured, which tells of images and of a machine, and with the
        name alone of a checkpoint's folder.
        """
        path = Path(self.source.source)
        source = replace(self.source, source=path.name) if path.is_absolute() else self.source
        return replace(self, accuracy=None, latency=None, source=source)

    def to_json(self) -> dict[str, Any]:
        derived = {"instruction_sets": self.instruction_sets, "preprocessing": self.preprocessing.to_json()}
        return {"format": FORMAT, **asdict(self), **derived}

    def save(self, folder: Path) -> None:
        """Writes `folder/manifest.json`."""
        document = json.dumps(self.to_json(), indent=1, allow_nan=False)
        (folder / MANIFEST_FILE).write_text(document + "\n", encoding="utf-8")


def load_manifest(folder: Path) -> Manifest:
    """Reads and checks `folder/manifest.json`; `verify_files` checks the files it names.

    Raises:
        ArtifactError: There is none, or it is not a vitedge manifest that this version can read.
    """
    path = folder / MANIFEST_FILE
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ArtifactError(
                f"{path}: expected at most {_MAX_MANIFEST_BYTES} bytes, found {path.stat().st_size}; {_ADVICE}"
            )
        document = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"{folder}: expected an artifact folder such as OUT/onnx, found no {MANIFEST_FILE} in it"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected a JSON file ({error}); {_ADVICE}") from error
    try:
        return _parse(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: not a readable manifest ({type(error).__name__}: {error}); {_ADVICE}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; {_ADVICE}") from error


def artifact_folders(path: Path) -> dict[str, Path]:
    """The artifacts at a path by runtime: the folder itself, or those of the build in it.

    Raises:
        ArtifactError: There is none.
    """
    if (path / MANIFEST_FILE).is_file():
        return {load_manifest(path).runtime: path}
    folders = {runtime: path / runtime for runtime in RUNTIMES if (path / runtime / MANIFEST_FILE).is_file()}
    if not folders:
        found = "no such folder" if not path.is_dir() else f"no {MANIFEST_FILE} there or in {', '.join(RUNTIMES)} below"
        raise ArtifactError(f"{path}: expected an artifact such as OUT/onnx, or the OUT of a build; {found}")
    return folders


def fp32_twins(folders: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The FP32 twins of artifacts by runtime: those that their build kept, and where the others would be."""
    places = {runtime: folder.resolve().parent / "fp32" / runtime for runtime, folder in folders.items()}
    kept = {runtime: place for runtime, place in places.items() if (place / MANIFEST_FILE).is_file()}
    return kept, {runtime: place for runtime, place in places.items() if runtime not in kept}


def source_digest(path: Path) -> str:
    """The digest of the checkpoint that the artifacts at a path are of; errors as in `artifact_folders`."""
    folder = next(iter(artifact_folders(path).values()))
    return load_manifest(folder).source.digest


def verify_files(manifest: Manifest, folder: Path) -> None:
    """Checks size and SHA-256 of every file.

    Raises:
        ArtifactError: A file is missing or is not the one that the manifest describes.
    """
    for record in manifest.files:
        if found := damage(folder / record.name, record, MANIFEST_FILE):
            raise ArtifactError(f"{folder / record.name}: {found}")


def _parse(document: Any) -> Manifest:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise ArtifactError(f"expected format {FORMAT}, found {found}")
    runtime = text(document["runtime"])
    if runtime not in RUNTIMES:
        raise ArtifactError(f"expected runtime to be one of {', '.join(RUNTIMES)}, found {runtime}")
    operations = document["operations"]
    manifest = Manifest(
        runtime=runtime,
        precision=text(document["precision"]),
        target=text(document["target"]),
        minimum_runtime=_version(document["minimum_runtime"]),
        files=many(document["files"], _file),
        inputs=many(document["inputs"], _tensor),
        outputs=many(document["outputs"], _tensor),
        preprocessing=Preprocessing.from_json(document["preprocessing"]),
        labels=many(document["labels"], text),
        operations=Operations(
            integer=many(operations["integer"], text),
            floating={text(name): text(reason) for name, reason in operations["floating"].items()},
            integer_macs=count(operations["integer_macs"]),
            total_macs=count(operations["total_macs"]),
            sixteen_bit=many(operations["sixteen_bit"], text),
        ),
        saturation=_saturation(document["saturation"]),
        source=_origin(document["source"]),
        calibration=_calibration(document["calibration"]),
        plan_digest=text(document["plan_digest"]),
        tools={text(name): _version(version) for name, version in document["tools"].items()},
        opsets={text(domain): count(version) for domain, version in document["opsets"].items()},
        accuracy=None if document["accuracy"] is None else _accuracy(document["accuracy"]),
        latency=None if document["latency"] is None else mapping(document["latency"]),
    )
    _check(manifest)
    told = many(document["instruction_sets"], text)
    if told != manifest.instruction_sets:
        raise ArtifactError(
            f"instruction_sets: expected {', '.join(manifest.instruction_sets)}, as saturation says, found"
            f" {', '.join(told) or 'none'}"
        )
    return manifest


def _calibration(value: Any) -> Mapping[str, Any]:
    found = mapping(value)
    many(found.get("seen", []), text)
    return found


def _check(manifest: Manifest) -> None:
    """What the wrappers and the tables rely on beyond types."""
    if not (manifest.files and manifest.inputs and manifest.outputs):
        raise ArtifactError("expected at least one file, one input and one output")
    first = manifest.inputs[0]
    size = (manifest.preprocessing.height, manifest.preprocessing.width)
    images = {"NCHW": (3, *size), "NHWC": (*size, 3)}.get(first.layout)
    if first.shape[1:] != images or first.shape[0] not in ("batch", *range(1, _MAX_BATCH + 1)):
        raise ArtifactError(
            f"input {first.name}: expected images of {size[0]}×{size[1]}, as preprocessing makes them, in the order"
            f" NCHW or NHWC, batch or 1 to {_MAX_BATCH} of them; found {list(first.shape)} in {first.layout}"
        )
    if "uint8" in (first.dtype, manifest.preprocessing.dtype) and (
        first.dtype != manifest.preprocessing.dtype or first.layout != "NHWC"
    ):
        raise ArtifactError(
            f"input {first.name}: pixels as they are need dtype uint8 in preprocessing and input, in the order NHWC;"
            f" found {manifest.preprocessing.dtype}, {first.dtype} and {first.layout}"
        )
    if manifest.precision not in PRECISIONS:
        raise ArtifactError(f"expected precision to be one of {', '.join(PRECISIONS)}, found {manifest.precision}")
    for output in manifest.outputs:
        if output.name == "logits" and manifest.labels and output.shape[-1:] != (len(manifest.labels),):
            raise ArtifactError(
                f"labels: expected one for each of logits {list(output.shape)}, found {len(manifest.labels)}"
            )
    operations = manifest.operations
    if not 0 <= operations.integer_macs <= operations.total_macs or not operations.total_macs:
        raise ArtifactError(
            f"operations: {operations.integer_macs} of {operations.total_macs} multiply-accumulates cannot be integer"
        )


def _origin(entry: Any) -> Origin:
    revision, image_size, random_weights = entry["revision"], entry["image_size"], entry["random_weights"]
    stated = entry.get("license")  # missing in manifests of before
    if not isinstance(random_weights, bool):
        raise ArtifactError(f"source: expected random_weights to be true or false, found {random_weights!r}")
    return Origin(
        source=text(entry["source"]),
        digest=text(entry["digest"]),
        revision=None if revision is None else text(revision),
        image_size=None if image_size is None else count(image_size),
        random_weights=random_weights,
        seed=integer(entry["seed"]),
        license=None if stated is None else text(stated),
    )


def _version(value: Any) -> str:
    """A version as in PEP 440, which `pip` is given on devices: nothing else must hide in it."""
    if not re.fullmatch(r"\d[\w.+!-]{0,63}", text(value), re.ASCII):
        raise ArtifactError(f"expected a version such as 1.17, found {value!r}")
    return text(value)


def _accuracy(value: Any) -> Mapping[str, Any]:
    found = mapping(value)
    float(found["outputs"]["last_hidden_state"]["sqnr_db"])  # what reports say of an artifact
    return found


def _file(entry: Any) -> FileRecord:
    name = text(entry["name"])
    if name in ("", ".", "..") or set(name) & set("/\\:\0"):  # a colon: C:x leaves the folder on Windows
        raise ArtifactError(f"file name {name!r}: expected a plain name inside the artifact's folder")
    return FileRecord(name, text(entry["sha256"]), count(entry["size_bytes"]))


def _tensor(entry: Any) -> TensorRecord:
    shape = tuple(size if size == "batch" else count(size) for size in entry["shape"])
    scale, zero_point = entry["scale"], entry["zero_point"]
    return TensorRecord(
        text(entry["name"]),
        text(entry["dtype"]),
        shape,
        text(entry["layout"]),
        None if scale is None else float(scale),
        None if zero_point is None else integer(zero_point),
    )


def _saturation(entry: Any) -> Saturation:
    reason = entry["not_applicable"]
    found = Saturation(
        proven_safe=entry["proven_safe"],
        not_applicable=None if reason is None else text(reason),
        linears=count(entry["linears"]),
        pairs=count(entry["pairs"]),
        unsafe={
            text(name): UnsafeLinear(
                count(linear["pairs"]), count(linear["max_excess"]), many(linear["worst"], _unsafe_pair)
            )
            for name, linear in entry["unsafe"].items()
        },
    )
    if found.proven_safe is not (not found.unsafe):
        raise ArtifactError(
            f"saturation: proven_safe is {found.proven_safe!r}, but {len(found.unsafe)} linears are listed as unsafe"
        )
    return found


def _unsafe_pair(entry: Any) -> UnsafePair:
    first, second = many(entry["inputs"], count)
    return UnsafePair(count(entry["output"]), (first, second), count(entry["excess"]))
