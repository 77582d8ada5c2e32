"""The throughput benchmark: both ways do the whole folder, in turns, and its arithmetic is that of the clock."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.tiny import save_images
from vitedge.benchmarks import throughput
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.preprocess import Preprocessing

READ_S, RUN_S, OVERHEAD_S = 0.003, 0.005, 0.001


class Encoder:
    """Advances a clock instead of running: reading and running overlap in a stream, and only there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.log = 0.0, list[str]()
        self.manifest = SimpleNamespace(
            runtime="onnx", preprocessing=Preprocessing(8, 8, "bilinear", 1 / 255, (0.5,) * 3, (0.5,) * 3)
        )
        real = throughput.read_image

        def read(path: Path) -> Any:
            self.now += READ_S
            return real(path)

        monkeypatch.setattr(throughput, "read_image", read)
        monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(throughput, "load_encoder", lambda folder, threads: self)

    def __call__(self, pixel_values: Any) -> dict[str, Any]:
        assert pixel_values.shape[1:] == (3, 8, 8)
        self.log.append(f"run {len(pixel_values)}")
        self.now += RUN_S * len(pixel_values)
        return {}

    def stream(self, paths: list[Path], *, batch: int) -> Any:
        self.log.append(f"stream {len(paths)}")
        for start in range(0, len(paths), batch):
            self.now += (RUN_S + OVERHEAD_S) * len(paths[start : start + batch])
            yield {}


def test_arithmetic_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(monkeypatch)
    paths = list_images(save_images(tmp_path, 10))
    found = throughput.measure(encoder, paths, batch=4, rounds=3)  # type: ignore[arg-type]
    one_by_one = ["run 4", "run 4", "run 2"]
    assert encoder.log == ["stream 8", "stream 10", *one_by_one, *one_by_one, "stream 10", "stream 10", *one_by_one]
    assert found["images"] == 10
    assert found["sequential_per_second"] == pytest.approx(1 / (READ_S + RUN_S))
    assert found["streamed_per_second"] == pytest.approx(1 / (RUN_S + OVERHEAD_S))
    np.testing.assert_allclose(found["speedup"], (READ_S + RUN_S) / (RUN_S + OVERHEAD_S))
    assert found["limit"] == pytest.approx((READ_S + RUN_S) / RUN_S)
    assert (found["preparing_ms"], found["running_ms"]) == (pytest.approx(3), pytest.approx(5))


def test_prints_a_table_and_one_json_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Encoder(monkeypatch)
    save_images(tmp_path, 5)
    options = ["--batch", "1", "4", "--rounds", "2", "--threads", "2"]
    assert throughput.main(["artifact", str(tmp_path), *options]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    document = json.loads(last)
    assert len(table) == 1 + 2
    assert "166.7" in table[1]
    assert "1.33×" in table[1]
    assert [run["batch"] for run in document["runs"]] == [1, 4]
    assert (document["format"], document["threads"], document["rounds"]) == ("vitedge-throughput/1", 2, 2)


def test_a_missing_artifact_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main([str(tmp_path / "none"), str(tmp_path)]) == 2
    assert "none: expected an artifact folder" in capsys.readouterr().err
