"""The arithmetic and the order of measuring on made-up latencies, and the measuring process itself."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from vitedge.benchmarks import measure
from vitedge.benchmarks.machine import Sensors, describe_machine
from vitedge.benchmarks.measure import BenchmarkError, Rival, interleaved, measure_all, measure_pair
from vitedge.benchmarks.process import torch_command, worker_command
from vitedge.benchmarks.speedup import speedup_of
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.file_records import FileRecord
from vitedge.runtimes.manifest import Manifest, Operations, Origin, TensorRecord
from vitedge.runtimes.preprocess import Preprocessing
from vitedge.runtimes.saturation import Saturation


class Clock:
    """A clock that only fake inferences advance, and a log of which ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int]] = []

    def runner(self, name: str, latency_ms: Callable[[float], float]) -> Any:
        def run(count: int) -> list[float]:
            self.log.append((name, count))
            latencies = []
            for _ in range(count):
                latencies.append(latency_ms(self.now))
                self.now += latencies[-1] / 1000
            return latencies

        return SimpleNamespace(run=run)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: made.now))
    return made


def test_order_reverses_from_round_to_round(clock: Clock) -> None:
    runners = [clock.runner("a", lambda _: 500.0), clock.runner("b", lambda _: 600.0)]
    seen: list[int] = []
    rounds = interleaved(runners, seconds=0, minimum_rounds=3, progress=seen.append)
    assert [name for name, count in clock.log] == ["a", "b", *"abbaabba"]
    assert [count for _, count in clock.log] == [2, 2, *[1] * 8]
    assert rounds == [([500.0], [600.0])] * 4  # an even number, each in the order given
    assert seen == [1, 2, 3, 4]


def test_blocks_and_rounds_fill_the_time_given(clock: Clock) -> None:
    rounds = interleaved(
        [clock.runner("a", lambda _: 1.0), clock.runner("b", lambda _: 50.0)], seconds=8, minimum_rounds=6
    )
    assert {(len(first), len(second)) for first, second in rounds} == {(200, 4)}  # 8 s / 20 rounds / 2
    assert len(rounds) == 16
    assert clock.now < 8 + 2 * 0.4  # and the warm-up


def test_slow_encoders_get_their_minimum_of_rounds(clock: Clock) -> None:
    rounds = interleaved([clock.runner("a", lambda _: 15_000.0)], seconds=8, minimum_rounds=6)
    assert rounds == [([15_000.0],)] * 6


def test_first_of_a_block_is_discarded(clock: Clock) -> None:
    runner = clock.runner("a", lambda _: 1.0)
    cold = SimpleNamespace(run=lambda count: [99.0, *runner.run(count - 1)])
    rounds = interleaved([cold], seconds=1, minimum_rounds=2)
    assert {latency for (block,) in rounds for latency in block} == {1.0}


def test_drifting_clock_does_not_bias_the_speedup(clock: Clock) -> None:
    """Latencies that grow by 30 % during the measurement, true speedup 2."""
    runners = [
        clock.runner("int8", lambda now: 20 * (1 + 0.04 * now)),
        clock.runner("fp32", lambda now: 40 * (1 + 0.04 * now)),
    ]
    assert speedup_of(interleaved(runners, seconds=8, minimum_rounds=6)).median == pytest.approx(2, rel=0.002)


# Real artifacts: an ONNX model of one node.


@pytest.fixture
def artifacts(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two artifacts, in folders whose names need quoting."""
    yield save_artifact(tmp_path / "my int8", "int8"), save_artifact(tmp_path / "my fp32", "fp32")


def save_artifact(folder: Path, precision: str) -> Path:
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"])],
        "tiny",
        [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["batch", 3, 1, 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path)
    Manifest(
        runtime="onnx",
        precision=precision,
        target="avx2",
        minimum_runtime="1.16",
        files=(FileRecord.of(path),),
        inputs=(TensorRecord("pixel_values", "float32", ("batch", 3, 8, 8), "NCHW"),),
        outputs=(TensorRecord("pooled", "float32", ("batch", 3, 1, 1), "NCHW"),),
        preprocessing=Preprocessing(8, 8, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=(),
        operations=Operations((), {}, 0, 1),
        saturation=Saturation(True, "nothing is integer", 0, 0, {}),
        source=Origin("folder", "d"),
        calibration={},
        plan_digest="",
        tools={},
        opsets={"ai.onnx": 17},
    ).save(folder)
    return folder


def test_report_of_real_artifacts(
    artifacts: tuple[Path, Path], script: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies in the current folder must not be imported in place of the runtime.
    for name in ("onnxruntime", "numpy", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the current folder')")
    monkeypatch.chdir(tmp_path)
    int8, fp32 = artifacts
    done: list[int] = []
    report = measure_all(
        {"both": (int8, fp32), "alone": (int8, None)},
        threads=1,
        batch=3,
        seconds=0.1,
        cpus=(min(os.sched_getaffinity(0)),),
        rivals={"alone": [Rival("a sleeper", "int8", None, lambda **_: script(call="time.sleep(0.02)"))]},
        progress=done.append,
    )
    assert done == [1, 1]  # pairs
    document = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert document.keys() == {
        "format", "machine", "threads", "batch", "cpus", "before", "after", "pairs", "best", "flags"
    }  # fmt: skip
    states = (document["before"], document["after"])
    names = {"frequency_mhz", "temperature_celsius", "battery_percent", "battery_status"}
    assert all(state.keys() == names for state in states)
    assert document["machine"]["affinity"] == sorted(os.sched_getaffinity(0))
    assert (document["format"], document["threads"], document["batch"]) == ("vitedge-bench/2", 1, 3)
    assert document["cpus"] == [min(os.sched_getaffinity(0))]
    both, alone = document["pairs"]["both"], document["pairs"]["alone"]
    assert (both["artifact"]["precision"], both["fp32"]["precision"]) == ("int8", "fp32")
    assert both["verdict"] == report.verdict("both")
    assert both["verdict"].startswith(report.pairs["both"].verdict)
    assert both["speedup"]["low"] <= both["speedup"]["median"] <= both["speedup"]["high"]
    assert both["speedup"]["rounds"] >= 6
    for result in (both["artifact"], both["fp32"], alone["artifact"]):
        assert result["samples"] >= 6
        assert 0 < result["latency_median_ms"] <= result["latency_p90_ms"]
        assert 0 < result["latency_interval_ms"][0] <= result["latency_interval_ms"][1]
        assert 0 <= result["outlier_share"] < 0.5
        assert result["latency_iqr_ms"] >= 0
        assert min(result["load_ms"], result["first_ms"]) > 0
        assert 10 << 20 < result["bare_bytes"] <= result["peak_bytes"]
        assert result["size_bytes"] == (int8 / "model.onnx").stat().st_size
    assert (alone["fp32"], alone["speedup"]) == (None, None)
    assert alone["verdict"] == "no FP32 artifact to compare with"
    (rival,) = alone["rivals"]
    assert rival["result"]["latency_median_ms"] > 20
    assert rival["speedup"]["low"] > 1
    assert " faster than a sleeper here" in rival["verdict"]
    assert (both["rivals"], rival["result"]["size_bytes"]) == ([], None)
    assert 0 <= both["conditions"]["others_share"] <= 1
    assert document["best"]["verdict"] == report.best.verdict


def test_a_machine_that_was_throttled_from_the_start(
    artifacts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing falls during the run, as all of it is slow."""
    machine = replace(describe_machine(), max_frequency_mhz=2400.0)
    monkeypatch.setattr(measure, "describe_machine", lambda **_: machine)
    for clock, flagged in ((1000.0, True), (2000.0, False)):
        monkeypatch.setattr(measure, "read_sensors", lambda clock=clock, **_: Sensors(clock, None))
        report = measure_all({"alone": (artifacts[0], None)}, threads=1, seconds=0.01)
        assert any("the clock was at 1000 of 2400 MHz" in flag for flag in report.flags) is flagged


def test_damaged_artifact_is_refused_in_its_own_words(artifacts: tuple[Path, Path]) -> None:
    model = artifacts[1] / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(BenchmarkError, match=r"my fp32/model\.onnx: expected SHA-256 .* copy the artifact again"):
        measure_pair(*artifacts, threads=1)


def test_missing_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="found no manifest"):
        measure_pair(tmp_path, None, threads=1)


def test_interrupt_ends_both_workers(
    artifacts: tuple[Path, Path], script: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    command = script(load=f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')")
    monkeypatch.setattr(measure, "worker_command", lambda *_, **__: command)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_pair(*artifacts, threads=1, seconds=0.01, progress=interrupt)
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 2
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_command_of_a_worker() -> None:
    found = worker_command(Path("a b"), threads=2, batch=4)
    assert found == [
        sys.executable, "-P", "-m", "vitedge.benchmarks.worker", "a b", "--threads", "2", "--batch", "4"
    ]  # fmt: skip
    assert worker_command(Path("a b"), threads=2, batch=4, cpus=(0, 3)) == [*found, "--cpus", "0,3"]
    assert torch_command(Path("a b"), model="m", threads=2, batch=4) == [
        *found[:3], "vitedge.benchmarks.torch_worker", "a b", "--model", "m", *found[5:]
    ]  # fmt: skip
