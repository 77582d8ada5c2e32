"""`vitedge build --target npu` as its user sees it."""

import json
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from tests.commands.conftest import Site, report_of
from vitedge.calibration.images import batches, scan
from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.gates import Gates
from vitedge.quantization.integer_plan import load_integer_plan
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest

NPU = ("--target", "npu")


def sqnr_db(out: Path) -> float:
    return float(report_of(out)["accuracy"]["tflite"]["outputs"]["last_hidden_state"]["sqnr_db"])


@pytest.fixture(scope="module")
def narrow(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 bits throughout."""
    out = tmp_path_factory.mktemp("int8") / "out"
    assert site.build(out, *NPU, "--activations", "int8").exit_code == 0
    return out


@pytest.fixture(scope="module")
def searched(site: Site, narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than 8 bits keep."""
    out = tmp_path_factory.mktemp("npu") / "out"
    result = site.build(out, *NPU, "--min-sqnr", str(sqnr_db(narrow) + 3))
    assert result.exit_code == 0, result.output
    return out


def test_search_mixes_8_and_16_bits_and_shows_why(site: Site, narrow: Path, searched: Path) -> None:
    manifest, report = load_manifest(searched / "tflite"), report_of(searched)
    sixteen = manifest.operations.sixteen_bit
    assert (manifest.target, manifest.precision, manifest.operations.integer_share) == ("npu", "int8", 1.0)
    assert manifest.operations.floating == {}
    assert sqnr_db(searched) >= sqnr_db(narrow) + 3
    assert len(sixteen) in [point["sixteen_bit_tensors"] for point in report["search"]["tflite"]["curve"]]
    assert 0 < len(sixteen) < len(load_integer_plan(searched).precision.ranges) - 1
    assert (searched / "search.svg").stat().st_size > 0
    assert {path.name for path in searched.iterdir()} == {
        "tflite", "golden", "report", "plan.json", "plan.safetensors", "report.json", "search.svg"
    }  # fmt: skip
    shown = site.vitedge("inspect", searched).stdout
    assert "10 linears and all between them" in shown
    assert f"{len(sixteen)} activations: " in shown
    assert "made for accelerators" in shown


def test_plan_of_a_build_gives_the_same_artifact_again(site: Site, searched: Path, tmp_path: Path) -> None:
    assert site.build(tmp_path / "again", *NPU, "--plan", searched).exit_code == 0
    files = [folder / "tflite" / "model.tflite" for folder in (searched, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert report_of(searched)["plan_digest"] == report_of(tmp_path / "again")["plan_digest"]


def test_edited_plan_widens_what_it_names(site: Site, searched: Path, tmp_path: Path) -> None:
    document = json.loads((searched / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(document | {"sixteen_bit": ["*.residual", "residual"]}))
    assert site.build(tmp_path / "out", *NPU, "--plan", tmp_path / "plan.json").exit_code == 0
    sixteen = load_manifest(tmp_path / "out" / "tflite").operations.sixteen_bit
    assert sixteen == tuple(sorted(name for name in document["ranges"] if name.endswith("residual")))


def test_edited_range_is_that_of_the_artifact(site: Site, searched: Path, tmp_path: Path) -> None:
    document = json.loads((searched / "plan.json").read_text())
    name = next(name for name in document["ranges"] if name.endswith(".wide") and name not in document["sixteen_bit"])
    document["ranges"][name] = [-100.0, 100.0]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    assert site.build(tmp_path / "out", *NPU, "--plan", tmp_path / "plan.json").exit_code == 0
    ranges = load_integer_plan(tmp_path / "out").precision.ranges
    assert (ranges[name].low, ranges[name].high) == (-100, 100)
    assert sqnr_db(tmp_path / "out") < sqnr_db(searched) - 3


def test_plan_without_the_range_of_a_tensor_is_refused(site: Site, searched: Path, tmp_path: Path) -> None:
    document = json.loads((searched / "plan.json").read_text())
    del document["ranges"]["layers.0.mlp.wide"]
    document["sixteen_bit"] = ["residual"]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    result = site.build(tmp_path / "out", *NPU, "--plan", tmp_path / "plan.json")
    assert result.exit_code == 2
    assert "the first that only one of them has is layers.0.mlp.wide" in result.stderr


def test_plan_of_other_images_is_refused(site: Site, searched: Path, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", *NPU, "--plan", searched, "--calibration-images", "33")
    assert result.exit_code == 2
    assert "plan.json: calibrated on images with digest " in result.stderr
    assert "pass the same --images and --calibration-images" in result.stderr


def test_one_image_cannot_both_calibrate_and_judge(site: Site, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", *NPU, "--calibration-images", "1")
    assert result.exit_code == 2
    assert "expected at least 2 calibration images" in result.stderr
    assert "pass more, or --activations int8 or int16" in result.stderr


def test_search_predicts_no_more_than_the_artifact_reaches(searched: Path) -> None:
    """Its ranges do not know the images that judge."""
    assert report_of(searched)["search"]["tflite"]["found"]["sqnr_db"] < sqnr_db(searched) + 1


def test_8_and_16_bits_throughout(site: Site, narrow: Path, tmp_path: Path) -> None:
    assert site.build(tmp_path / "wide", *NPU, "--activations", "int16").exit_code == 0
    assert not load_manifest(narrow / "tflite").operations.sixteen_bit
    assert not (narrow / "search.svg").exists()
    assert sqnr_db(narrow) > 20
    assert sqnr_db(tmp_path / "wide") > sqnr_db(narrow) + 6


def test_random_weights_have_8_bits_and_no_search(site: Site, tmp_path: Path) -> None:
    shape = ("--random-weights", "vit-tiny-patch16-32", "--images", site.calibration, "--calibration-images", "8")
    result = site.vitedge("build", *shape, *NPU, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert report_of(tmp_path / "out")["search"] == {}
    assert not load_manifest(tmp_path / "out" / "tflite").operations.sixteen_bit


def test_integers_as_input_and_outputs_mean_the_same(site: Site, searched: Path, tmp_path: Path) -> None:
    """Manifest and wrapper give the integers their meaning: the outputs are those of the file with floats."""
    out = tmp_path / "out"
    assert site.build(out, *NPU, "--plan", searched, "--integer-io").exit_code == 0
    manifest = load_manifest(out / "tflite")
    for record in (*manifest.inputs, *manifest.outputs):
        assert record.dtype in ("int8", "int16")
        assert record.scale is not None
        assert record.zero_point is not None
    runner = Interpreter(str(out / "tflite" / "model.tflite")).get_signature_runner("serving_default")
    types = {name: detail["dtype"] for name, detail in runner.get_input_details().items()}
    types |= {name: detail["dtype"] for name, detail in runner.get_output_details().items()}
    assert types == {record.name: np.dtype(record.dtype).type for record in (*manifest.inputs, *manifest.outputs)}
    pixels = next(batches(scan(site.evaluation, 8), manifest.preprocessing, 8))
    floats, integers = (load_encoder(folder / "tflite")(pixels) for folder in (searched, out))
    for name in floats:
        np.testing.assert_allclose(integers[name], floats[name], atol=1e-5)
    assert "scale" in site.vitedge("inspect", out).stdout


def test_budget_beyond_16_bits_says_the_best_reached(site: Site, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", *NPU, "--min-sqnr", "90")
    assert result.exit_code == 2
    assert "the best plan has 16 bits everywhere, and reaches" in result.stderr
    assert not (tmp_path / "out").exists()


def test_gate_that_only_the_best_plan_meets_is_met(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans get better by 2 dB as long as there is so much to gain, then by what there is."""
    assert site.build(tmp_path / "wide", *NPU, "--activations", "int16").exit_code == 0
    limit_db = sqnr_db(tmp_path / "wide") - 0.2

    def check(report: AccuracyReport, _gates: Gates) -> tuple[str, ...]:
        return ("too large a drop",) if report.outputs["last_hidden_state"].sqnr_db < limit_db else ()

    monkeypatch.setattr("vitedge.commands.build.check", check)
    result = site.build(tmp_path / "out", *NPU, "--max-drop", "50%")
    assert result.exit_code == 0, result.stderr
    assert report_of(tmp_path / "out")["search"]["tflite"]["tightenings"] > 1


def test_gate_refuses_what_8_bits_lost(site: Site, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", *NPU, "--activations", "int8", "--min-sqnr", "60")
    assert result.exit_code == 1
    assert "tflite: last_hidden_state: SQNR" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*NPU, "--runtime", "onnx"), "makes TFLite files only"),
        ((*NPU, "--activations", "dynamic"), "expected auto, int8, int16 for target npu, found dynamic"),
        ((*NPU, "--ranges", "mse"), "min-max ranges only"),
        (("--activations", "int8"), "expected auto, static, dynamic for target avx2, found int8"),
        (("--integer-io",), "--integer-io is for --target npu"),
    ],
)
def test_options_that_do_not_go_together(site: Site, tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    result = site.build(tmp_path / "out", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Loading" not in result.stderr


def test_plan_of_a_cpu_target_is_refused_before_any_work(site: Site, built: Path, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", *NPU, "--plan", built)
    assert result.exit_code == 2
    assert "expected a plan of format vitedge-npu-plan/1, found vitedge-plan/6" in result.stderr
    assert "Reading" not in result.stderr
