"""What a build is asked for."""

from pathlib import Path

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


def test_batch_is_at_least_one() -> None:
    with pytest.raises(PlanError, match="--batch: expected at least 1, found 0"):
        BuildRequest("model", Path("images"), Path("out"), batch=0)
