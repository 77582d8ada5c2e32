"""`vitedge inspect --profile`, on the build of the tiny classifier."""

import json
from pathlib import Path

import pytest

from tests.commands.conftest import LINEARS, Site
from vitedge.benchmarks.profile import NO_TIMES

PRODUCTS = {"onnx": LINEARS, "openvino": LINEARS + 2 * 2, "tflite": LINEARS}  # OpenVINO has three for each qkv


def test_profile_of_a_whole_build_as_json(site: Site, built: Path) -> None:
    result = site.vitedge("inspect", built, "--profile", "--json")
    assert result.exit_code == 0, result.stderr
    found = {item["runtime"]: item for item in json.loads(result.stdout)["artifacts"]}
    assert set(found) == set(PRODUCTS)
    for runtime, item in found.items():
        profile = item["profile"]
        assert profile["runtime"] == runtime
        assert profile["integer_macs_share"] == item["integer_macs_share"]
        assert sum(group["count"] for group in profile["groups"] if group["role"] == "integer") == PRODUCTS[runtime]
        assert profile["latency_ms"] > 0
    assert 0 < found["onnx"]["profile"]["integer_time_share"] < 1
    assert found["tflite"]["profile"]["operators_ms"] is None
    assert found["tflite"]["profile"]["partitions"] == 1


def test_table_says_where_time_goes(site: Site, built: Path) -> None:
    result = site.vitedge("inspect", built / "onnx", "--profile", "--threads", "2")
    assert result.exit_code == 0, result.stderr
    assert "match the manifest" in result.stdout
    table = result.stdout[result.stdout.index("onnxruntime, threads 2: ") :]
    for words in (
        "MatMulIntegerToFloat",
        "integer products: ",
        "% of that time",
        "conversions between float and integer",
    ):
        assert words in table
    assert "warning" not in table


def test_table_of_tflite_makes_no_times_up(site: Site, built: Path) -> None:
    table = site.vitedge("inspect", built / "tflite", "--profile").stdout
    table = table[table.index("ai-edge-litert, threads 1: ") :]
    assert NO_TIMES in table
    assert "partitions: 1" in table
    assert "share" not in table


def test_fallback_is_a_warning(site: Site, built: Path, tmp_path: Path) -> None:
    """The FP32 twin, whose manifest claims the linears of the INT8 artifact."""
    twin = tmp_path / "onnx"
    twin.mkdir()
    (twin / "model.onnx").write_bytes((built / "fp32" / "onnx" / "model.onnx").read_bytes())
    manifest = json.loads((built / "fp32" / "onnx" / "manifest.json").read_text())
    manifest["operations"] = json.loads((built / "onnx" / "manifest.json").read_text())["operations"]
    (twin / "manifest.json").write_text(json.dumps(manifest))
    said = " ".join(site.vitedge("inspect", twin, "--profile").stdout.split())
    assert "warning: linears that the manifest calls integer, but no fast integer kernel computed: float " in said
    assert "layers.*.mlp.fc1 (2)" in said
    assert "integer products: 0.0% of that time" in said


@pytest.mark.parametrize("runtime", sorted(PRODUCTS))
def test_fp32_twins_have_nothing_to_fall_back_from(site: Site, built: Path, runtime: str) -> None:
    (found,) = json.loads(site.vitedge("inspect", built / "fp32" / runtime, "--profile", "--json").stdout)["artifacts"]
    assert found["profile"]["fallbacks"] == []
    assert not any(group["role"] == "integer" for group in found["profile"]["groups"])


def test_without_the_option_nothing_runs(site: Site, built: Path) -> None:
    (found,) = json.loads(site.vitedge("inspect", built / "onnx", "--json").stdout)["artifacts"]
    assert found["profile"] is None
