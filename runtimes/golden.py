"""Golden vectors: a few images, what preprocessing makes of them, and what the encoder makes of that.

A folder of JSON and raw arrays (little-endian, C order), so that any language can read it (`golden.json` names every
file). Each step of the way is there on its own, so that a test can tell which step fails:

    images/*.png ─decode─► pixels/*.bin ─resize─► resized.bin ─normalize─► pixel_values.bin ─encode─► fp32/*.bin

`fp32` is PyTorch. What INT8 artifacts gave on the host is beside it, with tolerances against FP32: on another CPU
floats round otherwise, and with them which integer a value becomes, so that equal bytes are not asked for.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import count, many, mapping, parse_json, plain_path, text
from vitedge.runtimes.file_records import FileRecord, damages, files_from_json
from vitedge.runtimes.instruction_sets import ANY
from vitedge.runtimes.preprocess import Preprocessing

FORMAT = "vitedge-golden/2"
GOLDEN_FILE, GOLDEN_FOLDER = "golden.json", "golden"
REFERENCE = "fp32"  # key of PyTorch's outputs
_MAX_JSON_BYTES = 1 << 20
_MAX_ARRAY_BYTES = 1 << 30
_DTYPES = ("float32", "uint8")
_ADVICE = "copy the folder again, or make it again"


@dataclass(frozen=True)
class GoldenImage:
    """One image: its name, an 8-bit RGB PNG, and the same decoded, uint8 [height, width, 3]."""

    name: str
    file: str
    pixels: str
    height: int
    width: int


@dataclass(frozen=True)
class ArrayRecord:
    """A raw array; `layout` names the dimensions by letter, as in a manifest."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    layout: str


@dataclass(frozen=True)
class Tolerance:
    """What an output of an artifact may lose against FP32 at most: `min_cosine` of each image's vector, which is the
    class token where there are tokens; `min_sqnr_db` of all values over all images.
    """

    min_cosine: float
    min_sqnr_db: float


@dataclass(frozen=True)
class Golden:
    """The contents of `golden.json`, and where its files are.

    `source_digest` is that of the checkpoint. `inputs` are `resized` and `pixel_values`; `outputs` are by runtime, or
    `REFERENCE`, then by name; `tolerances` by runtime, then by kind of CPU (`instruction_sets.py`), with `ANY` always
    among them, then by output, all of them. A kind that is missing has none: the artifact promises nothing there.
    """

    folder: Path
    preprocessing: Preprocessing
    source_digest: str
    images: tuple[GoldenImage, ...]
    inputs: Mapping[str, ArrayRecord]
    outputs: Mapping[str, Mapping[str, ArrayRecord]]
    tolerances: Mapping[str, Mapping[str, Mapping[str, Tolerance]]]
    files: Mapping[str, FileRecord]

    def array(self, record: ArrayRecord) -> NDArray[Any]:
        """Reads one array.

        Raises:
            ArtifactError: The file does not hold as many values as its shape asks for.
        """
        return _read(self.folder / record.file, record.dtype, record.shape)

    def pixels(self, image: GoldenImage) -> NDArray[np.uint8]:
        """An image decoded: uint8 [height, width, 3], RGB.

        Raises:
            ArtifactError: As `array`.
        """
        return _read(self.folder / image.pixels, "uint8", (image.height, image.width, 3))

    def encoder_input(self) -> NDArray[Any]:
        """What the wrapper of an artifact takes: `pixel_values`, or `resized` where preprocessing has dtype uint8."""
        return self.array(self.inputs["resized" if self.preprocessing.dtype == "uint8" else "pixel_values"])

    def expected(self, source: str = REFERENCE) -> dict[str, NDArray[Any]]:
        """All outputs of PyTorch, or of a runtime on the host."""
        return {name: self.array(record) for name, record in self.outputs[source].items()}

    def damages(self) -> dict[str, str]:
        """What is wrong with files that are not as `golden.json` describes them, by path; empty if all are."""
        return damages(self.folder, self.files, GOLDEN_FILE)


def load_golden(folder: Path) -> Golden:
    """Reads golden vectors and checks size and SHA-256 of every file.

    Raises:
        ArtifactError: There are none, or a file is not the one that `golden.json` describes.
    """
    golden = read_golden(folder)
    for name, what in golden.damages().items():
        raise ArtifactError(f"{folder / name}: {what}")
    return golden


def read_golden(folder: Path) -> Golden:
    """Reads `folder/golden.json` without looking at the files that it names.

    Raises:
        ArtifactError: There is none, or it is not one that this version can read.
    """
    path = folder / GOLDEN_FILE
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ArtifactError(f"{path}: expected at most {_MAX_JSON_BYTES} bytes, found {path.stat().st_size}")
        document = parse_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ArtifactError(
            f"{folder}: expected golden vectors, found no {GOLDEN_FILE}; vitedge build writes them to OUT/golden"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: expected a JSON file ({error}); {_ADVICE}") from error
    try:
        return _parse(folder, document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: not readable ({type(error).__name__}: {error}); {_ADVICE}") from error
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}; {_ADVICE}") from error


def _read(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if path.stat().st_size != size_bytes:
        raise ArtifactError(
            f"{path}: expected {size_bytes} bytes for {dtype} {list(shape)}, found {path.stat().st_size}; {_ADVICE}"
        )
    return np.fromfile(path, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _parse(folder: Path, document: Any) -> Golden:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else type(document).__name__
        raise ArtifactError(f"expected format {FORMAT}, found {found}")
    golden = Golden(
        folder=folder,
        preprocessing=Preprocessing.from_json(mapping(document["preprocessing"])),
        source_digest=text(document["source_digest"]),
        images=many(document["images"], _image),
        inputs={name: _array(entry) for name, entry in mapping(document["inputs"]).items()},
        outputs={
            source: {name: _array(entry) for name, entry in mapping(named).items()}
            for source, named in mapping(document["outputs"]).items()
        },
        tolerances={
            runtime: {
                kind: {name: _tolerance(entry) for name, entry in mapping(bounds).items()}
                for kind, bounds in mapping(named).items()
            }
            for runtime, named in mapping(document.get("tolerances", {})).items()
        },
        files=files_from_json(document["files"]),
    )
    _check(golden)
    return golden


def _check(golden: Golden) -> None:
    """What readers rely on beyond types: nothing is read that is not listed, and shapes belong together."""
    contract, images = golden.preprocessing, len(golden.images)
    size = (contract.height, contract.width)
    if not images or "last_hidden_state" not in golden.outputs.get(REFERENCE, {}):
        raise ArtifactError("expected at least one image, and last_hidden_state in FP32")
    for name, shape, dtype in (("resized", (*size, 3), "uint8"), ("pixel_values", (3, *size), "float32")):
        record = golden.inputs[name]
        if (record.shape, record.dtype) != ((images, *shape), dtype):
            raise ArtifactError(
                f"{name}: expected {dtype} {[images, *shape]}, found {record.dtype} {list(record.shape)}"
            )
    for source, outputs in golden.outputs.items():
        expected = {name: record.shape for name, record in golden.outputs[REFERENCE].items()}
        found = {name: record.shape for name, record in outputs.items()}
        if found != expected or any(shape[:1] != (images,) or len(shape) < 2 for shape in found.values()):
            raise ArtifactError(f"outputs of {source}: expected {expected} for {images} images, found {found}")
    if unbounded := [runtime for runtime, named in golden.tolerances.items() if ANY not in named]:
        raise ArtifactError(f"tolerances of {', '.join(unbounded)}: expected some for kind {ANY!r} of CPU")
    for runtime, kinds in golden.tolerances.items():
        for kind, bounds in kinds.items():
            if bounds.keys() != golden.outputs[REFERENCE].keys():
                raise ArtifactError(
                    f"tolerances of {runtime} for {kind}: expected {', '.join(golden.outputs[REFERENCE])}, found"
                    f" {', '.join(bounds)}"
                )
    named = [record.file for record in golden.inputs.values()]
    named += [record.file for outputs in golden.outputs.values() for record in outputs.values()]
    named += [file for image in golden.images for file in (image.file, image.pixels)]
    if missing := sorted(set(named) - golden.files.keys()):
        raise ArtifactError(f"files: expected all that are named, found no {missing[0]}")


def _image(entry: Any) -> GoldenImage:
    image = GoldenImage(
        text(entry["name"]),
        plain_path(entry["file"]),
        plain_path(entry["pixels"]),
        count(entry["height"]),
        count(entry["width"]),
    )
    if not 0 < image.height * image.width * 3 <= _MAX_ARRAY_BYTES:
        raise ArtifactError(f"{image.file}: an image of {image.height}×{image.width} pixels")
    return image


def _array(entry: Any) -> ArrayRecord:
    record = ArrayRecord(
        plain_path(entry["file"]), text(entry["dtype"]), many(entry["shape"], count), text(entry["layout"])
    )
    if record.dtype not in _DTYPES or not 0 < math.prod(record.shape) * 4 <= _MAX_ARRAY_BYTES:
        raise ArtifactError(
            f"{record.file}: expected {' or '.join(_DTYPES)} of at most {_MAX_ARRAY_BYTES} bytes, found"
            f" {record.dtype} {list(record.shape)}"
        )
    return record


def _tolerance(entry: Any) -> Tolerance:
    tolerance = Tolerance(float(entry["min_cosine"]), float(entry["min_sqnr_db"]))
    if not (math.isfinite(tolerance.min_cosine) and math.isfinite(tolerance.min_sqnr_db)):  # NaN would pass anything
        raise ArtifactError(f"tolerances: expected finite numbers, found {tolerance}")
    return tolerance
