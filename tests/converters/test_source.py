"""The checkpoint of an artifact, found again or not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny import save_checkpoint
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint, random_checkpoint
from vitedge.converters.source import source_checkpoint
from vitedge.runtimes.errors import CheckpointError


def manifest(checkpoint: Checkpoint) -> Any:
    return SimpleNamespace(runtime="onnx", source=checkpoint.origin, preprocessing=checkpoint.preprocessing)


def test_checkpoint_is_loaded_as_it_was(tmp_path: Path) -> None:
    made = load_checkpoint(str(save_checkpoint(tmp_path / "model")), image_size=48)
    found = source_checkpoint(manifest(made))
    assert found.origin == made.origin
    assert found.encoder.shape == made.encoder.shape


def test_random_weights_are_drawn_again() -> None:
    made = random_checkpoint("vit-tiny-patch16-32", seed=3)
    assert source_checkpoint(manifest(made)).origin == made.origin


def test_checkpoint_takes_the_pixels_that_the_artifact_takes() -> None:
    made = random_checkpoint("vit-tiny-patch16-32").with_uint8_input()
    assert source_checkpoint(manifest(made)).preprocessing == made.preprocessing
    assert source_checkpoint(manifest(made), normalized=True).preprocessing.dtype == "float32"


def test_checkpoint_that_moved(tmp_path: Path) -> None:
    made = load_checkpoint(str(save_checkpoint(tmp_path / "model")))
    moved = (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="no such folder"):
        source_checkpoint(manifest(made))
    assert source_checkpoint(manifest(made), str(moved)).origin.digest == made.origin.digest


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    made = load_checkpoint(str(save_checkpoint(tmp_path / "model")))
    other = save_checkpoint(tmp_path / "other", seed=5)
    with pytest.raises(CheckpointError, match=r"the onnx artifact was built from .* pass the right one with --model"):
        source_checkpoint(manifest(made), str(other))


def test_a_relative_path_is_found_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    origin = load_checkpoint("model").origin
    assert origin.source == str(tmp_path / "model")
