"""What a build keeps of its evaluation images for `vitedge report`: a cosine for each, and thumbnails of the worst.

    OUT/report/images.json    names, and by artifact the cosines and the worst images with their neighbors
    OUT/report/12.jpg         image 12, for each image among the worst or their neighbors

It lies apart from `report.json` and from the manifests, which travel. The only pictures of the evaluation set that
do are the few golden ones.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vitedge.calibration.images import ImageSet
from vitedge.quantization.per_image import Neighbor, PerImage, WorstImage
from vitedge.report.documents import read_document
from vitedge.runtimes.image import read_image
from vitedge.runtimes.resize import Pixels

FORMAT = "vitedge-images/1"
IMAGES_FOLDER, IMAGES_FILE = "report", "images.json"
_LONGEST_SIDE = 160
_JPEG_QUALITY = 80
_MAX_THUMBNAIL_BYTES = 1 << 20
_DECIMALS = 8  # cosines near 1 differ in their last digits


@dataclass(frozen=True)
class JudgedImages:
    """Names of all images, in the order judged; what became of them, by artifact; JPEG thumbnails, by number."""

    names: tuple[str, ...]
    artifacts: Mapping[str, PerImage]
    thumbnails: Mapping[int, bytes]


def write_images(folder: Path, images: ImageSet, artifacts: Mapping[str, PerImage]) -> None:
    """Writes what the page needs into a folder to make.

    Args:
        folder: Folder to make.
        images: Those that were judged on.
        artifacts: What became of them, by artifact.
    """
    folder.mkdir()
    for number in _shown(artifacts):
        _, encoded = cv2.imencode(
            ".jpg",
            cv2.cvtColor(_thumbnail(read_image(images.paths[number])), cv2.COLOR_RGB2BGR),
            [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
        )
        _picture(folder, number).write_bytes(encoded.tobytes())
    document = {
        "format": FORMAT,
        "names": [path.relative_to(images.folder).as_posix() for path in images.paths],
        "artifacts": {name: _rounded(asdict(found)) for name, found in artifacts.items()},
    }
    (folder / IMAGES_FILE).write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def read_images(folder: Path) -> JudgedImages:
    """Reads what `write_images` wrote.

    Raises:
        ReportError: There is none, or it is not what this version writes.
    """
    return read_document(folder / IMAGES_FILE, (FORMAT,), "build again", lambda document: _parse(folder, document))


def _shown(artifacts: Mapping[str, PerImage]) -> list[int]:
    """Every image that the page shows."""
    worst = [found for images in artifacts.values() for found in images.worst]
    return sorted({number for found in worst for number in (found.image, found.fp32.image, found.int8.image)})


def _thumbnail(image: Pixels) -> Pixels:
    height, width = image.shape[:2]
    factor = min(1.0, _LONGEST_SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _picture(folder: Path, number: int) -> Path:
    return folder / f"{number}.jpg"


def _read_picture(path: Path) -> bytes:
    if not path.is_file() or path.stat().st_size > _MAX_THUMBNAIL_BYTES:
        raise ValueError(f"{path.name}: expected a picture of at most {_MAX_THUMBNAIL_BYTES} bytes")
    return path.read_bytes()


def _rounded(value: Any) -> Any:
    """A document with every float rounded."""
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _parse(folder: Path, document: Mapping[str, Any]) -> JudgedImages:
    names = tuple(map(str, document["names"]))
    artifacts = {name: _per_image(entry, len(names)) for name, entry in document["artifacts"].items()}
    thumbnails = {number: _read_picture(_picture(folder, number)) for number in _shown(artifacts)}
    return JudgedImages(names, artifacts, thumbnails)


def _per_image(entry: Mapping[str, Any], images: int) -> PerImage:
    def neighbor(found: Mapping[str, Any]) -> Neighbor:
        return Neighbor(range(images).index(found["image"]), _cosine(found["cosine"]))  # ValueError: none such

    cosines = tuple(map(_cosine, entry["cosines"]))
    if len(cosines) != images:
        raise ValueError(f"expected a cosine for each of {images} images, found {len(cosines)}")
    worst = tuple(
        WorstImage(found.image, found.cosine, neighbor(item["fp32"]), neighbor(item["int8"]))
        for item in entry["worst"]
        for found in [neighbor(item)]
    )
    return PerImage(cosines, worst)


def _cosine(value: Any) -> float:
    if not -1 <= float(value) <= 1:  # NaN neither
        raise ValueError(f"expected a cosine, found {value}")
    return float(value)
