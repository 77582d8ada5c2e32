"""What a device prints of a bundle is whole, or refused before anything is read from it."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from vitedge.benchmarks.device_documents import BENCH_FORMAT, SELFTEST_FORMAT, check_document
from vitedge.benchmarks.devices import DeviceResult
from vitedge.runtimes.errors import ArtifactError

MACHINE = {"cpu_model": None, "architecture": "aarch64", "system": None}
CHECK = {"step": "inference", "artifact": "onnx", "status": "pass", "found": "39 dB", "cause": None, "numbers": {}}
PAIR = {"artifact": {"latency_median_ms": 1.5}, "verdict": "2× faster", "flags": ["it was hot"]}
SELFTEST = {"format": SELFTEST_FORMAT, "passed": True, "machine": MACHINE, "checks": [CHECK]}
BENCH = {"format": BENCH_FORMAT, "runs": [{"machine": MACHINE, "flags": [], "pairs": {"onnx": PAIR}}]}


def changed(document: Any, path: Sequence[str | int], value: Any) -> Any:
    found = whole = copy.deepcopy(document)
    for key in path[:-1]:
        found = found[key]
    if value is ...:
        del found[path[-1]]
    else:
        found[path[-1]] = value
    return whole


def test_whole_documents_can_be_told() -> None:
    selftest, bench = check_document(SELFTEST, SELFTEST_FORMAT), check_document(BENCH, BENCH_FORMAT)
    assert list(DeviceResult("board", selftest, bench).lines()) == [
        "board: aarch64, None",
        "PASS  inference onnx  39 dB",
        "onnx: INT8 1.50 ms; 2× faster",
        "doubt: onnx: it was hot",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], BENCH_FORMAT), (["passed"], ...), (["passed"], "yes"), (["machine"], ...), (["machine"], []),
        (["machine", "system"], ...), (["machine", "cpu_model"], 1), (["checks"], ...), (["checks"], {}),
        (["checks", 0], "x"), (["checks", 0, "step"], ...), (["checks", 0, "status"], None),
        (["checks", 0, "found"], 3), (["checks", 0, "artifact"], 3), (["checks", 0, "cause"], ...),
        (["checks", 0, "numbers"], []),
    ],
)  # fmt: skip
def test_self_tests_that_are_refused(path: Sequence[str | int], value: Any) -> None:
    with pytest.raises(ArtifactError):
        check_document(changed(SELFTEST, path, value), SELFTEST_FORMAT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], 1), (["runs"], ...), (["runs"], []), (["runs", 0], None), (["runs", 0, "machine"], ...),
        (["runs", 0, "flags"], [1]), (["runs", 0, "pairs"], []), (["runs", 0, "pairs", "onnx"], None),
        (["runs", 0, "pairs", "onnx", "flags"], ...), (["runs", 0, "pairs", "onnx", "verdict"], None),
        (["runs", 0, "pairs", "onnx", "artifact"], None),
        (["runs", 0, "pairs", "onnx", "artifact", "latency_median_ms"], "fast"),
        (["runs", 0, "pairs", "onnx", "artifact", "latency_median_ms"], True),
    ],
)  # fmt: skip
def test_benchmarks_that_are_refused(path: Sequence[str | int], value: Any) -> None:
    with pytest.raises(ArtifactError):
        check_document(changed(BENCH, path, value), BENCH_FORMAT)
