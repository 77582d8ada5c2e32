"""What the OpenVINO plugin compiled is kept by the model's content, and found again."""

from pathlib import Path

import numpy as np

from tests.runtimes.conftest import Artifacts
from tests.tiny import random_pixels
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.openvino import OpenVinoEncoder


def blobs(cache: Path) -> dict[str, int]:
    return {path.relative_to(cache).as_posix(): path.stat().st_mtime_ns for path in cache.rglob("*.blob")}


def test_second_load_uses_what_the_first_compiled(artifacts: Artifacts, tmp_path: Path) -> None:
    folder, pixels = artifacts.folders["openvino"], random_pixels()
    expected = OpenVinoEncoder(folder)(pixels)
    outputs, kept = [], []
    for _ in range(2):
        outputs.append(OpenVinoEncoder(folder, cache=tmp_path)(pixels))
        kept.append(blobs(tmp_path))
    assert len(kept[0]) == 1
    assert kept[0] == kept[1]
    for name, output in expected.items():
        np.testing.assert_array_equal(outputs[0][name], output)
        np.testing.assert_array_equal(outputs[1][name], output)


def test_another_model_has_a_place_of_its_own(artifacts: Artifacts, tmp_path: Path) -> None:
    for folder in (artifacts.folders["openvino"], artifacts.fixed["openvino"]):
        OpenVinoEncoder(folder, cache=tmp_path)
        key = "-".join(file.sha256[:16] for file in load_manifest(folder).files)
        assert list((tmp_path / key).rglob("*.blob"))
    assert len(list(tmp_path.iterdir())) == 2
