"""A bundle's self-test on ARM64, emulated: all runtimes, on a CPU with dot product of bytes and on one without.

Bounds are those of the bundle, against FP32; INT8 is never bit-equal across CPUs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.arm64 import CPUS, Arm64, bundle_for_arm64, needs_arm64
from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.instruction_sets import X86

pytestmark = needs_arm64
RUNTIMES = ("onnx", "openvino", "tflite")
# What each build is for: `avx2` is the default, `arm64` what boards and phones are told to take.
BUILDS = {"avx2": "built", "arm64": "for_arm64"}


@pytest.fixture(scope="module")
def arm64() -> Arm64:
    return Arm64()


@pytest.fixture(scope="module")
def bundles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A bundle by target."""
    folder = tmp_path_factory.mktemp("arm64")
    return {
        target: bundle_for_arm64(request.getfixturevalue(build), folder / target) for target, build in BUILDS.items()
    }


def selftest(arm64: Arm64, cpu: str, bundle: Path, *options: str) -> tuple[int, Any]:
    result = arm64.python(cpu, "-m", "vitedge.device", "selftest", "--json", *options, cwd=bundle)
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


@pytest.mark.parametrize("target", BUILDS)
@pytest.mark.parametrize("cpu", CPUS)
def test_every_runtime_passes(cpu: str, target: str, arm64: Arm64, bundles: Mapping[str, Path]) -> None:
    code, document = selftest(arm64, cpu, bundles[target])
    found = {(check["step"], check["artifact"]): check for check in document["checks"]}
    assert {key: check["found"] for key, check in found.items() if check["status"] == "fail"} == {}
    assert (code, document["passed"]) == (0, True)
    assert document["machine"]["architecture"] == "aarch64"
    assert ("asimddp" in document["machine"]["isa_flags"]) is (cpu == "neoverse-n1")
    for runtime in RUNTIMES:
        assert found["inference", runtime]["status"] == "pass"
        numbers = found["inference", runtime]["numbers"]
        # As good as ONNX Runtime's on the host, where its sums are exact, whatever OpenVINO gave there.
        assert numbers["sqnr_db"] > found["inference", "onnx"]["numbers"]["host_sqnr_db"] - 2
        if (target, runtime) != ("arm64", "openvino") or describe_machine().kind != X86:  # else the host saturates
            assert numbers["sqnr_db"] == pytest.approx(numbers["host_sqnr_db"], abs=1)
            assert numbers["min_sqnr_db"] > numbers["host_sqnr_db"] - 8  # a bound that would notice
        assert found["preprocessing", runtime]["numbers"]["max_abs_error"] <= 1e-6


def test_a_damaged_model_is_found_there_too(arm64: Arm64, bundles: Mapping[str, Path]) -> None:
    bundle = bundles["arm64"]
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
