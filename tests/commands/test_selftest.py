"""A bundle's self-test: each kind of fault is found in its own step, with its cause, and the others pass."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.device_side import checks_of, sealed
from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.errors import ArtifactError, ImageError
from vitedge.runtimes.golden import GOLDEN_FOLDER, Golden, Tolerance, read_golden
from vitedge.runtimes.instruction_sets import kind_of
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.saturation import Saturation, UnsafeLinear
from vitedge.runtimes.selftest import Check, selftest


@pytest.fixture
def copy(bundled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled, tmp_path / "bundle"))


def test_a_changed_byte_and_a_truncated_file_are_found_before_anything_runs(copy: Path) -> None:
    model = copy / "artifacts" / "onnx" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    (copy / "golden" / "resized.bin").write_bytes(b"short")
    code, checks = checks_of(copy)
    assert code == 1
    assert list(checks) == [("files", None)]
    found = checks["files", None]
    assert "artifacts/onnx/model.onnx: expected SHA-256" in found["found"]
    assert "golden/resized.bin: expected" in found["found"]
    assert found["cause"].startswith("truncated or changed in transit")


@pytest.mark.parametrize("name", ["artifacts/onnx/manifest.json", "golden/golden.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]"])
def test_damaged_documents_fail_the_files_check(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    code, checks = checks_of(copy)
    assert code == 1
    assert list(checks) == [("files", None)]
    assert f"{name}: expected" in checks["files", None]["found"]


def test_nan_and_a_model_that_does_not_load_fail_inference(
    bundled: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    golden, manifest = read_golden(bundled / GOLDEN_FOLDER), load_manifest(built / "onnx")

    class Broken:
        def __call__(self, pixel_values: Any) -> Any:
            return {"last_hidden_state": np.full((8, 17, 48), np.nan, np.float32)}

    monkeypatch.setattr("vitedge.runtimes.selftest.load_encoder", lambda *_, **__: Broken())
    found = selftest(golden, {"onnx": (built / "onnx", manifest)}, kind="arm64")[-1]
    assert (found.status, found.found) == ("fail", "last_hidden_state: NaN or infinity")
    assert "overflows in a lower precision" in str(found.cause)

    def refuses(*_: Any, **__: Any) -> None:
        raise ArtifactError("opset 99 is not supported")

    monkeypatch.setattr("vitedge.runtimes.selftest.load_encoder", refuses)
    found = selftest(golden, {"onnx": (built / "onnx", manifest)}, kind="arm64")[-1]
    assert (found.status, found.found) == ("fail", "opset 99 is not supported")
    assert found.cause == "the runtime of this device does not load the model"


def test_a_step_that_raises_fails_alone(bundled: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = read_golden(bundled / GOLDEN_FOLDER)
    artifacts = {name: (built / name, load_manifest(built / name)) for name in ("onnx", "tflite")}
    load = load_encoder

    def exhausted(folder: Path, **options: Any) -> Any:
        def run(_: Any) -> Any:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 3538944")

        return run if folder.name == "onnx" else load(folder, **options)

    def undecodable(path: Path) -> Any:
        raise ImageError(f"{path}: not an image that OpenCV can read")

    monkeypatch.setattr("vitedge.runtimes.selftest.load_encoder", exhausted)
    monkeypatch.setattr("vitedge.runtimes.selftest.read_image", undecodable)
    found = {(check.step, check.artifact): check for check in selftest(golden, artifacts, kind="x86")}
    assert found["inference", "onnx"].status == "fail"
    assert found["inference", "onnx"].found.startswith("RuntimeError: Failed to allocate memory")
    assert found["inference", "tflite"].status == "pass"
    assert found["decoding", None].status == "fail"
    assert str(found["decoding", None].cause) == "the decoder: this OpenCV was built without PNG"


def test_another_mean_fails_preprocessing_and_not_inference(copy: Path) -> None:
    path = copy / "artifacts" / "onnx" / "manifest.json"
    document = json.loads(path.read_text())
    document["preprocessing"]["mean"] = [0.4, 0.5, 0.5]
    path.write_text(json.dumps(document))
    sealed(copy)
    code, checks = checks_of(copy, "--artifact", "onnx")
    assert code == 1
    assert checks["preprocessing", "onnx"]["status"] == "fail"
    assert "mean [0.4, 0.5, 0.5], expected" in checks["preprocessing", "onnx"]["found"]
    assert checks["inference", "onnx"]["status"] == "pass"


def test_other_golden_input_fails_preprocessing(copy: Path) -> None:
    path = copy / "golden" / "pixel_values.bin"
    values = np.fromfile(path, "<f4")
    values[5] += 0.01
    values.tofile(path)
    sealed(copy)
    _, checks = checks_of(copy, "--artifact", "onnx")
    assert checks["preprocessing", "onnx"]["numbers"]["max_abs_error"] == pytest.approx(0.01, rel=1e-3)
    assert checks["preprocessing", "onnx"]["status"] == "fail"


def test_another_model_fails_inference(copy: Path) -> None:
    """The artifact computes something else than what the golden vectors say."""
    path = copy / "golden" / "fp32" / "last_hidden_state.bin"
    values = np.fromfile(path, "<f4")
    (values + np.random.default_rng(0).normal(0, 0.2, values.shape).astype(np.float32)).tofile(path)
    sealed(copy)
    code, checks = checks_of(copy, "--artifact", "tflite")
    assert code == 1
    assert checks["inference", "tflite"]["status"] == "fail"
    assert "a delegate, or float16 or bfloat16" in checks["inference", "tflite"]["cause"]
    assert checks["preprocessing", "tflite"]["status"] == "pass"


def test_every_output_is_judged(copy: Path) -> None:
    """A classifier whose logits are others than FP32's, while its features are right."""
    path = copy / "golden" / "fp32" / "logits.bin"
    np.zeros_like(np.fromfile(path, "<f4")).tofile(path)
    sealed(copy)
    code, checks = checks_of(copy, "--artifact", "onnx")
    assert (code, checks["inference", "onnx"]["status"]) == (1, "fail")
    assert checks["inference", "onnx"]["found"].startswith("logits: ")
    assert "last_hidden_state" not in checks["inference", "onnx"]["found"]
    numbers = checks["inference", "onnx"]["numbers"]
    assert numbers["sqnr_db"] > numbers["min_sqnr_db"]
    assert numbers["logits_sqnr_db"] < 0 < numbers["logits_min_sqnr_db"]
    assert numbers["logits_cosine_worst"] == 0 < numbers["logits_min_cosine"]


def test_a_runtime_older_than_the_manifest_asks_for(copy: Path) -> None:
    path = copy / "artifacts" / "onnx" / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"minimum_runtime": "99.0"}))
    sealed(copy)
    code, checks = checks_of(copy, "--artifact", "onnx")
    assert code == 1
    assert "is older than 99.0" in checks["inference", "onnx"]["found"]
    assert checks["inference", "onnx"]["cause"] == "an old runtime: pip install -U onnxruntime"


def steps(
    golden: Golden, built: Path, flags: set[str], *, runtime: str = "onnx", unsafe: bool = False
) -> dict[str, Check]:
    """The self-test's steps for an artifact on a CPU with these flags, by name."""
    manifest = load_manifest(built / runtime)
    if unsafe:
        saturation = Saturation(False, None, 1, 1, {"layers.0.mlp.fc1": UnsafeLinear(1, 1, ())})
        manifest = replace(manifest, target="vnni", saturation=saturation)
    checks = selftest(golden, {runtime: (built / runtime, manifest)}, kind=kind_of(flags))
    return {check.step: check for check in checks}


def test_saturation_is_told_from_the_certificate_and_the_cpu(bundled: Path, built: Path) -> None:
    """Before anything runs, and whether or not the golden images are among those that saturate."""
    golden = read_golden(bundled / GOLDEN_FOLDER)
    told = steps(golden, built, {"sse4_1", "avx2"}, runtime="openvino", unsafe=True)["cpu"]
    assert told.status == "fail"
    assert told.found.startswith("made for vnni; this CPU is x86 without VNNI and adds pairs of products in 16 bits")
    assert "1 integer products can exceed (layers.0.mlp.fc1)" in told.found
    assert told.cause == "saturation: build with --target avx2"
    for flags in ({"sse4_1", "avx2", "avx512_vnni"}, {"avx2", "amx_int8"}, {"asimd"}, {"asimd", "asimddp"}):
        assert steps(golden, built, flags, runtime="openvino", unsafe=True)["cpu"].status == "pass"
    safe = steps(golden, built, {"sse4_1", "avx2"})
    assert (safe["cpu"].status, safe["cpu"].found) == ("pass", "x86: the integer sums are those of the host")
    assert safe["inference"].status == "pass"
    unknown = steps(golden, built, set(), runtime="openvino", unsafe=True)["cpu"]
    assert unknown.status == "skip"
    assert "is of no kind that vitedge knows; the artifact is not exact on x86 CPUs without VNNI" in unknown.found


def test_onnx_runtime_has_slower_kernels_that_do_not_saturate(bundled: Path, built: Path) -> None:
    golden = read_golden(bundled / GOLDEN_FOLDER)
    told = steps(golden, built, {"sse4_1", "avx2"}, unsafe=True)["cpu"]
    assert told.status == "pass"
    assert told.found.endswith("by slower kernels: --target avx2 is faster here")
    unknown = steps(golden, built, set(), unsafe=True)["cpu"]
    assert (unknown.status, unknown.found) == ("skip", "this CPU is of no kind that vitedge knows")


def unreachable(bounds: Mapping[str, Tolerance]) -> dict[str, Tolerance]:
    return {name: replace(bound, min_sqnr_db=99.0) for name, bound in bounds.items()}


@pytest.mark.parametrize("unsafe", [True, False])
def test_saturation_is_a_cause_where_the_cpu_is_unknown(unsafe: bool, bundled: Path, built: Path) -> None:
    golden = read_golden(bundled / GOLDEN_FOLDER)
    bounds = golden.tolerances["openvino"]
    strict = {"openvino": {**bounds, "any": unreachable(bounds["any"])}}
    failed = steps(replace(golden, tolerances=strict), built, set(), runtime="openvino", unsafe=unsafe)["inference"]
    assert failed.status == "fail"
    assert str(failed.cause).startswith("saturation, if this is an x86 CPU without VNNI") is unsafe


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ({"avx2", "avx_vnni"}, "x86-vnni"),
        ({"ssse3", "avx2"}, "x86"),
        ({"asimd", "asimddp"}, "arm64-dotprod"),
        ({"asimd"}, "arm64"),
        (set(), "any"),
    ],
)
def test_each_kind_of_cpu_has_its_own_bound(bundled: Path, built: Path, flags: set[str], kind: str) -> None:
    """A bound that no artifact reaches fails that kind, and no other does; one that is missing is told."""
    golden = read_golden(bundled / GOLDEN_FOLDER)
    bounds = golden.tolerances["onnx"]
    assert list(bounds) == ["x86-vnni", "x86", "arm64-dotprod", "arm64", "any"]
    strict = {**bounds, kind: unreachable(bounds[kind])}
    failed = steps(replace(golden, tolerances={"onnx": strict}), built, flags)["inference"]
    assert (failed.status, failed.numbers["min_sqnr_db"]) == ("fail", 99.0)
    others = {name: unreachable(bound) for name, bound in bounds.items()} | {kind: bounds[kind]}
    assert steps(replace(golden, tolerances={"onnx": others}), built, flags)["inference"].status == "pass"
    if kind != "any":
        old = steps(replace(golden, tolerances={"onnx": {"any": bounds["any"]}}), built, flags)
        assert (old["cpu"].status, old["inference"].status) == ("fail", "skip")
        assert old["cpu"].found == f"expected a tolerance for {kind}, found any"
        assert f"no bound holds for {kind}" in old["inference"].found


def test_golden_vectors_that_do_not_know_an_artifact(bundled: Path, built: Path) -> None:
    golden, artifacts = read_golden(bundled / "golden"), {"other": (built / "onnx", load_manifest(built / "onnx"))}
    with pytest.raises(ArtifactError, match="golden: expected golden vectors of other, found none"):
        selftest(golden, artifacts, kind=describe_machine().kind)
