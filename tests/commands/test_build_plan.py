"""`vitedge build --plan`: the decisions of an earlier build, edited or not, and those that do not fit."""

import json
from pathlib import Path

from tests.commands.conftest import CLASSES, Site, report_of
from tests.tiny import save_checkpoint
from vitedge.runtimes.manifest import load_manifest


def edited(built: Path, folder: Path, runtime: str = "onnx", **changes: str) -> Path:
    """A copy of a build's plan.json with precisions by pattern added, `__` for a dot."""
    plan = json.loads((built / "plan.json").read_text())
    plan["recipes"][runtime]["precisions"] |= {key.replace("__", "."): value for key, value in changes.items()}
    path = folder / "edited.json"
    path.write_text(json.dumps(plan))
    return path


def test_plan_of_a_build_gives_the_same_plan_again(site: Site, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = site.build(out, "--plan", built / "plan.json")
    assert result.exit_code == 0, result.stderr
    assert report_of(out)["plan_digest"] == report_of(built)["plan_digest"]
    for name in ("plan.json", "plan.safetensors", "onnx/model.onnx", "tflite/model.tflite"):
        assert (out / name).read_bytes() == (built / name).read_bytes()


def test_edited_plan_makes_one_linear_float(site: Site, built: Path, tmp_path: Path) -> None:
    out, name = tmp_path / "out", "layers.1.mlp.fc1"
    plan = edited(built, tmp_path, layers__1__mlp__fc1="float")
    assert site.build(out, "--runtime", "onnx", "--plan", plan).exit_code == 0
    before, after = load_manifest(built / "onnx").operations, load_manifest(out / "onnx").operations
    assert set(before.integer) - set(after.integer) == {name}
    assert after.floating[name] == "float by the plan"
    assert before.integer_macs - after.integer_macs == 17 * 48 * 96
    assert "float" not in json.loads((built / "plan.json").read_text())["recipes"]["onnx"]["precisions"].values()
    assert json.loads((out / "plan.json").read_text())["recipes"]["onnx"]["precisions"][name] == "float"


def test_plan_that_does_not_fit_is_told_before_any_work(site: Site, built: Path, tmp_path: Path) -> None:
    def refused(*options: str | Path) -> str:
        result = site.build(tmp_path / "out", *options)
        assert result.exit_code == 2, result.output
        assert "Reading" not in result.stderr
        assert not (tmp_path / "out").exists()
        return " ".join(result.stderr.split())

    absent = edited(built, tmp_path, layers__7__mlp__fc1="float")
    told = refused("--plan", absent)
    assert "edited.json: onnx recipe: layers.7.mlp.fc1 matches no linear of this encoder; it has patch_embedd" in told
    assert "expected one of static, dynamic, float, found int4" in refused(
        *("--plan", edited(built, tmp_path, layers__0__mlp__fc1="int4"))
    )
    assert "leave --activations and --ranges out, or edit it" in refused("--plan", built, "--activations", "dynamic")
    assert "leave --activations and --ranges out, or edit it" in refused("--plan", built, "--ranges", "mse")
    assert "made for target avx2, but --target is vnni" in refused("--plan", built, "--target", "vnni")
    plan = json.loads((built / "plan.json").read_text())
    del plan["recipes"]["tflite"]
    absent.write_text(json.dumps(plan))
    assert "edited.json: has no recipe for tflite, only for onnx, openvino; pass --runtime onnx,openvino" in refused(
        *("--plan", absent)
    )
    assert "no such plan; expected the plan.json of a build" in refused("--plan", tmp_path / "nowhere.json")


def test_plan_of_another_checkpoint_is_refused(site: Site, built: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tmp_path / "other", classes=CLASSES, seed=7)
    result = site.vitedge("build", other, "--images", site.calibration, "--plan", built, "--out", tmp_path / "out")
    assert result.exit_code == 2
    digest = report_of(built)["source"]["digest"]
    assert f"plan.json: made for the checkpoint with digest {digest[:12]}…, but this one has" in result.stderr
    assert "Reading" not in result.stderr
    assert not (tmp_path / "out").exists()
