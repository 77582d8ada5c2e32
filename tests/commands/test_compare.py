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
from tests.commands.device_side import on_device
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


def less_similar(document: Any) -> None:
    last = document["accuracy"]["onnx"]["outputs"]["last_hidden_state"]
    last["cosine_mean"] -= 0.01
    last["cosine_mean_interval"] = [value - 0.01 for value in last["cosine_mean_interval"]]


def gone(document: Any) -> None:
    del document["accuracy"]["openvino"], document["bench"]["pairs"]["openvino"]


def unjudged(document: Any) -> None:
    document["accuracy"] = None


def ruined(document: Any) -> None:
    document["accuracy"]["onnx"]["outputs"]["last_hidden_state"] |= {"sqnr_db": -1.5, "sqnr_db_interval": [-2, 0]}


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
        "latency ms", "load ms", "peak bytes", "file bytes", "SQNR dB", "CLS cosine mean"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (slower, 1, "onnx: latency ms"),
        (slower_within_noise, 0, "no more than noise"),
        (less_accurate, 1, "tflite: SQNR dB"),
        (less_similar, 1, "onnx: CLS cosine mean"),
        (gone, 1, "openvino: in "),
        (unjudged, 1, "onnx: SQNR dB: in "),
        (ruined, 1, "→ -1.5"),
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


def test_other_checkpoints_are_not_compared(site: Site, report: Path, tmp_path: Path) -> None:
    def another(document: Any) -> None:
        document["source"]["digest"] = "0" * 64

    result = site.vitedge("compare", report, changed(report, tmp_path, another))
    assert result.exit_code == 2
    assert "of different checkpoints" in result.stderr


def test_latencies_are_compared_for_equal_threads(site: Site, report: Path, tmp_path: Path) -> None:
    def two(document: Any) -> None:
        document["bench"]["threads"] = 2
        slower(document)

    result = site.vitedge("compare", report, changed(report, tmp_path, two), "--json")
    assert result.exit_code == 1
    assert "onnx: latency ms: in " in result.stderr
    assert not [change for change in json.loads(result.stdout)["changes"] if "latency" in change["quantity"]]


def test_delegates_are_not_compared_with_each_other(site: Site, report: Path, tmp_path: Path) -> None:
    """A GPU that is faster than XNNPACK makes no release faster, and the reverse none slower."""
    run = json.loads(report.read_text())["bench"]
    digest = json.loads(report.read_text())["source"]["digest"]
    paths = []
    for name, delegate in (("cpu", "none"), ("gpu", "gpu")):
        document = {"format": "vitedge-benches/2", "source_digest": digest, "runs": [run | {"delegate": delegate}]}
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(document))

    def compared(*results: Path) -> set[str]:
        found = json.loads(site.vitedge("compare", *results, "--json").stdout)
        return {change["quantity"] for change in found["changes"]}

    assert not any("latency" in quantity for quantity in compared(*paths))
    # The twins: each with itself.
    assert "latency ms" in compared(paths[0], paths[0])
    assert "latency ms, delegate gpu" in compared(paths[1], paths[1])


def test_a_self_test_that_fails_now_is_a_failure(site: Site, tmp_path: Path) -> None:
    def device(status: str) -> Path:
        checks = [{"step": "inference", "artifact": "onnx", "status": status, "numbers": {}}]
        selftest = {"machine": {"cpu_model": "A76"}, "checks": checks, "source_digest": "0"}
        path = tmp_path / f"{status}.json"
        path.write_text(json.dumps({"format": "vitedge-device/1", "device": "d", "selftest": selftest, "bench": None}))
        return path

    assert site.vitedge("compare", device("fail"), device("pass")).exit_code == 0
    result = site.vitedge("compare", device("pass"), device("fail"))
    assert result.exit_code == 1
    assert "onnx: self-test 1 → 0" in result.stderr


def test_doubts_of_either_result_are_told_with_the_verdict(site: Site, report: Path, tmp_path: Path) -> None:
    """A throttled run against a clean one: the verdict stands, and why it may be wrong stands beside it."""
    words = "the clock fell from 3000 to 2400 MHz during the run: throttling"

    def saved(name: str, *, of_run: list[str], of_pair: list[str], factor: float = 1) -> Path:
        document = json.loads(report.read_text())
        document["bench"]["flags"] = of_run
        for runtime, pair in document["bench"]["pairs"].items():
            pair["flags"] = of_pair if runtime == "onnx" else []
        found = document["bench"]["pairs"]["onnx"]["artifact"]
        found["latency_median_ms"] *= factor
        found["latency_interval_ms"] = [value * factor for value in found["latency_interval_ms"]]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(document))
        return path

    clean = saved("clean", of_run=[], of_pair=[])
    assert "doubtful" not in site.vitedge("compare", clean, clean).output
    throttled = saved("throttled", of_run=[], of_pair=[words], factor=2)
    result = site.vitedge("compare", clean, throttled)
    assert result.exit_code == 1
    assert f"(doubtful: after: {words})" in " ".join(result.stderr.split())
    assert "worse, doubtful" in result.stdout
    assert f"doubt: onnx, after: {words}" in result.stdout
    assert result.stdout.count("doubtful") == 2  # of latency and of loading, of that artifact
    # One that is no worse only because the first was throttled as well.
    result = site.vitedge("compare", throttled, throttled, "--json")
    assert result.exit_code == 0
    (latency,) = (
        change
        for change in json.loads(result.stdout)["changes"]
        if (change["artifact"], change["quantity"]) == ("onnx", "latency ms")
    )
    assert latency["before"]["flags"] == latency["after"]["flags"] == [words]
    busy = saved("busy", of_run=["the machine was busy"], of_pair=[])
    assert "doubt: tflite, before: the machine was busy" in site.vitedge("compare", busy, clean).stdout


def test_self_tests_of_a_bundle(site: Site, bundled: Path, tmp_path: Path) -> None:
    """What `python -m vitedge.device selftest --json` prints, which vitedge report accepts too."""
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(on_device(bundled, "selftest", "--json").stdout)
    document = json.loads(before.read_text())
    (check,) = (c for c in document["checks"] if (c["step"], c["artifact"]) == ("inference", "onnx"))
    check["numbers"]["sqnr_db"] -= 10
    after.write_text(json.dumps(document))
    assert site.vitedge("compare", before, before).exit_code == 0
    result = site.vitedge("compare", before, after)
    assert result.exit_code == 1
    assert "onnx: SQNR dB of golden images" in result.stderr


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
    assert [change["quantity"] for change in json.loads(result.stdout)["changes"]] == ["SQNR dB", "CLS cosine mean"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected a JSON file of vitedge's"),
        ("[]", "not a readable result"),
        ('{"format": "vitedge-report/9"}', "format vitedge-report/9"),
        ('{"format": "vitedge-report/1", "source": {"digest": "0"}, "accuracy": {"onnx": {}}}', "KeyError: 'outputs'"),
        (
            '{"format": "vitedge-report/1", "source": {"digest": "SAME"}, "accuracy": null}',
            "have nothing in common: onnx, openvino, tflite there",
        ),
    ],
)
def test_bad_results(site: Site, report: Path, tmp_path: Path, text: str, message: str) -> None:
    digest = json.loads(report.read_text())["source"]["digest"]
    (tmp_path / "bad.json").write_text(text.replace("SAME", digest))
    result = site.vitedge("compare", report, tmp_path / "bad.json")
    assert result.exit_code == 2
    assert message in result.stderr
    assert site.vitedge("compare", report, tmp_path / "none.json").exit_code == 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0, "expected positive numbers"),
        (-1, "expected positive numbers"),
        (float("nan"), "expected a finite number, found NaN"),
        (float("inf"), "expected a finite number, found Infinity"),
    ],
)
def test_impossible_latencies_are_refused(site: Site, report: Path, tmp_path: Path, value: float, message: str) -> None:
    for key, wrong in (("latency_median_ms", value), ("latency_interval_ms", [value, 1])):

        def impossible(document: Any, key: str = key, wrong: Any = wrong) -> None:
            document["bench"]["pairs"]["onnx"]["artifact"][key] = wrong

        result = site.vitedge("compare", report, changed(report, tmp_path, impossible))
        assert result.exit_code == 2
        assert message in result.stderr


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
