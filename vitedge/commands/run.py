"""`vitedge run`: an artifact on image files, with nothing but its runtime."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.runtimes.encoder import FloatArray
from vitedge.runtimes.errors import OutputError
from vitedge.runtimes.load import load_encoder

_TOP = 5


@dataclass(frozen=True)
class RunResult:
    """Outputs of an artifact for images, image first; `labels` names the classes of a classifier."""

    images: tuple[str, ...]
    outputs: Mapping[str, FloatArray]
    labels: tuple[str, ...]

    def top(self, image: int) -> tuple[tuple[str, float], ...]:
        """The most probable classes of one image; empty for an encoder without a classifier."""
        if "logits" not in self.outputs:
            return ()
        logits = self.outputs["logits"][image].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        return tuple((self.labels[i], float(probabilities[i])) for i in np.argsort(-probabilities)[:_TOP])

    def to_json(self) -> dict[str, Any]:
        shapes = {name: list(output.shape) for name, output in self.outputs.items()}
        images = [
            {
                "image": name,
                "classes": [{"label": label, "probability": p} for label, p in self.top(index)],
                "cls": None if "logits" in self.outputs else self.outputs["last_hidden_state"][index, 0].tolist(),
            }
            for index, name in enumerate(self.images)
        ]
        return {"format": "vitedge-run/1", "outputs": shapes, "images": images}


def run(artifact: Path, images: Sequence[Path], *, threads: int, save: Path | None) -> RunResult:
    """Encodes image files, and saves all outputs as `.npz` if asked.

    Raises:
        ArtifactError, RuntimeMissingError, ImageError: As in `RuntimeEncoder`.
        OutputError: The file to save cannot be written.
    """
    encoder = load_encoder(artifact, threads=threads)
    outputs = encoder.encode(list(images))
    names = tuple(str(path) for path in images)
    if save is not None:
        _save(save, names, outputs)
    return RunResult(names, outputs, encoder.manifest.labels)


def _save(path: Path, names: tuple[str, ...], outputs: Mapping[str, FloatArray]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, images=np.array(names), **outputs)
        temporary.rename(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
