"""The self-test where OpenVINO computes floats in bfloat16 for real, on a CPU that has it.

To INT8 that is less than a change of the last bits of its input, so that its bound holds, as it should. An FP32
artifact is bounded closely enough to fail.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vitedge.benchmarks.machine import describe_machine
from vitedge.converters.golden import write_with_artifacts
from vitedge.runtimes.golden import GOLDEN_FOLDER, Golden
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.openvino import OpenVinoEncoder
from vitedge.runtimes.selftest import Check, selftest

MACHINE = describe_machine()
pytestmark = pytest.mark.skipif(
    not {"avx512_bf16", "amx_bf16"} & set(MACHINE.isa_flags), reason="this CPU has no bfloat16"
)


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    settings = OpenVinoEncoder._settings
    hint = {"INFERENCE_PRECISION_HINT": "bf16"}
    with monkeypatch.context() as patch:
        patch.setattr(OpenVinoEncoder, "_settings", lambda self, threads: settings(self, threads) | hint)
        yield patch


def inference(golden: Golden, folder: Path) -> Check:
    return selftest(golden, {"openvino": (folder, load_manifest(folder))}, kind=MACHINE.kind)[-1]


def test_an_fp32_artifact_fails_and_a_lower_precision_is_named(
    built: Path, tmp_path: Path, bfloat16: pytest.MonkeyPatch
) -> None:
    folder = built / "fp32" / "openvino"
    with pytest.MonkeyPatch.context() as usual:
        usual.setattr(OpenVinoEncoder, "_settings", lambda _, __: {"INFERENCE_PRECISION_HINT": "f32"})
        golden = write_with_artifacts(
            built / GOLDEN_FOLDER, {"openvino": folder}, tmp_path / GOLDEN_FOLDER, kind=MACHINE.kind
        )
        assert inference(golden, folder).status == "pass"
    failed = inference(golden, folder)
    assert failed.status == "fail"
    assert failed.numbers["sqnr_db"] < failed.numbers["min_sqnr_db"] - 6
    assert "float16 or bfloat16 in place of float32" in str(failed.cause)


def test_to_int8_it_is_less_than_rounding(built: Path, tmp_path: Path, bfloat16: pytest.MonkeyPatch) -> None:
    folder = built / "openvino"
    with pytest.MonkeyPatch.context() as usual:
        usual.setattr(OpenVinoEncoder, "_settings", lambda _, __: {"INFERENCE_PRECISION_HINT": "f32"})
        golden = write_with_artifacts(
            built / GOLDEN_FOLDER, {"openvino": folder}, tmp_path / GOLDEN_FOLDER, kind=MACHINE.kind
        )
    found = OpenVinoEncoder(folder, threads=1)(golden.encoder_input())["last_hidden_state"]
    assert np.abs(found - golden.expected("openvino")["last_hidden_state"]).max() > 1e-3  # it is bfloat16
    assert inference(golden, folder).status == "pass"
