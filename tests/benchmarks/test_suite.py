"""The table of `make bench`, from the JSON that the commands print."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from vitedge.benchmarks import suite

BARE = 100


def result(latency_ms: float, peak_bytes: int | None, load_ms: float) -> dict[str, Any]:
    return {"latency_median_ms": latency_ms, "peak_bytes": peak_bytes, "bare_bytes": BARE, "load_ms": load_ms}


def speedup(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 0.1, "high": median + 0.1}


def run(latency_ms: float, peak_bytes: int | None = 140) -> dict[str, Any]:
    rivals = [
        {"name": "vendor", "speedup": speedup(1.5), "result": {}, "own": False},
        {"name": "PyTorch eager FP32", "speedup": speedup(3.0), "result": {}, "own": False},
        {"name": "itself on 1 thread", "speedup": speedup(1.8), "result": {}, "own": True},
    ]
    pair = {"artifact": result(latency_ms, peak_bytes, 5.0), "fp32": result(40.0, 200, 9.0), "speedup": speedup(2.0)}
    return {"pairs": {"onnx": pair | {"rivals": rivals}}}


ACCURACY = {"onnx": {"outputs": {"last_hidden_state": {"sqnr_db": 32.0, "cosine_mean": 0.999, "cosine_worst": 0.99}}}}


def test_rows_put_together_what_the_commands_say() -> None:
    (row,) = suite.rows_of("vit", {"accuracy": ACCURACY}, run(20.0), run(11.0))
    assert (row.int8_ms, row.fp32_ms, row.load_ms) == (20.0, 40.0, (5.0, 9.0))
    assert row.over_one_thread == speedup(1.8)
    assert row.memory_ratio == pytest.approx(0.4)  # (140 - 100) / (200 - 100)
    assert (row.sqnr_db, row.cosine) == (32.0, (0.999, 0.99))
    assert row.over_rivals["PyTorch eager FP32"]["median"] == 3.0
    (random,) = suite.rows_of("vit", {"accuracy": {}}, run(20.0, peak_bytes=None), run(11.0))
    assert (random.memory_ratio, random.sqnr_db, random.cosine) == (None, None, None)


def test_command_builds_measures_and_ends_in_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = []

    def answer(*arguments: str) -> dict[str, Any]:
        asked.append(arguments)
        if arguments[0] == "build":
            random = "--random-weights" in arguments
            return {"accuracy": {} if random else ACCURACY, "seconds": {"plan": 1.0}}
        return {"runs": [run(20.0), run(11.0)] if "--threads" in arguments else [run(20.0)]}

    monkeypatch.setattr(suite, "vitedge", answer)
    assert suite.main(["--model", str(tmp_path / "my-vit"), "--target", "vnni"]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    assert [row["encoder"] for row in document["rows"]] == ["ViT-B/16, random", "my-vit"]
    assert document["target"] == "vnni"
    assert any("random" in line for line in lines)
    assert [arguments[0] for arguments in asked] == ["build", "bench", "bench"] * 2
    assert all({"--torch", "--vendors"} <= set(asked[at]) for at in (1, 4))


def test_failing_command_ends_it_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        suite.vitedge("inspect", str(tmp_path))
    monkeypatch.setattr(suite, "PRESET", "no-such-preset")
    assert suite.main([]) == 2
