"""The checkpoint that an artifact was built from, loaded again."""

from vitedge.converters.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from vitedge.runtimes.errors import CheckpointError
from vitedge.runtimes.manifest import Manifest


def source_checkpoint(manifest: Manifest, model: str | None = None, *, normalized: bool = False) -> Checkpoint:
    """Loads what a manifest names as its source, taking the pixels that the artifact takes.

    Args:
        manifest: Of the artifact.
        model: Folder or hub id of the checkpoint, if it is not where it was at build time.
        normalized: It takes normalized pixels even if the artifact takes them as they are.

    Raises:
        CheckpointError: It is not there, cannot be loaded, or is another one.
    """
    source = manifest.source
    if source.random_weights and model is None:
        checkpoint = random_checkpoint(source.source, seed=source.seed, image_size=source.image_size)
    else:
        try:
            checkpoint = load_checkpoint(model or source.source, revision=source.revision, image_size=source.image_size)
        except CheckpointError as error:
            if model is not None:
                raise
            raise CheckpointError(f"{error}. Pass it with --model if it moved since the build") from error
    if checkpoint.origin.digest != source.digest:
        raise CheckpointError(
            f"the {manifest.runtime} artifact was built from a checkpoint with digest {source.digest[:12]}…, but"
            f" {checkpoint.origin.source} has {checkpoint.origin.digest[:12]}…; pass the right one with --model"
        )
    if manifest.preprocessing.dtype == "uint8" and not normalized:
        return checkpoint.with_uint8_input()
    return checkpoint
