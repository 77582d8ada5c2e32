"""`vitedge verify`: accuracy again, of one build of the tiny classifier."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from tests.commands.conftest import CLASSES, Site, report_of
from tests.tiny import save_checkpoint, save_images
from vitedge.runtimes.manifest import load_manifest


def test_verify_repeats_what_the_build_measured(site: Site, built: Path) -> None:
    result = site.vitedge("verify", built, "--eval", site.evaluation, "--min-cosine", "0.9", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["accuracy"] == report_of(built)["accuracy"]


def test_verify_leaves_out_what_calibration_saw(site: Site, built: Path, tmp_path: Path) -> None:
    result = site.vitedge("verify", built / "onnx", "--eval", site.calibration)
    assert result.exit_code == 2
    assert "expected images that onnx was not calibrated on, found 36 that it was" in " ".join(result.stderr.split())
    for folder in (site.calibration, site.evaluation):
        shutil.copytree(folder, tmp_path / "both" / folder.name)
    result = site.vitedge("verify", built / "onnx", "--eval", tmp_path / "both", "--json")
    assert result.exit_code == 0, result.stderr
    assert "36 of 60 images left out: calibration saw them" in result.stderr
    fresh, before = json.loads(result.stdout)["accuracy"]["onnx"], report_of(built)["accuracy"]["onnx"]
    assert fresh["images"] == 24
    for name, measured in before["outputs"].items():
        assert fresh["outputs"][name]["sqnr_db"] == measured["sqnr_db"]
        assert fresh["outputs"][name]["cosine_worst"] == measured["cosine_worst"]


def test_verify_of_unknown_or_mixed_calibration(site: Site, built: Path, tmp_path: Path) -> None:
    shutil.copytree(built / "onnx", tmp_path / "onnx")
    manifest = load_manifest(tmp_path / "onnx")
    replace(manifest, calibration={"digest": "of an earlier vitedge", "images": 36}).save(tmp_path / "onnx")
    result = site.vitedge("verify", tmp_path / "onnx", "--eval", site.evaluation)
    assert result.exit_code == 0, result.stderr
    assert "onnx: its manifest does not say which images calibrated it" in result.stderr
    shutil.copytree(built / "tflite", tmp_path / "tflite")
    result = site.vitedge("verify", tmp_path, "--eval", site.evaluation)
    assert result.exit_code == 2
    assert "are not of one build; verify them apart" in " ".join(result.stderr.split())


def test_verify_fails_by_its_gate(site: Site, built: Path) -> None:
    result = site.vitedge("verify", built / "tflite", "--eval", site.evaluation, "--min-sqnr", "99")
    assert result.exit_code == 1
    assert "tflite: last_hidden_state: SQNR" in result.stderr
    assert "cosine mean" in result.stdout


def test_verify_says_in_words_what_it_measured(site: Site, built: Path) -> None:
    result = site.vitedge("verify", built / "onnx", "--eval", site.evaluation)
    assert result.exit_code == 0, result.stderr
    table, words = result.stdout.split("McNemar's exact test")
    for row in (
        *("CLS cosine mean", "CLS norm drift worst", "SQNR last_hidden_state", "patch cosine 1st percentile"),
        *("logits worst image", "1-NN agreement", "10-NN overlap", "INT8→FP32 index recall@10"),
        *("FP32→INT8 index recall@1", "finds itself in FP32 index", "top class agreement", "linear probe drop [95 %]"),
    ):
        assert row in table
    said = " ".join(words.split())
    assert re.search(r"ONNX: (24 images cannot tell|INT8 embeddings may query|re-embed)", said)
    assert "recall@10 " in said
    assert re.search(r"ONNX: k-NN \d+\.\d% → \d+\.\d% on 24 images: no more than chance \(McNemar p = ", said)
    assert "ONNX: top-1 not measured: the folders' names are not the classifier's labels" in said


def test_verify_says_once_what_holds_for_all(site: Site, built: Path) -> None:
    words = site.vitedge("verify", built, "--eval", site.evaluation).stdout
    assert words.count("top-1 not measured") == 1
    assert "ONNX, OpenVINO, TFLite: top-1 not measured" in words


def test_verify_on_a_few_images_claims_nothing(site: Site, built: Path, tmp_path: Path) -> None:
    few = save_images(tmp_path / "few", 9, classes=CLASSES, seed=2)
    result = site.vitedge("verify", built / "onnx", "--eval", few, "--json", "--max-drop", "50%")
    found = json.loads(result.stdout)["accuracy"]["onnx"]
    assert found["retrieval"] is None
    assert found["verdicts"][1] == "neighbors not measured: that needs 21 different images, found 9"
    table = site.vitedge("verify", built / "onnx", "--eval", few).stdout
    assert "1-NN agreement" not in table
    assert "neighbors not measured: that needs 21 different images, found 9" in table


def test_names_that_look_like_markup_are_shown_as_they_are(site: Site, built: Path, tmp_path: Path) -> None:
    for label in ("[b", "c]"):
        save_images(tmp_path / "images" / label, 1, seed=ord(label[0]))
    for image in (tmp_path / "images").rglob("*.png"):
        image.rename(image.with_name("[bold].png"))
    table = site.vitedge("verify", built / "onnx", "--eval", tmp_path / "images").stdout
    assert "[bold].png" in table
    assert "found [b, expected such as" in " ".join(table.split())


def test_verify_warns_of_a_gate_that_so_few_images_cannot_carry(site: Site, built: Path) -> None:
    result = site.vitedge("verify", built / "tflite", "--eval", site.evaluation, "--max-drop", "0.5%")
    assert result.exit_code == 0, result.stderr
    assert "warning: tflite: k-NN: a drop of " in result.stderr
    assert "24 images resolve no drop below 4.17% and cannot rule out one of " in result.stderr
    assert "judge on at least 736" in result.stderr


def test_verify_refuses_another_checkpoint(site: Site, built: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", classes=CLASSES, seed=7)
    result = site.vitedge("verify", built, "--eval", site.evaluation, "--model", other)
    assert result.exit_code == 2
    assert "was built from a checkpoint with digest" in result.stderr
    assert "--model" in result.stderr


def test_verify_catches_an_artifact_that_is_wrong(site: Site, built: Path, tmp_path: Path) -> None:
    """The FP32 twin of another checkpoint, under this one's manifest: every file matches, the numbers do not."""
    other = save_checkpoint(tmp_path / "other", classes=CLASSES, seed=7)
    assert site.vitedge(
        *("build", other, "--images", site.calibration, "--out", tmp_path / "out", "--runtime", "onnx"),
        *("--bench-seconds", "0", "--calibration-images", "33"),
    ).exit_code == 0  # fmt: skip
    manifest = json.loads((tmp_path / "out" / "onnx" / "manifest.json").read_text())
    manifest["source"]["digest"] = load_manifest(built / "onnx").source.digest
    (tmp_path / "out" / "onnx" / "manifest.json").write_text(json.dumps(manifest))
    result = site.vitedge(
        *("verify", tmp_path / "out", "--eval", site.evaluation, "--model", site.model, "--min-cosine", "0.9")
    )
    assert result.exit_code == 1
    assert "is below 0.9" in result.stderr
