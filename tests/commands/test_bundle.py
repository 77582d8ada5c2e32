"""`vitedge bundle`, and what the device sees of it: isolated, with numpy and one runtime, nothing else importable."""

import importlib.metadata
import json
import os
import re
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
from tests.commands.device_side import ABSENT, checks_of, on_device
from tests.telemetry import left_behind, watch
from vitedge.converters.golden import write_with_artifacts
from vitedge.runtimes.bundle import load_bundle
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.golden import GOLDEN_FOLDER, load_golden, read_golden
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.saturation import Saturation, UnsafeLinear


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
    for hidden, code in ((("openvino", "ai-edge-litert"), 0), (("openvino", "ai-edge-litert", "onnxruntime"), 1)):
        result = on_device(bundled, "selftest", hidden=hidden)
        assert result.returncode == code, result.stdout
        assert "SKIP  inference tflite        ai-edge-litert is not installed here" in result.stdout
    assert "no runtime is installed here" in result.stdout


def test_benches_without_host_packages(bundled: Path) -> None:
    measured = on_device(bundled, "bench", "--seconds", "0.1", "--json")
    assert measured.returncode == 0, measured.stderr
    document = json.loads(measured.stdout)
    assert document["format"] == "vitedge-benches/2"
    assert document["artifacts"].keys() == document["runs"][0]["pairs"].keys() == {"onnx", "openvino", "tflite"}
    two = ("--artifact", "onnx", "--artifact", "tflite")
    said = on_device(bundled, "bench", "--seconds", "0.1", *two).stdout
    assert "onnx      FP32  median" in said
    assert "tflite    FP32  median" in said
    assert "openvino" not in said
    # The processes that measure are isolated too.
    failed = on_device(bundled, "bench", "--artifact", "onnx", absent=(*ABSENT, "onnxruntime"))
    assert failed.returncode == 2
    assert "onnxruntime cannot be imported" in failed.stderr


def test_runs_with_opencv_and_asks_for_it(bundled: Path) -> None:
    arguments = ("run", "golden/images/0.png", "--artifact", "onnx")
    shown = on_device(bundled, *arguments, absent=[name for name in ABSENT if name != "cv2"])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("golden/images/0.png  ")
    asked = on_device(bundled, *arguments)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "OpenCV decodes image files and cannot be imported" in asked.stderr
    assert "pip install opencv-python-headless" in asked.stderr
    assert "Traceback" not in asked.stderr


def test_commands_of_its_readme_run(site: Site, built: Path, tmp_path: Path) -> None:
    """As they stand there, in an environment that they make themselves."""
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built / "onnx", "--out", bundle).exit_code == 0
    texts = [(bundle / name).read_text() for name in ("README.md", "LICENSES.md")]
    assert not any("$" in text for text in texts)
    block = texts[0].partition("\n\n    ")[2].partition("\n\n")[0]
    assert all(word in block for word in ("-m venv", "-r requirements.txt", " selftest", " bench ", " run "))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = f"{Path(sys.executable).parent}:{environment['PATH']}"
    result = subprocess.run(
        ["/bin/sh", "-ex"],
        input=block,
        cwd=bundle,
        env={**environment, "PATH": path, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "PASS  inference onnx" in result.stdout
    assert "onnx      INT8  median" in result.stdout
    assert "golden/images/0.png  " in result.stdout


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


def test_what_can_saturate_on_the_host_is_not_bundled(built: Path, tmp_path: Path) -> None:
    """Its outputs here would be no measure for a device."""
    folder = tmp_path / "openvino"
    shutil.copytree(built / "openvino", folder)
    saturation = Saturation(False, None, 1, 1, {"layers.0.mlp.fc1": UnsafeLinear(1, 1, ())})
    replace(load_manifest(folder), target="vnni", saturation=saturation).save(folder)
    for kind, what in (("x86", "x86 without VNNI"), ("any", "which may be x86 without VNNI")):
        with pytest.raises(ArtifactError, match=f"made for vnni; on this CPU, {what}, 1 of its integer products can"):
            write_with_artifacts(built / GOLDEN_FOLDER, {"openvino": folder}, tmp_path / "golden", kind=kind)
    write_with_artifacts(built / GOLDEN_FOLDER, {"openvino": folder}, tmp_path / "golden", kind="x86-vnni")
    assert "x86" not in read_golden(tmp_path / "golden").tolerances["openvino"]


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


def test_licences_of_what_is_inside(site: Site, bundled: Path, tmp_path: Path) -> None:
    """Of the checkpoint, as far as it states one, and of all that the bundle has a device install."""
    text = (bundled / "LICENSES.md").read_text()
    assert "Its licence: not stated by the checkpoint.\n" in text
    assert not (bundled / "license").exists()
    named = dict(re.findall(r"^\| ([\w-]+) \| (.*) \|$", text, re.MULTILINE))
    required = re.findall(r"^([\w-]+)>=", (bundled / "requirements.txt").read_text(), re.MULTILINE)
    for package in (*required, "opencv-python-headless"):
        assert named[package].split(",")[0].split("-")[0] in stated_license(package)

    model = shutil.copytree(site.model, tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (model / "LICENSE.txt").write_text("The text.\n")
    assert replace(site, model=model).build(tmp_path / "out", "--runtime", "onnx").exit_code == 0
    assert load_manifest(tmp_path / "out" / "onnx").source.license == "cc-by-4.0"
    shutil.rmtree(model)  # a bundle is made without the checkpoint
    assert site.vitedge("bundle", tmp_path / "out", "--out", tmp_path / "bundle").exit_code == 0
    assert "Its licence: cc-by-4.0 (its text is in `license/`).\n" in (tmp_path / "bundle/LICENSES.md").read_text()
    assert (tmp_path / "bundle/license/LICENSE.txt").read_text() == "The text.\n"
    assert "license/LICENSE.txt" in load_bundle(tmp_path / "bundle").files
    app = ("embed", tmp_path / "out" / "onnx", "--platform", "cpp", "--out", tmp_path / "app")
    assert site.vitedge(*app).exit_code == 0
    assert (tmp_path / "app/license/LICENSE.txt").read_text() == "The text.\n"


def stated_license(package: str) -> str:
    """What an installed package says of itself, in whichever field."""
    fields = importlib.metadata.metadata(package)
    values = [fields.get("License-Expression"), fields.get("License"), *fields.get_all("Classifier", [])]
    return " ".join(value for value in values if value)


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
