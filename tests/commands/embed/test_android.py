"""`vitedge embed --platform android`: compiled here, and run on this machine's JVM with ONNX Runtime's Android library.

LiteRT's Java classes are in no registry that tests reach, nor are Android's. Stubs below `android/` stand for them.
Those of LiteRT have LiteRT's Python package run the model: what the encoder passes and what it makes of the outputs is
tested, LiteRT's own path from Java to the model is not.

The app for ONNX Runtime is compiled by the oldest Kotlin that is supported, the one for LiteRT by a current one.
"""

import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.commands.conftest import CLASSES, Site
from tests.commands.embed.cases import format_cases, resize_cases
from tests.commands.embed.conftest import claim_exact, turned_away
from tests.commands.embed.jvm import (
    Jvm,
    javac,
    needs_kotlin,
    new_kotlin,
    old_kotlin,
    onnxruntime_android,
    page_alignments,
)
from tests.commands.embed.test_cpp import installed
from tests.held import needs_holding
from tests.npm import needs_npm
from vitedge.runtimes.golden import load_golden
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.resize import resize
from vitedge.runtimes.tflite import dequantize, quantize

pytestmark = [needs_kotlin, needs_npm]
OURS = Path(__file__).with_name("android")
ROOT = Path(__file__).parents[3]
KOTLIN = {"onnx": old_kotlin, "tflite": new_kotlin}


@dataclass(frozen=True)
class App:
    """An embedded folder, and its classes with those of its tests."""

    folder: Path
    jvm: Jvm

    def junit(self, *tests: str) -> tuple[int, str]:
        """Exit code and output of some tests of the app, which read files of its folder, and assets."""
        names = [f"vitedge.{name}" for name in tests]
        result = self.jvm.run(self.folder, "org.junit.runner.JUnitCore", *names, assets="model:golden")
        return result.returncode, result.stdout + result.stderr

    def encode(self, out: Path) -> None:
        """Writes input and outputs of all golden images into a folder to make, by name."""
        out.mkdir()
        result = self.jvm.run(self.folder, "vitedge.DriverKt", "encode", str(out))
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Jvm]:
    """Runtime and Android classes by runtime."""
    folder = tmp_path_factory.mktemp("libraries")
    stubs = javac(OURS / "stubs", folder / "stubs")
    onnx = onnxruntime_android(installed("onnxruntime"), folder / "onnx")
    litert = javac(OURS / "litert", folder / "litert")
    python = f"{sys.executable}\n{Path(__file__).with_name('litert_process.py')}"
    return {
        "onnx": replace(onnx, classpath=(*onnx.classpath, stubs)),
        "tflite": Jvm((litert, stubs), properties=(("litert.command", python),)),
    }


def compiled(app: Path, runtime: str, libraries: Mapping[str, Jvm]) -> App:
    """All Kotlin of an app folder, its tests for phones too, and ours."""
    sources = [*app.rglob("*.kt"), *(OURS / "kotlin").iterdir(), *(OURS / runtime).glob("*.kt")]
    return App(app, KOTLIN[runtime]().compile(sources, libraries[runtime], app / "classes.jar"))


def embedded(site: Site, artifact: Path, folder: Path, libraries: Mapping[str, Jvm]) -> App:
    """The app for an artifact, whose folder has the name of its runtime."""
    result = site.vitedge("embed", artifact, "--platform", "android", "--out", folder)
    assert result.exit_code == 0, result.output
    return compiled(folder, artifact.name, libraries)


@pytest.fixture(scope="module")
def apps(
    site: Site, built: Path, libraries: Mapping[str, Jvm], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, App]:
    folder = tmp_path_factory.mktemp("android")
    return {runtime: embedded(site, built / runtime, folder / runtime, libraries) for runtime in KOTLIN}


@pytest.fixture
def app(apps: Mapping[str, App], tmp_path: Path) -> App:
    """A copy of the app for ONNX Runtime that a test may damage."""
    shutil.copytree(apps["onnx"].folder, tmp_path / "app")
    return App(tmp_path / "app", apps["onnx"].jvm)


def test_onnx_passes_its_own_tests(apps: Mapping[str, App]) -> None:
    code, output = apps["onnx"].junit(
        "PlainTest", "InferenceTest", "DeviceTest", "AndroidTest", "GoldenTest", "RefusedTest"
    )
    assert code == 0, output
    assert "OK (19 tests)" in output
    assert "preprocessing: 0 resized values differ; largest error after normalization 0.0e+00" in output
    assert "inference: last_hidden_state: cosine " in output


def test_tflite_passes_its_own_tests(apps: Mapping[str, App]) -> None:
    code, output = apps["tflite"].junit("PlainTest", "DeviceTest", "AndroidTest", "GoldenTest", "RefusedTest")
    assert code == 0, output
    assert "OK (18 tests)" in output
    assert "preprocessing: 0 resized values differ; largest error after normalization 0.0e+00" in output


def test_onnx_runtime_is_told_to_report_nothing(apps: Mapping[str, App]) -> None:
    code, output = apps["onnx"].junit("TelemetryTest")  # alone, so that nothing loads the runtime before
    assert code == 0, output


def check_against_python(app: App, out: Path) -> None:
    """Input and outputs of the golden images are those of Python, bit by bit."""
    manifest, golden = load_manifest(app.folder / "model"), load_golden(app.folder / "golden")
    (given,) = manifest.inputs
    pixel_values = golden.encoder_input()
    if given.layout == "NHWC" and given.dtype != "uint8":
        pixel_values = pixel_values.transpose(0, 2, 3, 1)
    app.encode(out)
    assert np.array_equal(np.fromfile(out / "input.bin", given.dtype), quantize(pixel_values, given).ravel())
    for name, expected in golden.expected(manifest.runtime).items():
        assert np.array_equal(np.fromfile(out / f"{name}.bin", "<f4"), expected.ravel())


@pytest.mark.parametrize("runtime", KOTLIN)
def test_outputs_are_those_of_python(runtime: str, apps: Mapping[str, App], tmp_path: Path) -> None:
    check_against_python(apps[runtime], tmp_path / "found")


@needs_holding
def test_an_artifact_for_vnni_does_not_saturate_without(
    site: Site, for_vnni: Path, libraries: Mapping[str, Jvm], held_to_avx2: None, tmp_path: Path
) -> None:
    app = embedded(site, for_vnni, tmp_path / "app", libraries)
    code, output = app.junit("InferenceTest")
    assert code == 0, output
    claim_exact(app.folder / "src/main/kotlin/vitedge/Contract.kt")
    code, output = compiled(app.folder, "onnx", libraries).junit("InferenceTest")
    assert code == 1
    assert re.search(r"AssertionError: .*cosine ", output), output


def test_integers_at_the_boundary(site: Site, integers: Path, libraries: Mapping[str, Jvm], tmp_path: Path) -> None:
    app = embedded(site, integers / "tflite", tmp_path / "app", libraries)
    code, output = app.junit("PlainTest", "DeviceTest")
    assert code == 0, output
    assert "preprocessing: 0 resized values differ; 0 bytes of the quantized input differ" in output
    check_against_python(app, tmp_path / "found")

    quantized = app.folder / "golden" / "quantized.bin"
    quantized.write_bytes(bytes([quantized.read_bytes()[0] ^ 1]) + quantized.read_bytes()[1:])
    code, output = app.junit("PlainTest")
    assert code == 1
    assert "0 resized values differ; 1 bytes of the quantized input differ" in output


def test_formats_round_and_clip_as_python(apps: Mapping[str, App], tmp_path: Path) -> None:
    for index, (record, values) in enumerate(format_cases()):
        source = tmp_path / f"{index}"
        values.tofile(source)
        words = ("format", record.dtype, repr(record.scale), str(record.zero_point), str(source))
        result = apps["tflite"].jvm.run(tmp_path, "vitedge.DriverKt", *words)
        assert result.returncode == 0, result.stdout + result.stderr
        integers = quantize(values, record)
        assert np.array_equal(np.fromfile(f"{source}.integers", record.dtype), integers)
        assert np.array_equal(np.fromfile(f"{source}.floats", "<f4"), dequantize(integers, record))


def test_every_filter_is_the_contracts_own(apps: Mapping[str, App], tmp_path: Path) -> None:
    lines, expected = [], {}
    for index, (pixels, new, resample) in enumerate(resize_cases()):
        source, out = tmp_path / f"{index}.in", tmp_path / f"{index}.out"
        pixels.tofile(source)
        lines.append(f"{source} {pixels.shape[0]} {pixels.shape[1]} {out} {new[0]} {new[1]} {resample}\n")
        expected[out] = resize(pixels, *new, resample)
    (tmp_path / "list").write_text("".join(lines))
    result = apps["onnx"].jvm.run(tmp_path, "vitedge.DriverKt", "resize", "list")
    assert result.returncode == 0, result.stdout + result.stderr
    for (out, pixels), line in zip(expected.items(), lines, strict=True):
        assert np.array_equal(np.fromfile(out, np.uint8).reshape(pixels.shape), pixels), line


def test_another_preprocessing_fails_that_step(app: App) -> None:
    path = app.folder / "golden" / "resized.bin"
    pixels = bytearray(path.read_bytes())
    pixels[100] ^= 1
    path.write_bytes(pixels)
    code, output = app.junit("PlainTest", "InferenceTest", "DeviceTest")
    assert code == 1
    assert "1 resized values differ" in output
    assert "Failures: 2" in output  # preprocessing, here and of the phone's test


def test_other_outputs_fail_inference(app: App) -> None:
    for path in sorted((app.folder / "golden" / "fp32").iterdir()):
        kept = path.read_bytes()
        turned_away(path)
        code, output = app.junit("PlainTest", "InferenceTest", "DeviceTest")
        assert code == 1
        assert re.search(rf"AssertionError: .*{path.stem}: cosine ", output), output
        assert "Failures: 2" in output  # inference, here and of the phone's test
        path.write_bytes(kept[:-4])
        assert f"golden/fp32/{path.name}: expected" in app.junit("InferenceTest")[1]
        path.write_bytes(kept)


@pytest.mark.parametrize("runtime", KOTLIN)
def test_pixels_in(runtime: str, site: Site, pixels_in: Path, libraries: Mapping[str, Jvm], tmp_path: Path) -> None:
    app = embedded(site, pixels_in / runtime, tmp_path / "app", libraries)
    code, output = app.junit("PlainTest", "DeviceTest")
    assert code == 0, output
    check_against_python(app, tmp_path / "found")


def test_labels_are_an_asset(apps: Mapping[str, App]) -> None:
    assert len((apps["tflite"].folder / "model" / "labels.txt").read_text().splitlines()) == CLASSES


@pytest.mark.parametrize(("runtime", "extension"), [("onnx", "onnx"), ("tflite", "tflite")])
def test_gradle_keeps_the_model_uncompressed(runtime: str, extension: str, apps: Mapping[str, App]) -> None:
    text = (apps[runtime].folder / "build.gradle.kts").read_text()
    assert (apps[runtime].folder / "model" / f"model.{extension}").is_file()
    assert f'androidResources {{ noCompress += "{extension}" }}' in text
    assert 'assets.srcDir("model")' in text


def test_minified_apps_keep_what_native_code_looks_up(apps: Mapping[str, App]) -> None:
    folder = apps["onnx"].folder
    assert 'consumerProguardFiles("consumer-rules.pro")' in (folder / "build.gradle.kts").read_text()
    assert "-keep class ai.onnxruntime.** { *; }" in (folder / "consumer-rules.pro").read_text().splitlines()


def test_the_pinned_runtime_is_the_tested_one(apps: Mapping[str, App]) -> None:
    text = (apps["onnx"].folder / "build.gradle.kts").read_text()
    versions = set(re.findall(r"com\.microsoft\.onnxruntime:onnxruntime(?:-android)?:([0-9.]+)", text))
    assert len(versions) == 1
    assert apps["onnx"].jvm.native is not None
    bridge = (apps["onnx"].jvm.native / "libonnxruntime4j_jni.so").read_bytes()
    assert f"VERS_{versions.pop()}\0".encode() in bridge


def test_litert_is_pinned_as_here(apps: Mapping[str, App]) -> None:
    """LiteRT's packages for Python and Android have the same versions."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (pinned,) = (wanted for wanted in extras["convert"] if wanted.startswith("ai-edge-litert"))
    text = (apps["tflite"].folder / "build.gradle.kts").read_text()
    assert re.findall(r"com\.google\.ai\.edge\.litert:(.*)\"", text) == [pinned.replace("ai-edge-litert==", "litert:")]


def test_native_libraries_are_aligned_for_16_kb_pages() -> None:
    alignments = page_alignments("arm64-v8a")
    assert alignments == {"libonnxruntime.so": {1 << 14}, "libonnxruntime4j_jni.so": {1 << 14}}
