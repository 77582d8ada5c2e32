"""Gates and budgets of `vitedge build`: what is searched, what is refused, and what is left behind then."""

from pathlib import Path

import pytest

from tests.commands.conftest import LINEARS, Site, contents, names, report_of
from tests.tiny import save_images
from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.decisions import load_decisions
from vitedge.quantization.gates import Gates
from vitedge.runtimes.manifest import RUNTIMES, load_manifest


def test_gate_refuses_and_leaves_what_was_there(site: Site, built: Path, tmp_path: Path) -> None:
    """A plan that was asked for is taken as it is: no search for what to leave in float stands before the gate."""
    out = tmp_path / "out"
    options = ("--runtime", "onnx", "--plan", built)
    assert site.build(out, *options, "--min-cosine", "0.9").exit_code == 0
    before = contents(out)
    refused = site.build(out, *options, "--min-cosine", "0.9999999")
    assert refused.exit_code == 1
    assert "onnx: last_hidden_state: mean cosine" in refused.stderr
    assert "is below 0.9999999" in refused.stderr
    assert "cosine mean" in refused.stdout  # what was measured is shown
    assert contents(out) == before
    kept = site.build(out, *options, "--min-cosine", "0.9999999", "--keep-failing")
    assert kept.exit_code == 0
    assert report_of(out)["gate_failures"]


def test_gate_on_the_first_build_leaves_nothing(site: Site, built: Path, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", "--runtime", "tflite", "--plan", built, "--min-sqnr", "99")
    assert (result.exit_code, names(tmp_path)) == (1, set())
    assert "tflite: last_hidden_state: SQNR" in result.stderr


def test_gate_that_so_few_images_cannot_carry_is_a_warning(site: Site, built: Path, tmp_path: Path) -> None:
    measured = report_of(built)["accuracy"]["onnx"]["outputs"]["last_hidden_state"]
    low, found = measured["sqnr_db_interval"][0], measured["sqnr_db"]
    options = ("--runtime", "onnx", "--plan", built, "--min-sqnr")
    doubted = site.build(tmp_path / "doubted", *options, str((low + found) / 2))
    assert doubted.exit_code == 0, doubted.stderr
    assert f"warning: onnx: last_hidden_state: SQNR in dB {found:.5g} passes" in doubted.stderr
    assert f"24 images cannot rule out {low:.5g} (95 % interval)" in doubted.stderr
    sure = site.build(tmp_path / "sure", *options, str(low - 1))
    assert "cannot rule out" not in sure.stderr


@pytest.mark.parametrize(
    ("activations", "more_db", "turned"),
    [("auto", 3, {"dynamic"}), ("auto", 8, {"dynamic", "float"}), ("static", 3, {"float"})],
)
def test_budget_beyond_the_plan_makes_linears_dynamic_then_float(
    site: Site, built: Path, tmp_path: Path, activations: str, more_db: float, turned: set[str]
) -> None:
    before = report_of(built)["accuracy"]["onnx"]["outputs"]["last_hidden_state"]["sqnr_db"]
    out, asked = tmp_path / "out", before + more_db
    options = ("--runtime", "onnx", "--activations", activations, "--min-sqnr", str(asked))
    assert site.build(out, *options).exit_code == 0
    report, operations = report_of(out), load_manifest(out / "onnx").operations
    assert report["accuracy"]["onnx"]["outputs"]["last_hidden_state"]["sqnr_db"] >= asked
    floating = [name for name, reason in operations.floating.items() if reason == "float by the plan"]
    assert bool(floating) == ("float" in turned)
    found = report["search"]["onnx"]["found"]
    assert found in report["search"]["onnx"]["curve"]
    assert found["float_linears"] == len(floating) < LINEARS
    precisions = load_decisions(out).recipes["onnx"].precisions
    assert {precision for name, precision in precisions.items() if "*" not in name} == turned
    assert (out / "search.svg").stat().st_size > 0


def refusing_below(monkeypatch: pytest.MonkeyPatch, limit_db: float) -> None:
    """Lets the drop of accuracy, which a tiny model does not have, go with the error."""

    def check(report: AccuracyReport, gates: Gates) -> tuple[str, ...]:
        assert gates.max_drop is not None
        return ("too large a drop",) if report.outputs["last_hidden_state"].sqnr_db < limit_db else ()

    monkeypatch.setattr("vitedge.commands.build.check", check)


def test_drop_beyond_the_gate_is_searched_away(
    site: Site, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = {name: found["outputs"]["last_hidden_state"] for name, found in report_of(built)["accuracy"].items()}
    refusing_below(monkeypatch, accuracy["openvino"]["sqnr_db"] + 3)
    out = tmp_path / "out"
    result = site.build(out, "--max-drop", "50%", "--keep-fp32")
    assert result.exit_code == 0, result.stderr
    report = report_of(out)
    assert report["gate_failures"] == []
    assert report["search"]["openvino"]["tightenings"] >= 1
    assert "openvino: too large a drop" in result.stderr
    assert "openvino: the plan was chosen by its accuracy on the evaluation images" in result.stderr
    for runtime in RUNTIMES:
        found = report["accuracy"][runtime]["outputs"]["last_hidden_state"]["sqnr_db"]
        assert found >= accuracy["openvino"]["sqnr_db"] + 3
        # Only what a gate refused is searched.
        searched = accuracy[runtime]["sqnr_db"] < accuracy["openvino"]["sqnr_db"] + 3
        assert (runtime in report["search"]) == searched
        for folder in (out, out / "fp32"):
            assert load_manifest(folder / runtime).plan_digest == report["plan_digest"]
    # What was found is a plan like any other.
    again = site.build(tmp_path / "again", "--plan", out, "--max-drop", "50%")
    assert again.exit_code == 0, again.stderr
    assert load_decisions(tmp_path / "again").recipes == load_decisions(out).recipes


def test_drop_that_no_plan_avoids_is_refused_and_says_the_best(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing_below(monkeypatch, 200)
    result = site.build(tmp_path / "out", "--runtime", "onnx", "--max-drop", "50%")
    assert result.exit_code == 1
    assert not (tmp_path / "out").exists()
    assert "onnx: too large a drop" in result.stderr
    assert "refused, too much was lost" in result.stderr


def test_budget_that_the_plan_meets_is_not_searched(site: Site, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert site.build(out, "--runtime", "onnx,tflite", "--min-sqnr", "10", "--min-cosine", "0.9").exit_code == 0
    assert report_of(out)["search"] == {}
    assert not (out / "search.svg").exists()


def test_gate_without_images_to_judge_on_is_an_error(site: Site, tmp_path: Path) -> None:
    """All images go into calibration and no --eval: there is nothing that a gate could look at."""
    options = ("--images", site.calibration, "--out", tmp_path / "out", "--bench-seconds", "0", "--runtime", "onnx")
    result = site.vitedge("build", site.model, *options, "--min-cosine", "0.5")
    assert result.exit_code == 2
    assert "pass --eval DIR" in result.stderr
    assert "Rounding" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_drop_gate_without_labels_is_an_error_before_any_work(site: Site, tmp_path: Path) -> None:
    unlabelled = save_images(tmp_path / "unlabelled", 10, seed=5)
    result = site.build(tmp_path / "out", "--eval", unlabelled, "--max-drop", "1%")
    assert result.exit_code == 2
    assert "--max-drop needs labelled images" in result.stderr
    assert "Rounding" not in result.stderr


def test_gate_on_random_weights_is_an_error(site: Site, tmp_path: Path) -> None:
    options = ("--random-weights", "vit-tiny-patch16-224", "--image-size", "32", "--min-cosine", "0.9")
    result = site.vitedge("build", *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "--random-weights: there is no accuracy to judge" in result.stderr
