"""The LiteRT wrapper of artifacts whose input and outputs are integers: floats outside, scale and zero point inside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.converters.test_tflite_npu import calibrated, precisions
from tests.runtimes.test_manifest import example
from tests.tiny import SHAPE, random_pixels
from vitedge.converters.tflite_npu import MODEL_FILE, convert
from vitedge.quantization.integer_grid import Grid
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.file_records import FileRecord
from vitedge.runtimes.manifest import Manifest, TensorRecord
from vitedge.runtimes.tflite import TfliteEncoder, dequantize, quantize

RECORD = TensorRecord("x", "int8", (4,), "D", 0.5, 3)


def saved(folder: Path, *, integer_io: bool, precision: str = "mixed", batch: int = 2) -> Manifest:
    """An artifact of the tiny encoder in a new folder."""
    folder.mkdir()
    grids = convert(calibrated()[1], precisions(SHAPE)[precision], folder, batch, integer_io=integer_io)

    def record(name: str, shape: tuple[int, ...], layout: str) -> TensorRecord:
        grid: Grid | None = grids.get(name)
        if grid is None:
            return TensorRecord(name, "float32", shape, layout)
        return TensorRecord(name, f"int{grid.bits}", shape, layout, grid.scale, grid.zero_point)

    model = folder / MODEL_FILE
    outputs = {name: (batch, *shape) for name, shape in SHAPE.outputs.items()}
    manifest = replace(
        example(folder),
        runtime="tflite",
        minimum_runtime="2.0",
        files=(FileRecord.of(model, MODEL_FILE),),
        inputs=(record("pixel_values", (batch, 32, 32, 3), "NHWC"),),
        outputs=tuple(record(name, shape, "NTD" if len(shape) == 3 else "ND") for name, shape in outputs.items()),
    )
    manifest.save(folder)
    return manifest


@pytest.mark.parametrize("precision", ["8", "mixed"])
def test_integers_at_the_boundary_give_the_same_floats(precision: str, tmp_path: Path) -> None:
    saved(tmp_path / "float", integer_io=False, precision=precision)
    saved(tmp_path / "integer", integer_io=True, precision=precision)
    pixels = random_pixels(count=3)  # not a multiple of the batch
    expected, found = (TfliteEncoder(tmp_path / kind)(pixels) for kind in ("float", "integer"))
    assert found.keys() == expected.keys() == SHAPE.outputs.keys()
    for name, output in found.items():
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected[name], atol=1e-6)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9))
def test_quantize_rounds_and_clips(values: list[float]) -> None:
    x = np.array(values, np.float32)
    q = quantize(x, RECORD)
    assert q.dtype == np.int8
    np.testing.assert_array_equal(q, np.clip(np.rint(x / 0.5) + 3, -128, 127))
    np.testing.assert_allclose(dequantize(q, RECORD), np.clip(x, -65.5, 62.0), atol=0.25)


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point"),
    [("int8", None, None), ("int8", 0.0, 0), ("int8", 1.0, None), ("float32", 0.5, 0), ("int32", 0.5, 0)],
)
def test_a_boundary_without_meaning_is_refused(
    dtype: str, scale: float | None, zero_point: int | None, tmp_path: Path
) -> None:
    manifest = saved(tmp_path / "artifact", integer_io=True)
    changed = replace(manifest.inputs[0], dtype=dtype, scale=scale, zero_point=zero_point)
    replace(manifest, inputs=(changed,)).save(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match=r"expected float32 or uint8 without, or int8 or int16 with scale"):
        TfliteEncoder(tmp_path / "artifact")


def test_a_wrong_scale_in_the_manifest_shows(tmp_path: Path) -> None:
    manifest = saved(tmp_path / "artifact", integer_io=True)
    right = TfliteEncoder(tmp_path / "artifact")(random_pixels())["last_hidden_state"]
    record = manifest.inputs[0]
    assert record.scale is not None
    replace(manifest, inputs=(replace(record, scale=record.scale * 2),)).save(tmp_path / "artifact")
    wrong = TfliteEncoder(tmp_path / "artifact")(random_pixels())["last_hidden_state"]
    assert np.abs(wrong - right).max() > 0.1
