"""What a build is asked for."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vitedge.commands.request import BuildRequest
from vitedge.runtimes.errors import PlanError


@pytest.mark.parametrize(
    ("batch", "onnx", "openvino", "tflite"),
    [("auto", None, 1, 1), ("dynamic", None, None, 1), (3, 3, 3, 3)],
)
def test_batch_of_each_runtime(batch: object, onnx: int | None, openvino: int | None, tflite: int | None) -> None:
    request = BuildRequest("model", Path("images"), Path("out"), batch=batch)  # type: ignore[arg-type]
    assert [request.batch_for(name) for name in ("onnx", "openvino", "tflite")] == [onnx, openvino, tflite]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "--batch: expected at least 1, or one of auto, dynamic, found 0"),
        ({"batch": "many"}, "--batch: expected at least 1, or one of auto, dynamic, found many"),
        ({"calibration_images": 0}, "--calibration-images: expected at least 1, found 0"),
        ({"bench_seconds": math.nan}, "--bench-seconds: expected a finite number, found nan"),
        ({"bench_seconds": math.inf}, "--bench-seconds: expected a finite number, found inf"),
    ],
)
def test_numbers_are_of_their_range(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        BuildRequest("model", Path("images"), Path("out"), **options)
