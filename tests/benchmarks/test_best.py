"""Which model is the best: made-up latencies, and what is said of them."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.measured import pair, report, result
from vitedge.benchmarks.best import Best, Candidate, best_of
from vitedge.benchmarks.results import BenchReport, RivalResult
from vitedge.benchmarks.speedup import Speedup


def best(found: BenchReport) -> tuple[str, str, str]:
    return found.best.chosen.name, found.best.chosen.precision, found.best.verdict


def test_the_fastest_is_the_best_across_runtimes() -> None:
    found = report({"onnx": 40.0, "openvino": 30.0}, onnx=pair(12, 20), openvino=pair(9, 18))
    assert best(found) == ("openvino", "int8", "best on this machine: openvino INT8, 9.00 ms, the fastest")
    assert found.verdict("openvino") == "2.00× [1.98, 2.02] faster than FP32 here; use this one"
    assert found.verdict("onnx") == "1.67× [1.65, 1.68] faster than FP32 here"
    assert found.to_json()["pairs"]["openvino"]["verdict"].endswith("; use this one")
    assert found.to_json()["best"] == {
        "name": "openvino",
        "precision": "int8",
        "latency_median_ms": 9,
        "within_noise": [],
        "faster_rivals": [],
        "verdict": found.best.verdict,
    }


def test_among_equals_the_more_accurate_is_the_best() -> None:
    pairs = {"onnx": pair(9.1, 20), "openvino": pair(9, 18), "tflite": pair(15, 18)}
    found = report({"onnx": 40.0, "openvino": 30.0, "tflite": 50.0}, **pairs)
    assert best(found)[:2] == ("onnx", "int8")
    assert best(found)[2] == (
        "best on this machine: onnx INT8, 9.10 ms, the most accurate of those that are as fast within noise;"
        " within noise of it: openvino INT8, 9.00 ms"
    )


def test_the_more_accurate_must_beat_fp32_too() -> None:
    """OpenVINO's INT8 is as fast as ONNX's within noise, but also as its own FP32, which ONNX's clearly beats."""
    found = report({"onnx": 25.0, "openvino": 30.0}, onnx=pair(9.95, 20), openvino=pair(10.2, 10.5))
    assert "no clear difference from FP32" in found.verdict("openvino")
    assert best(found)[:2] == ("onnx", "int8")
    # The twin: against an FP32 that it beats, it is chosen.
    found = report({"onnx": 25.0, "openvino": 30.0}, onnx=pair(9.95, 20), openvino=pair(10.2, 20))
    assert best(found)[:2] == ("openvino", "int8")


def test_accuracy_that_is_not_known_decides_nothing() -> None:
    found = report({"onnx": 40.0}, onnx=pair(9.1, 20), openvino=pair(9, 18))
    assert best(found)[:2] == ("openvino", "int8")
    assert best(found)[2].endswith("9.00 ms, the fastest; within noise of it: onnx INT8, 9.10 ms")


def test_fp32_is_named_where_no_int8_is_clearly_faster() -> None:
    found = report({"onnx": 40.0}, onnx=pair(20.0, 20.2), openvino=pair(25, 21))
    assert best(found)[:2] == ("onnx", "fp32")
    assert best(found)[2].startswith(
        "use FP32 on this machine: onnx FP32, 20.20 ms, no INT8 artifact is clearly faster"
    )
    assert "use this one" not in found.verdict("onnx") + found.verdict("openvino")
    assert found.verdict("openvino") == "SLOWER than FP32 here (0.84× [0.83, 0.85]): use FP32 on this machine"


def test_int8_that_beats_its_twin_can_lose_to_another_runtimes_fp32() -> None:
    found = report(tflite=pair(20, 30), openvino=pair(18, 15))
    assert best(found)[:2] == ("openvino", "fp32")
    assert found.verdict("tflite") == "1.50× [1.48, 1.52] faster than FP32 here"


def test_twins_are_judged_by_their_speedup_and_strangers_by_their_intervals() -> None:
    """Latencies that wandered widely, but together: in a pair that is clear, between pairs it is not."""
    found = report({"onnx": 30.0}, onnx=pair(10, 12, spread=0.01, half_ms=2))
    assert best(found)[:2] == ("onnx", "int8")
    found = report({"onnx": 30.0}, onnx=pair(10, 12, half_ms=2), openvino=pair(11, 12, half_ms=2))
    assert best(found)[:2] == ("openvino", "fp32")


def test_rival_that_is_faster_is_named_and_not_chosen() -> None:
    rivals = tuple(
        RivalResult(name, result("int8", latency_ms), Speedup(latency_ms / 9, latency_ms / 9, latency_ms / 9, 20))
        for name, latency_ms in (("NNCF", 7.0), ("near", 8.9), ("far", 12.0))
    )
    found = report(onnx=pair(9, 20), openvino=replace(pair(10, 20), rivals=rivals))
    assert best(found)[2] == (
        "best on this machine: onnx INT8, 9.00 ms, the fastest;"
        " clearly faster, its accuracy not measured here: NNCF, 7.00 ms"
    )
    assert found.to_json()["best"]["faster_rivals"] == ["NNCF"]
    itself = tuple(replace(rival, own=True) for rival in rivals)
    found = report(openvino=replace(pair(10, 20), rivals=itself))
    assert best(found)[2] == "best on this machine: openvino INT8, 10.00 ms, the fastest"


def test_pair_without_twin() -> None:
    found = report(onnx=pair(10, None))
    assert best(found)[2] == "best on this machine: onnx INT8, 10.00 ms, the fastest; no FP32 was measured"
    assert found.verdict("onnx") == "no FP32 artifact to compare with"
    assert found.pairs["onnx"].to_json()["artifact"]["peak_bytes"] is None


def candidate(name: str, latency_ms: float, width: float, sqnr_db: float | None) -> Candidate:
    return Candidate(name, "int8", latency_ms, (latency_ms - width, latency_ms + width), sqnr_db, None)


@given(
    st.lists(
        st.tuples(st.floats(1, 100), st.floats(0, 0.9), st.none() | st.floats(10, 60)),
        min_size=1,
        max_size=6,
    )
)
def test_the_best_is_never_clearly_slower_and_never_the_worse_of_equals(rows: list[Any]) -> None:
    candidates = [candidate(str(index), *row) for index, row in enumerate(rows)]
    found: Best = best_of(candidates)
    fastest = min(candidates, key=lambda each: each.latency_ms)
    assert found.chosen.interval_ms[0] <= 1.03 * fastest.interval_ms[1]
    assert found.chosen is fastest or fastest in found.equals
    known = [each.sqnr_db for each in (found.chosen, *found.equals)]
    if None not in known:
        assert found.chosen.sqnr_db == max(known)


@pytest.mark.parametrize("order", [1, -1])
def test_order_does_not_matter(order: int) -> None:
    candidates = [candidate("a", 10, 0.1, 30), candidate("b", 10.1, 0.1, 31), candidate("c", 12, 0.1, 50)][::order]
    assert best_of(candidates).chosen.name == "b"
