"""The ablation runs every variant on a tiny checkpoint and reports what the fake-quantized model gives."""

import json
from pathlib import Path

import pytest

from tests.tiny import save_checkpoint, save_images
from vitedge.benchmarks.ablation import EXPLICIT_STRENGTHS, STRENGTHS, SUBSETS, main
from vitedge.quantization.recipe import TARGETS, WEIGHT_FORMATS


def test_every_variant_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_checkpoint(tmp_path / "model")
    calibration = save_images(tmp_path / "calibration", 96)
    evaluation = save_images(tmp_path / "evaluation", 24, seed=1)
    assert main([str(checkpoint), "--calibration", str(calibration), "--eval", str(evaluation)]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    runtimes = len(TARGETS["avx2"])
    of_each_runtime = 2 + len(STRENGTHS) + SUBSETS
    floats = {row["variant"]: row["sqnr_db"] for row in rows if row["what"] == "linears in"}
    assert floats["float16"] == pytest.approx(floats["bfloat16"] + 6.02 * 3, abs=1)  # three bits more
    assert len(rows) == 2 + len(WEIGHT_FORMATS) + runtimes * of_each_runtime + 2 + len(EXPLICIT_STRENGTHS) + 3
    by_format = {row["variant"]: row["sqnr_db"] for row in rows if row["what"] == "weights alone"}
    assert by_format["int8"] > by_format["int7"] + 3
    assert all(10 < row["sqnr_db"] < 70 and row["cosine_worst"] <= row["cosine_mean"] <= 1 for row in rows)
    assert all(0 < row["agreement_at_1"] <= 1 for row in rows)


def test_a_missing_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = save_checkpoint(tmp_path / "model")
    missing = str(tmp_path / "nowhere")
    assert main([str(checkpoint), "--calibration", missing, "--eval", missing]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_too_few_images_for_its_subsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, few = save_checkpoint(tmp_path / "model"), str(save_images(tmp_path / "few", 40))
    assert main([str(checkpoint), "--calibration", few, "--eval", few, "--only", "calibration"]) == 2
    assert "expected 96 images for 3 subsets of 32, found 40" in capsys.readouterr().err
