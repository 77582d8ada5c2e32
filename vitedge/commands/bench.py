"""`vitedge bench`: each artifact of a build against its FP32 twin, and against others if asked."""

import contextlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vitedge.benchmarks.measure import Rival, measure_all
from vitedge.benchmarks.process import BenchmarkError, torch_command, worker_command
from vitedge.benchmarks.results import BenchReport
from vitedge.console import QUIET, Console
from vitedge.runtimes.errors import ImageSetError
from vitedge.runtimes.manifest import Manifest, artifact_folders, fp32_twins, load_manifest

if TYPE_CHECKING:
    from vitedge.benchmarks.vendor_rows import Row

_TORCH = "PyTorch eager FP32"
# Enough for static recipes to find ranges; speed does not depend on which.
_VENDORS_IMAGES = 8


@dataclass(frozen=True)
class RivalRequest:
    """What else to measure, in the rounds of artifacts and their FP32 twins.

    Attributes:
        torch: The checkpoint in PyTorch.
        vendors: The vendors' default recipes on the same checkpoint.
        images: Calibration images for these.
        model: The checkpoint, if it is not where it was at build time.
    """

    torch: bool = False
    vendors: bool = False
    images: Path | None = None
    model: str | None = None


def bench(
    artifact: Path,
    *,
    threads: Sequence[int] = (1,),
    batch: int | None = None,
    seconds: float = 8.0,
    console: Console = QUIET,
    cpus: Sequence[int] = (),
    rivals: RivalRequest | None = None,
) -> tuple[BenchReport, ...]:
    """Measures every artifact at a path, once per number of threads; each after the first beside itself with the first.

    Args:
        artifact: An artifact folder, or a build's folder.
        threads: Numbers of threads to measure with.
        batch: Images per inference; None is what the files are made for, or 1.
        seconds: Time for each pair, half of it more for each rival.
        console: Shows progress.
        cpus: CPUs to pin the measuring processes to; empty leaves that to the system.
        rivals: What else to measure in the same rounds; None is nothing.

    Raises:
        ArtifactError: No artifact there.
        BenchmarkError: A measuring process died or hung, or cannot be pinned; or files are made for another batch.
        CheckpointError: The checkpoint that rivals need is not there or is another one.
        ImageSetError: The images that vendors need are missing.
    """
    pairs = _pairs(artifact, console)
    manifests = {runtime: load_manifest(folder) for runtime, (folder, _) in pairs.items()}
    images = _batch(manifests, batch)
    reports = []
    with tempfile.TemporaryDirectory() as scratch:
        others = _rivals(pairs, manifests, rivals or RivalRequest(), Path(scratch), console)
        itself = _themselves(pairs, manifests, threads[0])
        for count in threads:
            with console.bar(f"Benchmarking with {count} thread{'s' * (count > 1)}", len(pairs)) as advance:
                report = measure_all(
                    pairs,
                    threads=count,
                    batch=images,
                    seconds=seconds,
                    cpus=cpus,
                    rivals=others if count == threads[0] else {name: [*others[name], itself[name]] for name in pairs},
                    sqnr_db=_accuracy(manifests),
                    progress=advance,
                )
            reports.append(report)
    return tuple(reports)


def _pairs(artifact: Path, console: Console) -> dict[str, tuple[Path, Path | None]]:
    """Artifacts and their FP32 twins, by runtime."""
    folders = artifact_folders(artifact)
    kept, missing = fp32_twins(folders)
    for runtime, place in missing.items():
        console.warn(f"{place} is not there, so {runtime} has no FP32 to compare with; build with --keep-fp32")
    return {runtime: (folder, kept.get(runtime)) for runtime, folder in folders.items()}


def _batch(manifests: Mapping[str, Manifest], asked: int | None) -> int:
    """Images per inference: a file that is made for so many takes as long for fewer."""
    sizes = {runtime: manifest.inputs[0].shape[0] for runtime, manifest in manifests.items()}
    fixed = {runtime: size for runtime, size in sizes.items() if isinstance(size, int)}
    batch = max(fixed.values(), default=1) if asked is None else asked
    for runtime, size in fixed.items():
        if batch % size:
            raise BenchmarkError(
                f"{runtime}: its files are made for {size} images at a time, found --batch {batch}; pass --batch {size}"
            )
    return batch


def _accuracy(manifests: Mapping[str, Manifest]) -> dict[str, float]:
    """SQNR of last_hidden_state in dB, of artifacts that were judged."""
    judged = {runtime: manifest.accuracy for runtime, manifest in manifests.items() if manifest.accuracy is not None}
    return {name: float(accuracy["outputs"]["last_hidden_state"]["sqnr_db"]) for name, accuracy in judged.items()}


def _rivals(
    pairs: Mapping[str, tuple[Path, Path | None]],
    manifests: Mapping[str, Manifest],
    request: RivalRequest,
    scratch: Path,
    console: Console,
) -> dict[str, list[Rival]]:
    """What runs beside each pair; the vendors' models are made in a scratch folder."""
    rivals: dict[str, list[Rival]] = {runtime: [] for runtime in pairs}
    if request.vendors:
        for row in _vendor_rows(manifests, request, scratch, console):
            rivals[row.runtime].append(Rival(row.name, "int8", row.size_bytes, partial(worker_command, row.folder)))
    if request.torch:
        for runtime, (folder, _) in pairs.items():
            rivals[runtime].append(Rival(_TORCH, "fp32", None, partial(torch_command, folder, model=request.model)))
    return rivals


def _themselves(
    pairs: Mapping[str, tuple[Path, Path | None]], manifests: Mapping[str, Manifest], threads: int
) -> dict[str, Rival]:
    """Each artifact on so many threads, a rival of itself on more: what those gain is measured in turns, too."""

    def command(folder: Path, *, batch: int, cpus: Sequence[int], **_: int) -> list[str]:
        return worker_command(folder, threads=threads, batch=batch, cpus=cpus)

    name = f"itself on {threads} thread{'s' * (threads > 1)}"
    found = {}
    for runtime, (folder, _) in pairs.items():
        manifest = manifests[runtime]
        found[runtime] = Rival(name, manifest.precision, manifest.size_bytes, partial(command, folder), own=True)
    return found


def _vendor_rows(
    manifests: Mapping[str, Manifest], request: RivalRequest, scratch: Path, console: Console
) -> list["Row"]:
    """The vendors' default recipes, run on the artifacts' checkpoint; one that fails is told and left out."""
    if request.images is None:
        raise ImageSetError("--vendors: static recipes need images to calibrate on; pass --images DIR")
    # None of this is installed on a device, where nothing else needs it.
    from vitedge.benchmarks.vendor_recipes import DEFAULT_RECIPES  # noqa: PLC0415
    from vitedge.benchmarks.vendor_rows import vendor_rows  # noqa: PLC0415
    from vitedge.benchmarks.vendors import check_tools  # noqa: PLC0415
    from vitedge.calibration.images import scan  # noqa: PLC0415
    from vitedge.converters.source import source_checkpoint  # noqa: PLC0415

    check_tools()
    checkpoint = source_checkpoint(next(iter(manifests.values())), request.model, normalized=True)
    images = scan(request.images, _VENDORS_IMAGES)
    with contextlib.redirect_stdout(sys.stderr):  # vendors' tools print progress
        rows = vendor_rows(checkpoint, images, scratch, console, runtimes=tuple(manifests), recipes=DEFAULT_RECIPES)
    for row in rows:
        if row.error is not None:
            console.warn(f"{row.runtime}, {row.name}: {row.error}")
    return [row for row in rows if row.error is None and not row.is_fp32]
