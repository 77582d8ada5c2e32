"""Folders of images: listed in a fixed order, sampled evenly, checked by content, streamed in batches.

Images are decoded when they are needed and not kept; what stays in memory is a path and a digest for each.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from vitedge.runtimes.errors import ImageError, ImageSetError
from vitedge.runtimes.image import read_image
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.preprocess import PixelValues, Preprocessing

T = TypeVar("T")

_MAX_BAD_SHARE = 0.05
# Fewer images than this leave activation ranges to chance.
RECOMMENDED_IMAGES = 32
_RECORDED_LETTERS = 16  # of a digest: 64 bits, which no two of a million pictures share by chance


@dataclass(frozen=True)
class ImageSet:
    """Readable images of a folder.

    Attributes:
        folder: Where they are.
        paths: In a fixed order.
        labels: The first sub-folder of each image if there are at least two, else empty.
        digests: SHA-256 of each image's decoded pixels, so that copies are known by content.
        skipped: Files that could not be read, or hold the same picture as another, and why.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: tuple[str, ...]
    digests: tuple[str, ...]
    skipped: tuple[tuple[Path, str], ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the contents, whatever their names and order."""
        return hashlib.sha256("".join(sorted(self.digests)).encode()).hexdigest()

    @property
    def record(self) -> Mapping[str, object]:
        """For the manifest of what was calibrated on the set, so that nobody judges it on the same pictures later."""
        seen = sorted(digest[:_RECORDED_LETTERS] for digest in self.digests)
        return {"digest": self.digest, "images": len(self.paths), "seen": seen}

    def unseen(self, seen: Collection[str]) -> "ImageSet":
        """Those of the images whose digests are not among some, which may be digests of a `record`. Maybe none."""
        short = {digest[:_RECORDED_LETTERS] for digest in seen}
        kept = [index for index, digest in enumerate(self.digests) if digest[:_RECORDED_LETTERS] not in short]
        paths = tuple(self.paths[index] for index in kept)
        digests = tuple(self.digests[index] for index in kept)
        return replace(self, paths=paths, labels=_labels(self.folder, paths), digests=digests)


def spread(items: Sequence[T], count: int | None) -> tuple[T, ...]:
    """`count` of the items, evenly over the list; all of them if there are no more or count is None."""
    if count is None or count >= len(items):
        return tuple(items)
    return tuple(items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count))


def scan(folder: Path, count: int | None, advance: Callable[[int], None] = lambda _: None) -> ImageSet:
    """Decodes images of a folder once, to know which can be read and what they hold.

    Args:
        folder: Searched at any depth.
        count: How many to take, evenly over the folder; None takes all.
        advance: Called with 1 after each image.

    Raises:
        ImageSetError: No such folder, no image, or more than 5 % of them unreadable.
    """
    return _scan(folder, spread(list_images(folder), count), advance)


def hold_out(taken: ImageSet, count: int, advance: Callable[[int], None] = lambda _: None) -> ImageSet | None:
    """Up to `count` images of the same folder that `taken` does not hold by content; None if there are none."""
    used = set(taken.paths) | {path for path, _ in taken.skipped}
    rest = [path for path in list_images(taken.folder) if path not in used]
    if not rest:
        return None
    fresh = _scan(taken.folder, spread(rest, count), advance).unseen(taken.digests)
    return fresh if fresh.paths else None


def batches(
    images: ImageSet, contract: Preprocessing, size: int, advance: Callable[[int], None] = lambda _: None
) -> Iterator[PixelValues]:
    """The images as the encoder's input, up to `size` at a time, in order; `advance` is told how many were used."""
    for start in range(0, len(images.paths), size):
        pixel_values = contract.batch([read_image(path) for path in images.paths[start : start + size]])
        yield pixel_values
        advance(len(pixel_values))


def refuse_overlap(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Refuses to judge on images that calibration saw; they are recognized by content, not by name.

    Raises:
        ImageSetError: Some image is in both sets.
    """
    seen = dict(zip(calibration.digests, calibration.paths, strict=True))
    shared = [(seen[d], path) for d, path in zip(evaluation.digests, evaluation.paths, strict=True) if d in seen]
    if shared:
        first, second = shared[0]
        raise ImageSetError(
            f"{len(shared)} evaluation images are calibration images too, such as {second}, the same picture as"
            f" {first}; accuracy on them would flatter. Take them out of one of the folders"
        )


def too_few_warning(images: ImageSet) -> str | None:
    """What to tell a user who calibrates on few images."""
    if len(images.paths) >= RECOMMENDED_IMAGES:
        return None
    return (
        f"only {len(images.paths)} different calibration images: ranges may be too narrow for other images;"
        f" at least {RECOMMENDED_IMAGES} are recommended"
    )


def _scan(folder: Path, paths: Sequence[Path], advance: Callable[[int], None]) -> ImageSet:
    readable, digests, unreadable, copies = [], [], [], []
    first: dict[str, Path] = {}
    for path in paths:
        try:
            image = read_image(path)
        except ImageError as error:
            unreadable.append((path, str(error).removeprefix(f"{path}: ")))
        else:
            digest = hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).data).hexdigest()
            if (original := first.setdefault(digest, path)) is path:
                readable.append(path)
                digests.append(digest)
            else:  # which would count twice, in ranges and in how sure we are of what was measured
                copies.append((path, f"the same picture as {original}"))
        advance(1)
    if len(unreadable) > _MAX_BAD_SHARE * len(paths):
        named = "; ".join(f"{path.name}: {reason}" for path, reason in unreadable[:3])
        raise ImageSetError(
            f"{folder}: {len(unreadable)} of {len(paths)} images cannot be read, more than {_MAX_BAD_SHARE:.0%}:"
            f" {named}"
        )
    return ImageSet(folder, tuple(readable), _labels(folder, readable), tuple(digests), (*unreadable, *copies))


def _labels(folder: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    parts = [path.relative_to(folder).parts for path in paths]
    labels = tuple(names[0] for names in parts if len(names) > 1)
    return labels if len(labels) == len(paths) and len(set(labels)) > 1 else ()
