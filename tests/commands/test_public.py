"""The names that `import vitedge` promises."""

import subprocess
import sys
from pathlib import Path

import vitedge
from tests.commands.conftest import Site


def test_every_name_is_there() -> None:
    for name in vitedge.__all__:
        assert getattr(vitedge, name) is not None
    assert set(vitedge._PUBLIC) < set(vitedge.__all__)


def test_they_are_used_without_a_command_line(site: Site, built: Path) -> None:
    accuracy = vitedge.verify(built / "onnx", site.evaluation, gates=vitedge.Gates(min_cosine=0.5)).accuracy["onnx"]
    assert accuracy.outputs["last_hidden_state"].sqnr_db > 20
    (report,) = vitedge.bench(built / "onnx", seconds=0.1)
    assert report.pairs["onnx"].artifact.latency_median_ms > 0
    assert "last_hidden_state" in vitedge.load_encoder(built / "onnx").encode([next(site.evaluation.rglob("*.png"))])


def test_importing_it_imports_nothing_else() -> None:
    program = "import sys, vitedge; print(*{'numpy', 'torch', 'typer', 'rich'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
