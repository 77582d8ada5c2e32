"""`vitedge bundle`, and what the device sees of it: isolated, with numpy and one runtime, nothing else importable."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.commands.conftest import Site, contents
from tests.telemetry import left_behind, watch
from vitedge.converters.golden import write_with_artifacts
from vitedge.runtimes.bundle import load_bundle
from vitedge.runtimes.errors import ArtifactError, ImageError
from vitedge.runtimes.golden import GOLDEN_FOLDER, Golden, load_golden, read_golden
from vitedge.runtimes.instruction_sets import kind_of
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.saturation import Saturation, UnsafeLinear
from vitedge.runtimes.selftest import Check, selftest

# A device has none of these; the test's own interpreter does.
ABSENT = ("torch", "transformers", "typer", "rich", "scipy", "sklearn", "safetensors", "onnx", "tensorflow", "cv2")
PROGRAM = """
import importlib.abc, runpy, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, ".")
sys.argv[:] = ["device", *{arguments!r}]
runpy.run_module("vitedge.device", run_name="__main__")
"""

HIDDEN = """
import importlib.metadata as metadata
known = metadata.version
def version(name):
    if name in {names!r}:
        raise metadata.PackageNotFoundError(name)
    return known(name)
metadata.version = version
"""


def on_device(folder: Path, *arguments: str, absent: Sequence[str] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Runs the bundle's own package, and none of this repository's."""
    program = PROGRAM.format(absent=set(absent), arguments=list(arguments))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def checks_of(folder: Path, *arguments: str) -> tuple[int, dict[tuple[str, str | None], Any]]:
    result = on_device(folder, "selftest", "--json", *arguments)
    document = json.loads(result.stdout)
    assert document["format"] == "vitedge-selftest/1"
    return result.returncode, {(check["step"], check["artifact"]): check for check in document["checks"]}


@pytest.fixture(scope="module")
def bundled(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "bundle"
    result = site.vitedge("bundle", built, "--out", out, "--with-fp32")
    assert result.exit_code == 0, result.stderr
    assert "onnx, openvino, tflite" in result.stdout
    return out


@pytest.fixture
def copy(bundled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled, tmp_path / "bundle"))


def sealed(folder: Path) -> None:
    """Writes hashes of files that were changed on purpose, so that only what follows from the change is found."""
    for name, root in (("golden.json", folder / GOLDEN_FOLDER), ("bundle.json", folder)):
        document = json.loads((root / name).read_text())
        for file, record in document["files"].items():
            data = (root / file).read_bytes()
            record |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        (root / name).write_text(json.dumps(document))


def test_device_without_host_packages_passes(bundled: Path) -> None:
    code, checks = checks_of(bundled)
    assert code == 0
    statuses = {key: check["status"] for key, check in checks.items()}
    runtimes = ("onnx", "openvino", "tflite")
    assert statuses == {
        ("files", None): "pass",
        ("decoding", None): "skip",  # there is no OpenCV
        **{(step, name): "pass" for step in ("cpu", "preprocessing", "inference") for name in runtimes},
    }
    for name in runtimes:
        numbers = checks["inference", name]["numbers"]
        assert numbers["min_sqnr_db"] < numbers["sqnr_db"]
        assert numbers["sqnr_db"] == pytest.approx(numbers["host_sqnr_db"], abs=1)
        assert numbers["min_sqnr_db"] > numbers["host_sqnr_db"] - 8  # a bound that means something
    assert not list(bundled.rglob("__pycache__"))


def test_nothing_is_left_on_the_device(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(tmp_path / "home", monkeypatch)
    assert on_device(bundled, "selftest").returncode == 0
    assert left_behind(tmp_path / "home") == set()


def test_decoding_is_tested_where_opencv_is(bundled: Path) -> None:
    result = on_device(bundled, "selftest", "--artifact", "onnx", absent=())
    assert result.returncode == 0, result.stderr
    assert "PASS  decoding                8 PNGs have the same pixels" in result.stdout
    assert "openvino" not in result.stdout


def test_one_runtime_is_enough_and_none_is_not(bundled: Path) -> None:
    """A runtime is absent if its distribution is."""
    for names, code in ((("openvino", "ai-edge-litert"), 0), (("openvino", "ai-edge-litert", "onnxruntime"), 1)):
        program = HIDDEN.format(names=names) + PROGRAM.format(absent=set(ABSENT), arguments=["selftest"])
        result = subprocess.run(
            [sys.executable, "-c", program], cwd=bundled, capture_output=True, text=True, check=False
        )
        assert result.returncode == code, result.stdout
        assert "SKIP  inference tflite        ai-edge-litert is not installed here" in result.stdout
    assert "no runtime is installed here" in result.stdout


def test_runs_and_benches(bundled: Path) -> None:
    shown = on_device(bundled, "run", "golden/images/0.png", "--artifact", "onnx", absent=())
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("golden/images/0.png  ")
    measured = on_device(bundled, "bench", "--seconds", "0.1", "--json", absent=())
    assert measured.returncode == 0, measured.stderr
    document = json.loads(measured.stdout)
    assert document["format"] == "vitedge-benches/2"
    assert document["artifacts"].keys() == document["runs"][0]["pairs"].keys() == {"onnx", "openvino", "tflite"}
    said = on_device(bundled, "bench", "--seconds", "0.1", "--artifact", "onnx", absent=())
    assert "onnx      FP32  median" in said.stdout


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("bench", "--seconds", "nan"), "--seconds: expected a finite number above 0, found nan"),
        (("bench", "--seconds", "0"), "--seconds: expected a finite number above 0, found 0"),
        (("selftest", "--threads", "0"), "--threads: expected at least 1, found 0"),
    ],
)
def test_options_that_no_device_can_follow(bundled: Path, options: tuple[str, ...], message: str) -> None:
    result = on_device(bundled, *options, absent=())
    assert result.returncode == 2
    assert message in result.stderr


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
    assert "1 linears can exceed (layers.0.mlp.fc1)" in told.found
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


@pytest.mark.parametrize("unsafe", [True, False])
def test_saturation_is_a_cause_where_the_cpu_is_unknown(unsafe: bool, bundled: Path, built: Path) -> None:
    golden = read_golden(bundled / GOLDEN_FOLDER)
    bounds = golden.tolerances["openvino"]
    strict = {"openvino": {**bounds, "any": replace(bounds["any"], min_sqnr_db=99.0)}}
    failed = steps(replace(golden, tolerances=strict), built, set(), runtime="openvino", unsafe=unsafe)["inference"]
    assert failed.status == "fail"
    assert str(failed.cause).startswith("saturation, if this is an x86 CPU without VNNI") is unsafe


def test_what_can_saturate_on_the_host_is_not_bundled(built: Path, tmp_path: Path) -> None:
    """Its outputs here would be no measure for a device."""
    folder = tmp_path / "openvino"
    shutil.copytree(built / "openvino", folder)
    saturation = Saturation(False, None, 1, 1, {"layers.0.mlp.fc1": UnsafeLinear(1, 1, ())})
    replace(load_manifest(folder), target="vnni", saturation=saturation).save(folder)
    for kind, what in (("x86", "x86 without VNNI"), ("any", "which may be x86 without VNNI")):
        with pytest.raises(ArtifactError, match=f"made for vnni; on this CPU, {what}, 1 of its linears can"):
            write_with_artifacts(built / GOLDEN_FOLDER, {"openvino": folder}, tmp_path / "golden", kind=kind)
    write_with_artifacts(built / GOLDEN_FOLDER, {"openvino": folder}, tmp_path / "golden", kind="x86-vnni")
    assert "x86" not in read_golden(tmp_path / "golden").tolerances["openvino"]


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
    strict = {**bounds, kind: replace(bounds[kind], min_sqnr_db=99.0)}
    failed = steps(replace(golden, tolerances={"onnx": strict}), built, flags)["inference"]
    assert (failed.status, failed.numbers["min_sqnr_db"]) == ("fail", 99.0)
    others = {name: replace(bound, min_sqnr_db=99.0) for name, bound in bounds.items()} | {kind: bounds[kind]}
    assert steps(replace(golden, tolerances={"onnx": others}), built, flags)["inference"].status == "pass"
    if kind != "any":
        old = steps(replace(golden, tolerances={"onnx": {"any": bounds["any"]}}), built, flags)
        assert (old["cpu"].status, old["inference"].status) == ("fail", "skip")
        assert old["cpu"].found == f"expected a tolerance for {kind}, found any"
        assert f"no bound holds for {kind}" in old["inference"].found


def test_golden_vectors_are_the_artifacts_own(bundled: Path, built: Path) -> None:
    golden = load_golden(bundled / GOLDEN_FOLDER)
    assert len(golden.images) == 8
    for name in ("onnx", "openvino", "tflite"):
        found = load_encoder(built / name, threads=1)(golden.encoder_input())
        for output, expected in golden.expected(name).items():
            np.testing.assert_allclose(found[output], expected, atol=0.2)
            assert np.abs(expected - golden.expected()[output]).max() > 0


def test_zip_is_the_same_folder_and_the_same_bytes_again(
    site: Site, built: Path, bundled: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    for path in (first, second):
        assert site.vitedge("bundle", built / "onnx", "--out", path).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        archive.extractall(tmp_path / "there")
    assert on_device(tmp_path / "there" / "bundle", "selftest").returncode == 0
    assert not list(tmp_path.glob(".*"))
    names = contents(tmp_path / "there" / "bundle")
    assert names["vitedge/device.py"] == contents(bundled)["vitedge/device.py"]
    assert not any(name.startswith(("fp32/", "artifacts/tflite")) for name in names)


def test_bundle_is_replaced_and_nothing_else_is(site: Site, built: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert site.vitedge("bundle", built / "onnx", "--out", out).exit_code == 0
    assert site.vitedge("bundle", built / "tflite", "--out", out, "--json").exit_code == 0
    assert load_bundle(out).artifacts == {"tflite": "artifacts/tflite"}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    result = site.vitedge("bundle", built, "--out", mine)
    assert result.exit_code == 2
    assert "exists and is not a vitedge bundle" in result.stderr
    assert contents(mine) == {"thesis.tex": b"years of work"}


def without_golden(build: Path) -> Sequence[str | Path]:
    shutil.rmtree(build / "golden")
    return (build,)


def without_twins(build: Path) -> Sequence[str | Path]:
    shutil.rmtree(build / "fp32")
    return (build, "--with-fp32")


def damaged_twin(build: Path) -> Sequence[str | Path]:
    (build / "fp32" / "onnx" / "model.onnx").write_bytes(b"")
    return (build, "--with-fp32")


def damaged_golden(build: Path) -> Sequence[str | Path]:
    (build / "golden" / "resized.bin").write_bytes(b"")
    return (build,)


def of_another_encoder(build: Path) -> Sequence[str | Path]:
    path = build / "golden" / "golden.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"source_digest": "0" * 64}))
    return (build,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_golden, "expected golden vectors in golden; build again"),
        (without_twins, "no FP32 twin; build with --keep-fp32"),
        (damaged_twin, "fp32/onnx/model.onnx: expected"),
        (damaged_golden, "resized.bin: expected"),
        (of_another_encoder, "not of the encoder, or not of the preprocessing"),
        (lambda build: (build / "nothing",), "no such folder"),
    ],
)
def test_bad_ingredients(
    site: Site, built: Path, tmp_path: Path, change: Callable[[Path], Sequence[str | Path]], message: str
) -> None:
    build = Path(shutil.copytree(built, tmp_path / "build"))
    result = site.vitedge("bundle", *change(build), "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert message in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"build"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"format": "vitedge-bundle/9"}, "expected format vitedge-bundle/1, found vitedge-bundle/9"),
        ([], "bytes of something else"),
        ({"artifacts": {"onnx": "../../etc"}}, "expected plain names inside the folder"),
        ({"files": {"/etc/passwd": {"sha256": "0", "size_bytes": 1}}}, "expected plain names inside the folder"),
        ({"files": {"a": {"sha256": "0", "size_bytes": -1}}}, "expected a number of at least 0"),
        ({"artifacts": None}, "expected an object"),
    ],
)
def test_hostile_bundles_are_refused(document: Any, message: str, tmp_path: Path) -> None:
    whole = {"format": "vitedge-bundle/1", "vitedge": "0", "artifacts": {}, "fp32": {}, "files": {}}
    (tmp_path / "bundle.json").write_text(json.dumps(whole | document if isinstance(document, dict) else document))
    with pytest.raises(ArtifactError, match=message):
        load_bundle(tmp_path)
