"""A bundle's self-test on ARM64, emulated: all runtimes, on a CPU with dot product of bytes and on one without.

Bounds are those of the bundle, against FP32; INT8 is never bit-equal across CPUs.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.arm64 import CPUS, Arm64, needs_arm64
from tests.commands.conftest import Site

pytestmark = needs_arm64
KEPT = Path(__file__).parents[2] / "build" / "arm64"
RUNTIMES = ("onnx", "openvino", "tflite")


@pytest.fixture(scope="module")
def arm64() -> Arm64:
    return Arm64(KEPT)


@pytest.fixture(scope="module")
def bundle(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("arm64") / "bundle"
    assert site.vitedge("bundle", built, "--out", out).exit_code == 0
    return out


def selftest(arm64: Arm64, cpu: str, bundle: Path, *options: str) -> tuple[int, Any]:
    result = arm64.python(cpu, "-m", "vitedge.device", "selftest", "--json", *options, cwd=bundle)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


@pytest.mark.parametrize("cpu", CPUS)
def test_every_runtime_passes(cpu: str, arm64: Arm64, bundle: Path) -> None:
    code, document = selftest(arm64, cpu, bundle)
    found = {(check["step"], check["artifact"]): check for check in document["checks"]}
    assert {key: check["found"] for key, check in found.items() if check["status"] == "fail"} == {}
    assert (code, document["passed"]) == (0, True)
    assert document["machine"]["architecture"] == "aarch64"
    assert ("asimddp" in document["machine"]["isa_flags"]) is (cpu == "neoverse-n1")
    for runtime in RUNTIMES:
        assert found["inference", runtime]["status"] == "pass"
        numbers = found["inference", runtime]["numbers"]
        # The bound is near what is reached, so that it would notice.
        assert numbers["min_sqnr_db"] > numbers["sqnr_db"] - 12 or runtime == "openvino"  # float16 there is better
        assert found["preprocessing", runtime]["numbers"]["max_abs_error"] <= 1e-6


def test_a_damaged_model_is_found_there_too(arm64: Arm64, bundle: Path) -> None:
    model = bundle / "artifacts" / "tflite" / "model.tflite"
    whole = model.read_bytes()
    model.write_bytes(whole[:-1])
    try:
        code, document = selftest(arm64, "cortex-a72", bundle, "--artifact", "tflite")
    finally:
        model.write_bytes(whole)
    assert code == 1
    assert [(check["step"], check["status"]) for check in document["checks"]] == [("files", "fail")]
    assert "model.tflite: expected" in document["checks"][0]["found"]
