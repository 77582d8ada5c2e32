"""`vitedge run`: an artifact on any number of images, with nothing but its runtime, in memory that does not grow."""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.commands.npz import NpzWriter
from vitedge.console import Console
from vitedge.runtimes.encoder import FloatArray
from vitedge.runtimes.errors import ArtifactError, ImageError, ImageSetError
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import artifact_folders

_TOP = 5


@dataclass(frozen=True)
class Row:
    """What is told of one image: the most probable classes of a classifier, or the class token float32 [hidden]."""

    image: str
    classes: tuple[tuple[str, float], ...]
    cls: FloatArray | None

    def to_json(self) -> dict[str, Any]:
        return {
            "image": self.image,
            "classes": [{"label": label, "probability": probability} for label, probability in self.classes],
            "cls": None if self.cls is None else self.cls.tolist(),
        }


@dataclass(frozen=True)
class RunResult:
    """What an artifact made of images.

    Attributes:
        rows: Of the images, in order; of the first ones if fewer were asked for.
        shapes: Of each output, images first.
        skipped: Files in folders that could not be read, and why.
    """

    rows: tuple[Row, ...]
    shapes: Mapping[str, tuple[int, ...]]
    skipped: tuple[tuple[str, str], ...]

    @property
    def images(self) -> int:
        """How many have outputs."""
        return next(iter(self.shapes.values()))[0]

    def to_json(self) -> Iterator[str]:
        """One document, in pieces: as text it is many times larger than the rows."""
        skipped = [{"image": name, "reason": reason} for name, reason in self.skipped]
        head = {"format": "vitedge-run/1", "outputs": self.shapes, "skipped": skipped, "images": []}
        yield json.dumps(head, indent=1).removesuffix("]\n}")
        for index, row in enumerate(self.rows):
            yield ",\n" if index else "\n"
            yield textwrap.indent(json.dumps(row.to_json(), indent=1, allow_nan=False), "  ")
        yield "\n ]\n}\n"


def run(
    artifact: Path,
    images: Sequence[Path],
    *,
    threads: int,
    save: Path | None,
    rows: int | None = None,
    console: Console,
) -> RunResult:
    """Encodes image files, and saves all outputs as `.npz` if asked.

    Args:
        artifact: The folder of an artifact, or of a build with one.
        images: Files, and folders of them at any depth. Of a folder, what cannot be read is skipped and told.
        threads: Threads of the runtime.
        save: The file for all outputs.
        rows: How many images to tell of; None tells of all.
        console: For progress.

    Raises:
        ArtifactError, RuntimeMissingError, ImageError: As in `RuntimeEncoder`.
        ImageSetError: No image in a folder, or none that can be read.
        OutputError: The file to save cannot be written.
    """
    encoder = load_encoder(_only_artifact(artifact), threads=threads)
    files = _Files.of(images)
    told: list[Row] = []
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as stack:
        archive = None
        if save is not None:
            archive = stack.enter_context(NpzWriter(save, [output.name for output in encoder.manifest.outputs]))
        advance = stack.enter_context(
            console.bar(f"Encoding {len(files.paths)} images", len(files.paths), unit="images")
        )

        def skip(index: int, error: ImageError) -> None:
            files.skip(index, error)
            console.warn(f"image skipped: {error}")
            advance(1)

        readable, done = files.readable(), 0
        for outputs in stack.enter_context(closing(encoder.stream(files.paths, skip=skip))):
            new = len(next(iter(outputs.values())))
            for index, path in enumerate(islice(readable, new)):
                if rows is None or len(told) < rows:
                    told.append(_row(path, index, outputs, encoder.manifest.labels))
            if archive is not None:
                archive.append(outputs)
            done += new
            shapes = {name: (done, *output.shape[1:]) for name, output in outputs.items()}
            advance(new)
        if not done:
            index, reason = next(iter(files.skipped.items()))
            raise ImageSetError(
                f"none of {len(files.paths)} images can be read, such as {files.paths[index]}: {reason}"
            )
        if archive is not None:
            archive.finish(images=list(files.readable()))
    return RunResult(tuple(told), shapes, tuple((str(files.paths[i]), reason) for i, reason in files.skipped.items()))


def _only_artifact(path: Path) -> Path:
    folders = tuple(artifact_folders(path).values())
    if len(folders) > 1:
        choice = ", ".join(map(str, folders))
        raise ArtifactError(f"{path}: expected one artifact, found {len(folders)}; pass one of {choice}")
    return folders[0]


@dataclass(frozen=True)
class _Files:
    """Image files; `named` are the places of those that were not found in a folder, `skipped` what was unreadable."""

    paths: list[Path]
    named: set[int]
    skipped: dict[int, str]

    @classmethod
    def of(cls, images: Sequence[Path]) -> "_Files":
        files = cls([], set(), {})
        for image in images:
            if image.is_dir():
                files.paths.extend(list_images(image))
            else:
                files.named.add(len(files.paths))
                files.paths.append(image)
        return files

    def skip(self, index: int, error: ImageError) -> None:
        """Leaves out what lies unreadable in a folder; who names a file wants that file."""
        if index in self.named:
            raise error
        self.skipped[index] = str(error).removeprefix(f"{self.paths[index]}: ")

    def readable(self) -> Iterator[str]:
        """Paths that were not skipped, as far as is known when each is taken."""
        return (str(path) for index, path in enumerate(self.paths) if index not in self.skipped)


def _row(image: str, index: int, outputs: Mapping[str, FloatArray], labels: tuple[str, ...]) -> Row:
    if "logits" not in outputs:
        return Row(image, (), outputs["last_hidden_state"][index, 0].copy())  # a view would keep the whole batch
    logits = outputs["logits"][index].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    names = labels or tuple(map(str, range(logits.size)))  # of a checkpoint that named none
    return Row(image, tuple((names[i], float(probabilities[i])) for i in np.argsort(-probabilities)[:_TOP]), None)
