"""`vitedge demo`: the bundled classifier keeps its accuracy in every runtime, as far as its images can tell."""

from pathlib import Path

from vitedge.commands.demo import demo
from vitedge.console import Console


def test_the_trained_classifier_loses_nothing_beyond_chance(tmp_path: Path) -> None:
    result = demo(tmp_path / "out", Console(quiet=True))
    assert result.accuracy.keys() == {"onnx", "openvino", "tflite"}
    for accuracy in result.accuracy.values():
        drop = accuracy.leading_drop
        assert drop is not None
        assert (drop.metric, drop.images) == ("top-1", 360)
        assert drop.fp32 > 0.97
        assert drop.drop_low <= 0 <= drop.drop_high
        assert drop.drop < 0.01
    assert result.bench is not None
    assert result.bench.pairs.keys() == result.accuracy.keys()
