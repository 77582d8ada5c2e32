"""Builds whose input or outputs are integers, which the tests of several platforms embed."""

import json
from pathlib import Path

import pytest

from tests.commands.conftest import Site
from vitedge.runtimes.manifest import load_manifest


@pytest.fixture(scope="session")
def integers(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build for NPUs with integers as input and outputs: 8 bits, and 16 for the logits."""
    folder = tmp_path_factory.mktemp("integers")
    npu = ("--target", "npu", "--activations", "int8")
    assert site.build(folder / "narrow", *npu).exit_code == 0
    plan = json.loads((folder / "narrow" / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"sixteen_bit": ["logits"]}))
    result = site.build(folder / "out", "--target", "npu", "--plan", folder / "plan.json", "--integer-io")
    assert result.exit_code == 0, result.output
    manifest = load_manifest(folder / "out" / "tflite")
    assert [r.dtype for r in (*manifest.inputs, *manifest.outputs)] == ["int8", "int8", "int16"]
    return folder / "out"


@pytest.fixture(scope="session")
def pixels_in(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose artifacts take pixels as they are."""
    out = tmp_path_factory.mktemp("pixels_in") / "out"
    result = site.build(out, "--input", "uint8")
    assert result.exit_code == 0, result.output
    return out
