"""Builds that the tests of several platforms embed, and a CPU without VNNI for them to run on."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import Site
from vitedge.benchmarks.avx2_only import holding
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


@pytest.fixture(scope="session")
def for_vnni(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX artifact that can saturate on x86 CPUs without VNNI."""
    out = tmp_path_factory.mktemp("vnni") / "out"
    result = site.build(out, "--target", "vnni", "--runtime", "onnx")
    assert result.exit_code == 0, result.output
    return out / "onnx"


@pytest.fixture
def held_to_avx2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs that a test starts have ONNX Runtime's kernels for CPUs without VNNI."""
    with holding() as hold:
        for name, value in hold.environment.items():
            monkeypatch.setenv(name, value)
        yield
        assert hold.answers(), "nothing was held"


def claim_exact(contract: Path) -> None:
    """Has an app's contract say what is not so: that the artifact cannot saturate."""
    before = contract.read_text()
    contract.write_text(re.sub(r"(exact_?on_?x86 = )false", r"\1true", before, flags=re.IGNORECASE))
    assert contract.read_text() != before


def turned_away(output: Path) -> None:
    """Has a golden output point the other way, which no artifact comes near."""
    np.negative(np.fromfile(output, "<f4")).tofile(output)
