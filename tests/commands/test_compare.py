"""`vitedge compare`: real documents of this suite's build, and the same with one number changed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.commands.conftest import Site
from vitedge.benchmarks.compare import Limits, Result, Value, compare, failures


@pytest.fixture(scope="module")
def report(built: Path) -> Path:
    return built / "report.json"


def changed(report: Path, folder: Path, change: Callable[[Any], None]) -> Path:
    document = json.loads(report.read_text())
    change(document)
    path = folder / "after.json"
    path.write_text(json.dumps(document))
    return path


def slower(document: Any) -> None:
    found = document["bench"]["pairs"]["onnx"]["artifact"]
    found["latency_median_ms"] *= 2
    found["latency_interval_ms"] = [value * 2 for value in found["latency_interval_ms"]]


def slower_within_noise(document: Any) -> None:
    found = document["bench"]["pairs"]["onnx"]["artifact"]
    found["latency_median_ms"] *= 2
    found["latency_interval_ms"] = [found["latency_interval_ms"][0], found["latency_median_ms"] * 2]


def less_accurate(document: Any) -> None:
    last = document["accuracy"]["tflite"]["outputs"]["last_hidden_state"]
    last["sqnr_db"] -= 10
    last["sqnr_db_interval"] = [value - 10 for value in last["sqnr_db_interval"]]


def larger(document: Any) -> None:
    document["bench"]["pairs"]["openvino"]["artifact"]["size_bytes"] *= 3


def heavier(document: Any) -> None:
    document["bench"]["pairs"]["openvino"]["artifact"]["peak_bytes"] *= 3


def test_the_same_result_is_the_same(site: Site, report: Path) -> None:
    result = site.vitedge("compare", report, report, "--json")
    assert result.exit_code == 0
    changes = json.loads(result.stdout)["changes"]
    assert {change["verdict"] for change in changes} == {"same"}
    assert {change["artifact"] for change in changes} == {"onnx", "openvino", "tflite"}
    assert {change["quantity"] for change in changes} == {
        "latency ms", "load ms", "peak bytes", "file bytes", "SQNR dB"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (slower, 1, "onnx: latency ms"),
        (slower_within_noise, 0, "no more than noise"),
        (less_accurate, 1, "tflite: SQNR dB"),
        (larger, 1, "openvino: file bytes"),
        (heavier, 0, "worse"),  # one peak has no interval: told, and no failure
    ],
)
def test_what_became_worse(
    site: Site, report: Path, tmp_path: Path, change: Callable[[Any], None], code: int, said: str
) -> None:
    result = site.vitedge("compare", report, changed(report, tmp_path, change))
    assert result.exit_code == code
    assert said in result.output


def test_limits_are_the_users(site: Site, report: Path, tmp_path: Path) -> None:
    after = changed(report, tmp_path, slower)
    assert site.vitedge("compare", report, after, "--max-slowdown", "100%").exit_code == 0
    assert site.vitedge("compare", after, report).exit_code == 0  # faster is no failure
    assert site.vitedge("compare", report, after, "--max-slowdown", "often").exit_code == 2


def test_other_machines_and_kinds_of_results(site: Site, built: Path, report: Path, tmp_path: Path) -> None:
    def elsewhere(document: Any) -> None:
        document["bench"]["machine"]["cpu_model"] = "Cortex-A76"

    assert "of different machines: " in site.vitedge("compare", report, changed(report, tmp_path, elsewhere)).stdout
    benched = tmp_path / "bench.json"
    benched.write_text(site.vitedge("bench", built / "onnx", "--seconds", "0.1", "--json").stdout)
    result = site.vitedge("compare", benched, benched, "--json")
    assert {change["artifact"] for change in json.loads(result.stdout)["changes"]} == {"onnx"}
    verified = tmp_path / "verify.json"
    verified.write_text(site.vitedge("verify", built / "onnx", "--eval", site.evaluation, "--json").stdout)
    result = site.vitedge("compare", verified, report, "--json")
    assert [change["quantity"] for change in json.loads(result.stdout)["changes"]] == ["SQNR dB"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON file of vitedge's"),
        ("[]", "not a readable result"),
        ('{"format": "vitedge-report/9"}', "format vitedge-report/9"),
        ('{"format": "vitedge-report/1", "accuracy": {"onnx": {}}}', "KeyError: 'outputs'"),
        ('{"format": "vitedge-report/1", "accuracy": null}', "have nothing in common: onnx, openvino, tflite there"),
    ],
)
def test_bad_results(site: Site, report: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    result = site.vitedge("compare", report, tmp_path / "bad.json")
    assert result.exit_code == 2
    assert message in result.stderr
    assert site.vitedge("compare", report, tmp_path / "none.json").exit_code == 2


@given(st.floats(0.1, 1e4), st.floats(0.1, 10), st.floats(0.001, 0.3))
def test_verdict_follows_the_quotient(before: float, factor: float, limit: float) -> None:
    def result(value: float) -> Result:
        return Result(Path("a"), None, {"onnx": {"latency ms": Value(value, (value, value))}})

    changes = compare(result(before), result(before * factor), Limits(slowdown=limit))
    worsening = before * factor / before - 1
    assert changes[0].verdict == ("same" if abs(worsening) <= limit else "worse" if worsening > 0 else "better")
    assert bool(failures(changes)) is (worsening > limit)
    again = copy.deepcopy(changes)
    assert failures(again) == failures(changes)
