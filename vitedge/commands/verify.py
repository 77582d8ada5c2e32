"""Accuracy of artifacts against transformers' FP32 model, over a set of images, and `vitedge verify` on top of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitedge.benchmarks.machine import describe_machine
from vitedge.calibration.images import ImageSet, batches, scan
from vitedge.console import QUIET, Console
from vitedge.converters.checkpoint import Checkpoint
from vitedge.converters.source import source_checkpoint
from vitedge.quantization.accuracy import AccuracyReport, Comparison
from vitedge.quantization.gates import NO_GATES, Gates, check, doubts
from vitedge.runtimes.errors import ArtifactError, ImageSetError
from vitedge.runtimes.instruction_sets import X86
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest, artifact_folders, load_manifest

_SKIPPED_NAMED = 5
_BATCH = 8


def judge(
    checkpoint: Checkpoint, folders: Mapping[str, Path], images: ImageSet, console: Console
) -> dict[str, AccuracyReport]:
    """Compares artifacts with transformers' own FP32 model, which runs once for all of them.

    Args:
        checkpoint: What the artifacts were made from.
        folders: Artifact folders by name.
        images: What to judge on; with labels, accuracy is measured too.
        console: Shows progress.

    Raises:
        AccuracyError: NaN, a missing output, or no images.
    """
    reference = checkpoint.reference()
    encoders = {name: load_encoder(folder) for name, folder in folders.items()}
    kind = describe_machine().kind
    for name, encoder in encoders.items():
        if kind == X86 and X86 not in encoder.manifest.exact_in_wrapper:
            console.warn(f"{name}: {_saturation_doubt(encoder.manifest)}")
    comparisons = {name: Comparison() for name in folders}
    done = 0
    with console.bar("Comparing with PyTorch FP32", len(images.paths)) as advance:
        for pixel_values in batches(images, checkpoint.preprocessing, _BATCH, advance):
            paths = images.paths[done : done + len(pixel_values)]
            names = [path.relative_to(images.folder).as_posix() for path in paths]
            expected = reference(pixel_values)
            for name, encoder in encoders.items():
                comparisons[name].add(names, expected, encoder(pixel_values))
            done += len(pixel_values)
    return {
        name: comparison.result(labels=images.labels, model_labels=checkpoint.labels)
        for name, comparison in comparisons.items()
    }


def tell_skipped(what: str, images: ImageSet, console: Console) -> None:
    """Names the images of a set that were left out, or the first of many."""
    for path, reason in images.skipped[:_SKIPPED_NAMED]:
        console.warn(f"{what} image skipped: {path}: {reason}")
    if (more := len(images.skipped) - _SKIPPED_NAMED) > 0:
        console.warn(f"{more} more {what} images skipped")


def _saturation_doubt(manifest: Manifest) -> str:
    """What makes accuracy that is measured here none that a device would see."""
    saturation = manifest.saturation
    return (
        f"{len(saturation.unsafe)} of {saturation.linears} integer products can saturate on this CPU, which has no"
        f" VNNI: accuracy below is of that, not of the CPUs that --target {manifest.target} is for; judge there"
    )


@dataclass(frozen=True)
class VerifyResult:
    """What `verify` measured, by runtime, and which gates failed, in words."""

    accuracy: Mapping[str, AccuracyReport]
    failures: tuple[str, ...]


def verify(
    artifact: Path,
    evaluation: Path,
    *,
    model: str | None = None,
    gates: Gates = NO_GATES,
    console: Console = QUIET,
) -> VerifyResult:
    """Measures an artifact's accuracy, or that of each artifact of a build, against the checkpoint it came from.

    Args:
        artifact: An artifact folder, or a build's folder.
        evaluation: Folder of images, labelled if each class has a sub-folder.
        model: The checkpoint, if it is not where it was at build time.
        gates: What may be lost at most.
        console: Shows progress.

    Raises:
        ArtifactError: No artifact there, or artifacts of different checkpoints or calibration images.
        CheckpointError: The checkpoint is not there or is another one.
        ImageSetError: No image there that it was not calibrated on.
    """
    folders = artifact_folders(artifact)
    manifests = {name: load_manifest(folder) for name, folder in folders.items()}
    first = next(iter(manifests.values()))
    checkpoint = source_checkpoint(first, model)
    for name, manifest in manifests.items():
        same = [(one.source.digest, one.preprocessing, one.calibration.get("digest")) for one in (manifest, first)]
        if same[0] != same[1]:
            raise ArtifactError(f"{folders[name]} and {folders[first.runtime]} are not of one build; verify them apart")
    images = _evaluation_images(evaluation, first, console)
    if checkpoint.origin.random_weights:
        console.warn("random weights: the numbers say how the lowering computes, nothing about a trained model")
    accuracy = judge(checkpoint, folders, images, console)
    for name, report in accuracy.items():
        for doubt in doubts(report, gates):
            console.warn(f"{name}: {doubt}")
    failures = tuple(f"{name}: {failure}" for name, report in accuracy.items() for failure in check(report, gates))
    return VerifyResult(accuracy, failures)


def _evaluation_images(folder: Path, manifest: Manifest, console: Console) -> ImageSet:
    """The images of a folder but for those that the artifact was calibrated on: accuracy on them would flatter."""
    with console.bar("Reading evaluation images") as advance:
        found = scan(folder, None, advance)
    tell_skipped("evaluation", found, console)
    if "seen" not in manifest.calibration:
        console.warn(f"{manifest.runtime}: its manifest does not say which images calibrated it; judge on others")
    images = found.unseen(manifest.calibration.get("seen", ()))
    if not images.paths:
        raise ImageSetError(
            f"{folder}: expected images that {manifest.runtime} was not calibrated on, found {len(found.paths)} that it"
            " was; accuracy on them would flatter. Take others"
        )
    if known := len(found.paths) - len(images.paths):
        console.warn(f"{known} of {len(found.paths)} images left out: calibration saw them, so they would flatter")
    return images
