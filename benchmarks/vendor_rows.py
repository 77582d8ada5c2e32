"""One row for each model of the vendors' table: made, judged, measured.

A vendor's model gets a folder with a manifest, so that it goes through the same wrappers, the same accuracy code and
the same measuring processes as vitedge's artifacts. These folders are for measuring and are not kept: their manifests
say nothing of what is integer.

Whatever a vendor's tool raises becomes the row's error: one recipe that fails must not take the others' numbers along.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.benchmarks.measure import interleaved
from vitedge.benchmarks.process import BenchmarkError, Worker, running, worker_command
from vitedge.benchmarks.speedup import Speedup, speedup_of
from vitedge.benchmarks.vendor_recipes import (
    INPUT,
    RECIPES,
    CalibrationPixels,
    Recipe,
    export_fp32,
    known_warnings_ignored,
)
from vitedge.calibration.images import ImageSet, batches
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint
from vitedge.converters.lower import RUNTIMES, export_error
from vitedge.quantization.accuracy import AccuracyReport, Comparison
from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder
from vitedge.runtimes.errors import CheckpointError
from vitedge.runtimes.file_records import FileRecord
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest, Operations, TensorRecord, artifact_folders, load_manifest
from vitedge.runtimes.preprocess import PixelValues
from vitedge.runtimes.saturation import Saturation

FP32 = "FP32, vendor's export"
SLOW_IMAGES = 64
_BATCH = 8
_EXPORT_CHECK_IMAGES = 4
_NOT_EXAMINED = "a vendor's model, whose integers were not examined"


@dataclass(frozen=True)
class Row:
    """One model: a vendor's FP32 export, a vendor's recipe, or an artifact of a vitedge build.

    `folder` holds the model and its manifest while it exists. `error` says what went wrong; what could be measured
    before is there all the same. `export_max_abs_error` is of FP32 models, against PyTorch. `speedup` is over the
    vendor's FP32 model on the same runtime, 1 image at a time.
    """

    name: str
    runtime: str
    folder: Path
    slow: bool = False
    size_bytes: int | None = None
    export_max_abs_error: float | None = None
    accuracy: AccuracyReport | None = None
    latency_median_ms: float | None = None
    speedup: Speedup | None = None
    error: str | None = None

    @property
    def is_fp32(self) -> bool:
        return self.name == FP32

    def to_json(self) -> dict[str, Any]:
        document = {name: value for name, value in vars(self).items() if name not in ("folder", "slow")}
        document["accuracy"] = self.accuracy.to_json() if self.accuracy else None
        document["speedup"] = self.speedup.to_json() if self.speedup else None
        return document

    def failed(self, error: Exception) -> "Row":
        return replace(self, error=f"{type(error).__name__}: {error}")


def vendor_rows(
    checkpoint: Checkpoint,
    calibration: ImageSet,
    folder: Path,
    console: Console,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    recipes: Sequence[Recipe] = RECIPES,
) -> list[Row]:
    """Exports each vendor's FP32 model, proves it against PyTorch, and runs the vendor's recipes on it.

    Args:
        checkpoint: What to quantize.
        calibration: Images for static recipes.
        folder: Where the models go, a new folder for each.
        console: Shows progress.
        runtimes: Which runtimes to look at.
        recipes: Which recipes; those of other runtimes are left out.

    Returns:
        By runtime, the row of the FP32 model and those of its recipes.
    """
    pixels = CalibrationPixels(calibration, checkpoint.preprocessing)
    rows = []
    for runtime in runtimes:
        start = Row(FP32, runtime, folder / runtime / "fp32")
        with console.step(f"Exporting {runtime} in FP32 as its vendor does"):
            start = _made(start, checkpoint, partial(export_fp32, runtime, checkpoint))
            start = _proven(start, checkpoint, calibration)
        rows.append(start)
        for number, recipe in enumerate(recipe for recipe in recipes if recipe.runtime == runtime):
            row = Row(recipe.name, runtime, folder / runtime / str(number), recipe.slow)
            if start.error is not None:
                rows.append(replace(row, error="no FP32 model to start from"))
                continue
            with console.step(f"Quantizing for {runtime}: {recipe.name}"):
                rows.append(_made(row, checkpoint, partial(recipe.quantize, start.folder, pixels)))
    return rows


def build_rows(build: Path, checkpoint: Checkpoint, runtimes: Sequence[str] = RUNTIMES) -> list[Row]:
    """The artifacts of a finished build, labelled by target and folder.

    Raises:
        ArtifactError: No build there.
        CheckpointError: It was built from another checkpoint.
    """
    rows = []
    for runtime, folder in artifact_folders(build).items():
        manifest = load_manifest(folder)
        if manifest.source.digest != checkpoint.origin.digest:
            raise CheckpointError(
                f"{folder} was built from a checkpoint with digest {manifest.source.digest[:12]}…, but"
                f" {checkpoint.origin.source} has {checkpoint.origin.digest[:12]}…; pass the same checkpoint"
            )
        if runtime in runtimes:
            name = f"vitedge {manifest.target} ({build.resolve().name})"
            slow = manifest.target == "npu"  # 16-bit activations run in plain loops on CPUs
            rows.append(Row(name, runtime, folder, slow, manifest.size_bytes))
    return rows


def judged(
    rows: Sequence[Row], checkpoint: Checkpoint, images: ImageSet, console: Console, *, threads: int
) -> list[Row]:
    """Rows with their accuracy against transformers' FP32 model, which runs once for all of them.

    FP32 rows have been proven already, and rows with errors stay as they are. A slow row sees every so many batches,
    about `SLOW_IMAGES` images.
    """
    reference = checkpoint.reference()
    judges = [_Judge(row, threads) for row in rows]
    stride = max(1, round(len(images.paths) / SLOW_IMAGES))
    with console.bar("Comparing with PyTorch FP32", len(images.paths)) as advance:
        for number, pixel_values in enumerate(batches(images, checkpoint.preprocessing, _BATCH)):
            paths = images.paths[number * _BATCH :][: len(pixel_values)]
            names = [path.relative_to(images.folder).as_posix() for path in paths]
            expected = reference(pixel_values)
            for judge in judges:
                if not judge.row.slow or number % stride == 0:
                    judge.see(names, expected, pixel_values)
            advance(len(pixel_values))
    return [judge.finished() for judge in judges]


class _Judge:
    """Accumulates the accuracy of one row; the first error ends that and goes into the row."""

    def __init__(self, row: Row, threads: int) -> None:
        self.row = row
        self._comparison = Comparison()
        self._encoder: RuntimeEncoder | None = None
        if row.error is None and not row.is_fp32:
            try:
                self._encoder = load_encoder(row.folder, threads=threads)
            except Exception as error:
                self.row = row.failed(error)

    def see(self, names: Sequence[str], expected: Mapping[str, FloatArray], pixel_values: PixelValues) -> None:
        if self._encoder is None or self.row.error is not None:
            return
        try:
            self._comparison.add(names, expected, self._encoder(pixel_values))
        except Exception as error:
            self.row = self.row.failed(error)

    def finished(self) -> Row:
        if self._encoder is None or self.row.error is not None:
            return self.row
        return replace(self.row, accuracy=self._comparison.result())


def measured(rows: Sequence[Row], console: Console, *, seconds: float) -> list[Row]:
    """Rows with their latency, 1 thread and 1 image at a time, those of a runtime in interleaved rounds.

    Args:
        rows: Those with errors stay as they are.
        console: Shows progress.
        seconds: Time for the rounds of one runtime.
    """
    finished = dict(enumerate(rows))
    for runtime in dict.fromkeys(row.runtime for row in rows):
        places = [place for place, row in finished.items() if row.runtime == runtime and row.error is None]
        if not places:
            continue
        with console.step(f"Measuring {len(places)} models on {runtime}, interleaved"):
            try:
                rounds = _rounds([rows[place].folder for place in places], seconds)
            except BenchmarkError as error:
                finished |= {place: rows[place].failed(error) for place in places}
                continue
        base = next((index for index, place in enumerate(places) if rows[place].is_fp32), None)
        for index, place in enumerate(places):
            latency_ms = float(np.median(np.concatenate([blocks[index] for blocks in rounds])))
            speedup = speedup_of([(blocks[index], blocks[base]) for blocks in rounds]) if base is not None else None
            finished[place] = replace(rows[place], latency_median_ms=latency_ms, speedup=speedup)
    return list(finished.values())


def _rounds(folders: Sequence[Path], seconds: float) -> list[tuple[list[float], ...]]:
    with ExitStack() as stack:
        workers: list[Worker] = [
            stack.enter_context(running(worker_command(folder, threads=1, batch=1), limit_seconds=300))
            for folder in folders
        ]
        return interleaved(workers, seconds=seconds, minimum_rounds=6)


def _made(row: Row, checkpoint: Checkpoint, write: Callable[[Path], None]) -> Row:
    """The row, once `write` has put the model into its folder, with a manifest beside it."""
    row.folder.mkdir(parents=True)
    try:
        with known_warnings_ignored():
            write(row.folder)
        manifest = _manifest(row, checkpoint)
    except Exception as error:
        return row.failed(error)
    manifest.save(row.folder)
    return replace(row, size_bytes=manifest.size_bytes)


def _proven(start: Row, checkpoint: Checkpoint, images: ImageSet) -> Row:
    """An FP32 row, once its model is shown to compute what PyTorch computes."""
    if start.error is not None:
        return start
    pixel_values = next(batches(images, checkpoint.preprocessing, _EXPORT_CHECK_IMAGES))
    try:
        difference = export_error(start.folder, pixel_values, checkpoint.reference()(pixel_values))
    except Exception as error:
        return start.failed(error)
    return replace(start, export_max_abs_error=difference)


def _manifest(row: Row, checkpoint: Checkpoint) -> Manifest:
    """What the wrappers need to know of a vendor's model."""
    shape = checkpoint.encoder.shape
    # Wrappers load the first file: of OpenVINO's two that is the XML, not the weights.
    files = sorted(row.folder.iterdir(), key=lambda path: path.suffix, reverse=True)
    return Manifest(
        runtime=row.runtime,
        precision="fp32" if row.is_fp32 else "int8",
        target="vendor",
        minimum_runtime="0",
        files=tuple(FileRecord.of(path) for path in files),
        inputs=(TensorRecord(INPUT, "float32", (1, shape.channels, shape.image_height, shape.image_width), "NCHW"),),
        outputs=tuple(
            TensorRecord(name, "float32", (1, *dims), "NTD" if len(dims) == 2 else "ND")
            for name, dims in shape.outputs.items()
        ),
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        operations=Operations((), {"all": _NOT_EXAMINED}, 0, 1),
        saturation=Saturation(True, _NOT_EXAMINED, 0, 0, {}),
        source=checkpoint.origin,
        calibration={},
        plan_digest="",
        tools={},
        opsets={},
    )
