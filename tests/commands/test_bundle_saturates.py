"""The self-test on a CPU with AVX2 and no VNNI, emulated, where an artifact for VNNI saturates for real."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.commands.conftest import Site
from tests.commands.device_side import on_device
from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.instruction_sets import X86

QEMU = "qemu-x86_64-static"
pytestmark = pytest.mark.skipif(
    os.environ.get("CI") is None and shutil.which(QEMU) is None, reason="needs qemu-user-static"
)
CPUINFO = "processor\t: 0\nmodel name\t: Haswell\nflags\t\t: fpu sse4_1 sse4_2 avx f16c fma avx2\n\n"


WITHOUT_OPTION = """
from vitedge.runtimes import onnx
onnx.saturates_here = lambda: False
"""


def selftest(bundle: Path, root: Path, artifact: str, first: str = "") -> tuple[int, dict[str, Any]]:
    """As on a Haswell; its /proc/cpuinfo comes from a folder that qemu looks into first."""
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO)
    haswell = (QEMU, "-cpu", "Haswell", "-L", str(root), sys.executable)
    result = on_device(bundle, "selftest", "--json", "--artifact", artifact, python=haswell, first=first)
    assert result.stdout, result.stderr
    document = json.loads(result.stdout)
    return result.returncode, {check["step"]: check for check in document["checks"]}


@pytest.fixture(scope="module")
def for_vnni(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vnni") / "out"
    assert site.build(out, "--target", "vnni", "--runtime", "onnx,openvino").exit_code == 0
    return out


def bundled(site: Site, artifact: Path, out: Path) -> Path:
    result = site.vitedge("bundle", artifact, "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.mark.skipif(describe_machine().kind == X86, reason="this CPU has no VNNI, and OpenVINO's is not bundled here")
def test_in_openvino_an_artifact_for_vnni_is_refused_and_does_saturate(
    site: Site, for_vnni: Path, tmp_path: Path
) -> None:
    bundle = bundled(site, for_vnni / "openvino", tmp_path / "bundle")
    code, checks = selftest(bundle, tmp_path, "openvino")
    assert code == 1
    assert checks["preprocessing"]["status"] == "pass"
    assert checks["cpu"]["status"] == "fail"
    assert checks["cpu"]["found"].startswith("made for vnni; this CPU is x86 without VNNI")
    assert checks["cpu"]["cause"] == "saturation: build with --target avx2"
    inference = checks["inference"]
    assert inference["status"] == "skip"
    assert "no bound holds for x86" in inference["found"]
    # It does saturate here: twice the distance from FP32 would be 3 dB.
    assert inference["numbers"]["sqnr_db"] < inference["numbers"]["host_sqnr_db"] - 6


def test_onnx_runtime_takes_kernels_that_do_not_saturate(site: Site, for_vnni: Path, tmp_path: Path) -> None:
    bundle = bundled(site, for_vnni / "onnx", tmp_path / "bundle")
    code, checks = selftest(bundle, tmp_path, "onnx")
    assert (code, checks["cpu"]["status"], checks["inference"]["status"]) == (0, "pass", "pass"), checks
    assert "by slower kernels" in checks["cpu"]["found"]
    code, checks = selftest(bundle, tmp_path, "onnx", WITHOUT_OPTION)
    assert (code, checks["inference"]["status"]) == (1, "fail")
    assert checks["inference"]["numbers"]["sqnr_db"] < checks["inference"]["numbers"]["host_sqnr_db"] - 6


@pytest.mark.parametrize("artifact", ["onnx", "openvino"])
def test_an_artifact_for_avx2_passes(artifact: str, site: Site, built: Path, tmp_path: Path) -> None:
    code, checks = selftest(bundled(site, built / artifact, tmp_path / "bundle"), tmp_path, artifact)
    assert (code, checks["cpu"]["status"], checks["inference"]["status"]) == (0, "pass", "pass"), checks
    assert checks["cpu"]["found"].startswith("x86: ")
