"""`vitedge build` as its user sees it: what it leaves behind, what it prints, and what it refuses."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import openvino
import pytest

from tests.benchmarks.measured import pair, report
from tests.commands.conftest import CLASSES, LINEARS, Site, contents, names, report_of
from tests.tiny import save_checkpoint, save_images
from vitedge.benchmarks.machine import describe_machine
from vitedge.commands import build, verify
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import Manifest, load_manifest

FILES = {"onnx": {"model.onnx"}, "openvino": {"model.xml", "model.bin"}, "tflite": {"model.tflite"}}


def test_build_leaves_three_artifacts_the_plan_and_a_report(built: Path) -> None:
    assert names(built) == {
        "onnx",
        "openvino",
        "tflite",
        "fp32",
        "golden",
        "report",
        "plan.json",
        "plan.safetensors",
        "report.json",
    }
    for runtime, files in FILES.items():
        assert names(built / runtime) == names(built / "fp32" / runtime) == files | {"manifest.json"}
        manifest, twin = load_manifest(built / runtime), load_manifest(built / "fp32" / runtime)
        assert (manifest.precision, twin.precision) == ("int8", "fp32")
        assert len(manifest.operations.integer) == LINEARS
        assert twin.operations.integer_share == 0
        assert manifest.accuracy is not None
        assert manifest.latency is not None
        assert manifest.latency["machine"]["usable_cores"] > 0


def test_nothing_is_exported_twice(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runtime is lowered once in FP32 and once in INT8, and the images are observed once for all."""
    lowered: list[tuple[str, bool]] = []
    lower = build.lower

    def counted(runtime: str, folder: Path, **arguments: Any) -> Manifest:
        lowered.append((runtime, bool(arguments["linears"])))
        return lower(runtime, folder, **arguments)

    monkeypatch.setattr(build, "lower", counted)
    monkeypatch.setattr("vitedge.commands.cpu.lower", counted)
    assert site.build(tmp_path / "out", "--keep-fp32").exit_code == 0
    assert sorted(lowered) == sorted((runtime, integer) for runtime in FILES for integer in (False, True))


def test_report_tells_how_and_how_well(built: Path, site: Site) -> None:
    report = report_of(built)
    assert report["source"]["source"] == str(site.model)
    assert (report["calibration"]["images"], report["evaluation"]["images"]) == (36, 24)
    assert set(report["accuracy"]) == set(report["export_max_abs_error"]) == set(FILES)
    assert max(report["export_max_abs_error"].values()) <= 1e-4
    assert 1e8 < report["peak_bytes"] < 1e10
    for accuracy in report["accuracy"].values():
        assert accuracy["outputs"]["last_hidden_state"]["sqnr_db"] > 25
        assert accuracy["outputs"]["logits"]["cosine_mean"] > 0.995
        # The folders' names are not the model's labels.
        assert [drop["metric"] for drop in accuracy["drops"]] == ["k-NN", "linear probe"]
        assert "top-1 not measured: the folders' names are not the classifier's labels" in accuracy["verdicts"][-1]
    for measured in report["bench"]["pairs"].values():
        assert measured["artifact"]["latency_median_ms"] > 0
        assert measured["speedup"]["low"] <= measured["speedup"]["median"] <= measured["speedup"]["high"]


def test_build_warns_where_int8_is_not_clearly_faster(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"onnx": pair(10, 20), "openvino": pair(10, 10.2), "tflite": pair(20, 16)}
    monkeypatch.setattr(build, "measure_all", lambda pairs, **_: report({}, **{name: measured[name] for name in pairs}))
    result = site.build(tmp_path / "out", "--bench-seconds", "1")
    assert result.exit_code == 0, result.stderr
    assert "warning: onnx" not in result.stderr
    for words in ("openvino: INT8 is not clearly faster than FP32 on this machine: 1.02× [1.01, 1.03]", "tflite: INT8"):
        assert f"warning: {words}" in result.stderr
    table = " ".join(result.stdout.split())
    assert "2.00× [1.98, 2.02]" in table
    assert "ONNX: 2.00× [1.98, 2.02] faster than FP32 here" in table
    assert "TFLite: SLOWER than FP32 here (0.80× [0.79, 0.81]): use FP32 on this machine" in table
    # Within noise of the fastest INT8, and exact.
    assert "use FP32 on this machine: openvino FP32, 10.20 ms" in table


@pytest.mark.parametrize(("target", "told"), [("vnni", True), ("avx2", False)])
def test_accuracy_that_saturation_spoils_is_doubted(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, told: bool
) -> None:
    """On a host without VNNI; in ONNX Runtime nothing saturates there."""
    haswell = replace(describe_machine(), isa_flags=("avx2",))
    monkeypatch.setattr(verify, "describe_machine", lambda: haswell)
    result = site.build(tmp_path / "out", "--target", target, "--runtime", "onnx,openvino")
    assert result.exit_code == 0
    warned = "warning: openvino: 12 of 12 integer products can saturate on this CPU, which has no VNNI: accuracy below"
    assert (warned in " ".join(result.stderr.split())) is told
    assert "warning: onnx: 10 of" not in result.stderr


def test_second_build_replaces_the_first_whole(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert site.build(out, "--runtime", "onnx,tflite").exit_code == 0
    (out / "stray").write_text("of an earlier build")
    assert site.build(out, "--runtime", "openvino", "--target", "vnni").exit_code == 0
    assert names(out) == {"openvino", "golden", "report", "plan.json", "plan.safetensors", "report.json"}
    assert report_of(out)["target"] == "vnni"
    assert names(tmp_path) == {"out"}


def test_folder_of_another_is_refused_before_any_work(site: Site, tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1.txt").write_text("It was a dark and stormy night.")
    result = site.build(precious)
    assert result.exit_code == 2
    assert "not a vitedge build" in result.stderr
    assert "pass another --out" in result.stderr
    assert "Reading" not in result.stderr
    assert contents(precious) == {"chapter1.txt": b"It was a dark and stormy night."}


def test_calibration_is_reused_from_the_cache(site: Site, built: Path, tmp_path: Path) -> None:
    again = site.build(tmp_path / "again", "--runtime", "tflite")
    assert "Calibration of 36 images reused from the cache" in again.stderr
    assert report_of(tmp_path / "again")["calibration"] == report_of(built)["calibration"]
    fewer = site.build(tmp_path / "fewer", "--runtime", "tflite", "--calibration-images", "33")
    assert "reused" not in fewer.stderr


def test_dynamic_activations_give_every_row_its_range(site: Site, tmp_path: Path) -> None:
    """Every linear but the patch embedding; fc2's rows begin at GELU's own minimum, which is not looked for."""
    out = tmp_path / "out"
    result = site.build(out, "--runtime", "onnx", "--runtime", "openvino,onnx", "--activations", "dynamic")
    assert result.exit_code == 0, result.stderr
    kinds = {
        "onnx": [node.op_type for node in onnx.load(out / "onnx" / "model.onnx").graph.node],
        "openvino": [op.get_type_name() for op in openvino.Core().read_model(out / "openvino" / "model.xml").get_ops()],
    }
    for runtime, quantize in (("onnx", "QuantizeLinear"), ("openvino", "FakeQuantize")):
        assert kinds[runtime].count(quantize) == LINEARS
        assert kinds[runtime].count("ReduceMax") == LINEARS - 1
        assert kinds[runtime].count("ReduceMin") == LINEARS - 1 - 2
        assert len(load_manifest(out / runtime).operations.integer) == LINEARS
        assert report_of(out)["accuracy"][runtime]["outputs"]["last_hidden_state"]["sqnr_db"] > 25


def test_portable_onnx_has_standard_operators_and_equal_features(site: Site, built: Path, tmp_path: Path) -> None:
    assert site.build(tmp_path / "out", "--runtime", "onnx", "--portable", "--plan", built).exit_code == 0
    nodes = onnx.load(tmp_path / "out" / "onnx" / "model.onnx").graph.node
    assert {node.domain for node in nodes} == {""}
    assert [load_manifest(folder / "onnx").opsets for folder in (built, tmp_path / "out")] == [
        {"ai.onnx": 20, "com.microsoft": 1},
        {"ai.onnx": 20},
    ]
    found = [report_of(out)["accuracy"]["onnx"]["outputs"]["last_hidden_state"] for out in (built, tmp_path / "out")]
    assert abs(found[0]["sqnr_db"] - found[1]["sqnr_db"]) < 0.5


def test_black_calibration_images_are_refused(site: Site, tmp_path: Path) -> None:
    images = tmp_path / "black"
    images.mkdir()
    for index in range(32):  # sizes differ, so that no two files are the same picture
        cv2.imwrite(str(images / f"{index}.png"), np.zeros((40 + index, 40, 3), np.uint8))
    result = site.build(tmp_path / "out", "--images", images)
    assert result.exit_code == 2
    assert "the input of patch_embedding never changed over the calibration images" in result.stderr
    assert "calibrate on images like those the encoder will see" in result.stderr
    assert names(tmp_path) == {"black"}


def test_images_not_calibrated_on_are_held_out_to_judge(site: Site, tmp_path: Path) -> None:
    options = ("--out", tmp_path / "out", "--bench-seconds", "0", "--runtime", "onnx", "--calibration-images", "20")
    result = site.vitedge("build", site.model, "--images", site.calibration, *options)
    assert result.exit_code == 0
    assert report_of(tmp_path / "out")["evaluation"]["images"] == 36 - 20
    assert "only 20 different calibration images" in result.stderr
    assert "at least 32" in result.stderr


def test_json_goes_to_stdout_alone(site: Site, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", "--runtime", "tflite", "--json")
    assert json.loads(result.stdout) == report_of(tmp_path / "out")
    assert site.build(tmp_path / "out", "--runtime", "tflite", "--quiet").stderr == ""


def test_random_weights_have_no_accuracy(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--random-weights", "vit-tiny-patch16-224", "--image-size", "32", "--runtime", "onnx,tflite")
    result = site.vitedge("build", *options, "--out", out, "--bench-seconds", "0.1", "--calibration-images", "32")
    assert result.exit_code == 0, result.stderr
    assert "random weights" in result.stdout
    assert "cosine" not in result.stdout
    assert "Comparing with PyTorch" not in result.stderr
    assert report_of(out)["accuracy"] == {}
    assert report_of(out)["evaluation"] is None
    assert load_manifest(out / "onnx").accuracy is None
    assert load_manifest(out / "onnx").source.random_weights is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "--images", "{calibration}"), "expected a checkpoint folder or hub id"),
        (("build", "{model}"), "expected --images DIR"),
        (("build", "{model}", "--images", "{tmp}/nowhere"), "nowhere: no such folder"),
        (("build", "{model}", "--images", "{tmp}/empty"), "empty: no images in it or below; expected .jpg"),
        (("build", "{tmp}/nowhere", "--images", "{calibration}"), "nowhere"),
        (("build", "{model}", "--images", "{calibration}", "--runtime", "onnx,coreml"), "found coreml"),
        (("build", "{model}", "--images", "{calibration}", "--batch", "many"), "--batch: expected a number of"),
        (("build", "{model}", "--images", "{calibration}", "--batch", "4,8"), "--batch: expected one size, found 4,8"),
        (
            ("build", "{model}", "--images", "{calibration}", "--bench-seconds", "inf"),
            "--bench-seconds: expected a finite number",
        ),
        (("build", "{model}", "--images", "{calibration}", "--max-drop", "lots"), "lots"),
        (("build", "{other}", "--images", "{calibration}"), "deit"),
        (("build", "{model}", "--images", "{calibration}", "--eval", "{calibration}"), "the same picture as"),
        (("verify", "{tmp}/empty", "--eval", "{calibration}"), "expected an artifact such as OUT/onnx"),
        (("bench", "{tmp}/nowhere"), "no such folder"),
        (("bench", "{tmp}/nowhere", "--threads", "0"), "--threads: expected a number of"),
        (("run", "{tmp}/empty", "cat.jpg"), "expected an artifact such as OUT/onnx"),
        (("inspect", "{tmp}/empty"), "no manifest.json"),
        (("inspect", "{tmp}/" + 300 * "x"), "File name too long"),
        (
            ("build", "--random-weights", "vit-tiny-patch16-224", "--eval", "{calibration}"),
            "there is no accuracy to judge",
        ),
    ],
)
def test_bad_input_is_told_in_one_message(site: Site, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty").mkdir()
    other = save_checkpoint(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "deit", "architectures": ["DeiTModel"]}))
    places = {"model": site.model, "calibration": site.calibration, "tmp": tmp_path, "other": other}
    out = ("--out", str(tmp_path / "out")) if arguments[0] == "build" else ()
    result = site.vitedge(*(argument.format(**places) for argument in arguments), *out)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--images", "--eval"])
def test_images_within_the_old_build_are_not_deleted(option: str, site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photographs = shutil.copytree(site.evaluation, out / "photographs")
    (out / "report.json").write_text(json.dumps({"format": "vitedge-report/1"}))
    result = site.build(out, option, photographs)
    assert result.exit_code == 2
    assert f"{out}: holds {option} ({photographs}), which would be deleted" in result.stderr
    assert len(list(photographs.rglob("*.png"))) == 24


def test_copy_of_a_calibration_image_under_another_name_is_refused(site: Site, tmp_path: Path) -> None:
    evaluation = shutil.copytree(site.evaluation, tmp_path / "evaluation")
    image = cv2.imread(str(next(site.calibration.rglob("*.png"))))
    cv2.imwrite(str(evaluation / "class0" / "holiday.png"), image, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    result = site.build(tmp_path / "out", "--eval", evaluation)
    assert result.exit_code == 2
    assert "1 evaluation images are calibration images too" in result.stderr
    assert "holiday.png" in result.stderr


def one_bad_of_a_hundred(folder: Path, name: str, data: bytes) -> Path:
    save_images(folder, 99, seed=3)
    (folder / name).write_bytes(data)
    return folder


def truncated_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:-700])


def png_of_200_megapixels() -> bytes:
    """A real PNG of 20000×10000 black pixels, some 600 KB of file."""
    return bytes(cv2.imencode(".png", np.zeros((10000, 20000, 3), np.uint8))[1].tobytes())


def test_truncated_jpeg_is_named_skipped_and_counted(site: Site, tmp_path: Path) -> None:
    images = one_bad_of_a_hundred(tmp_path / "images", "broken.jpg", truncated_jpeg())
    result = site.build(tmp_path / "out", "--images", images, "--runtime", "onnx")
    assert result.exit_code == 0
    assert "calibration image skipped" in result.stderr
    assert "broken.jpg" in result.stderr
    calibration = report_of(tmp_path / "out")["calibration"]
    assert (calibration["images"], calibration["skipped"]) == (99, 1)


def test_more_than_5_percent_bad_images_stop_the_build(site: Site, tmp_path: Path) -> None:
    images = save_images(tmp_path / "images", 94, seed=3)
    for index in range(6):
        (images / f"broken{index}.jpg").write_bytes(truncated_jpeg())
    result = site.build(tmp_path / "out", "--images", images)
    assert result.exit_code == 2
    assert "6 of 100 images cannot be read, more than 5%" in result.stderr
    assert "broken0.jpg" in result.stderr


def test_image_of_200_megapixels_is_refused_before_decoding(site: Site, tmp_path: Path) -> None:
    data = png_of_200_megapixels()
    assert len(data) < 1e6
    images = one_bad_of_a_hundred(tmp_path / "images", "bomb.png", data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = site.build(tmp_path / "out", "--images", images, "--runtime", "onnx")
    assert result.exit_code == 0
    assert "bomb.png" in result.stderr
    assert "found 20000×10000 (200.0 megapixels)" in result.stderr
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # decoded it has 600 MB


def test_full_disk_is_told_and_the_old_build_stays(site: Site, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: writers fail in the same places, and hide it in the same ways."""
    out = tmp_path / "out"
    assert site.build(out, "--runtime", "openvino").exit_code == 0
    before = contents(out)
    script = (
        "import resource, signal, vitedge.cli; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); vitedge.cli.main()"
    )
    options = ["--images", str(site.calibration), "--runtime", "openvino", "--out", str(out)]
    result = subprocess.run(
        [sys.executable, "-c", script, "build", str(site.model), *options], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "out: cannot be written (File too large); what was there before is unchanged" in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(out) == before
    assert names(tmp_path) == {"out"}


@pytest.mark.parametrize("moment", ["Rounding weights", "Lowering the plan to openvino", "Comparing with"])
def test_interrupted_build_leaves_the_old_one(site: Site, tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out"
    assert site.build(out, "--runtime", "tflite").exit_code == 0
    before = contents(out)
    images = ["--images", str(site.calibration), "--eval", str(site.evaluation)]
    command = [sys.executable, "-m", "vitedge", "build", str(site.model), *images, "--out", str(out)]
    seen = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            seen.append(line)
            if line.startswith(moment):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, "".join(seen)
    assert "interrupted" in seen[-1]
    assert contents(out) == before
    assert names(tmp_path) == {"out"}


def test_artifact_answers_as_the_wrapper_promises(built: Path, site: Site) -> None:
    images = sorted(site.evaluation.rglob("*.png"))[:3]
    outputs = [load_encoder(built / runtime).encode(images) for runtime in FILES]
    for found in outputs:
        assert {name: array.shape for name, array in found.items()} == {
            "last_hidden_state": (3, 17, 48),
            "logits": (3, CLASSES),
        }
        np.testing.assert_array_equal(found["logits"].argmax(1), outputs[0]["logits"].argmax(1))
