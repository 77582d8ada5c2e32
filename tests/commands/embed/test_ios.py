"""`vitedge embed --platform ios`: its Swift package is built and tested here, by Swift for Linux.

Apple's frameworks are not there, nor are the runtimes' own packages. Those below `ios/` stand for them: they hand on to
the C API of ONNX Runtime and of LiteRT, in the libraries that the Python packages have. So the encoder's calls and what
it makes of the outputs are tested; how the runtimes' own packages hand on to the same C API is not.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.commands.conftest import CLASSES, Site
from tests.commands.embed.cases import format_cases, resize_cases
from tests.commands.embed.test_cpp import installed
from tests.npm import ONNX_RUNTIME, needs_npm, npm_package
from tests.swift import Swift, needs_swift
from vitedge.runtimes.golden import load_golden
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.resize import resize
from vitedge.runtimes.tflite import dequantize, quantize

pytestmark = [needs_swift, needs_npm]
OURS = Path(__file__).with_name("ios")
RUNTIMES = ("onnx", "tflite")
ORIENTATION = 0x0112  # of EXIF


@dataclass(frozen=True)
class App:
    """A package beside those that stand for its dependencies, and where its tests exchange files with Python."""

    swift: Swift
    project: Path
    libraries: Path
    folder: Path

    @property
    def exchange(self) -> Path:
        return self.folder.with_suffix(".exchange")

    def test(self) -> tuple[int, str]:
        """Exit code and output of all its tests."""
        result = self.swift.test(self.folder, self.project, self.libraries)
        return result.returncode, result.stdout + result.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> App:
    """Stand-ins, and the libraries that they link; no app yet."""
    folder = tmp_path_factory.mktemp("swift")
    shutil.copytree(OURS, folder, dirs_exist_ok=True)
    header = next(npm_package(*ONNX_RUNTIME).rglob("onnxruntime_c_api.h"))
    module = folder / "onnxruntime-swift-package-manager" / "Sources" / "COnnxRuntime"
    shutil.copytree(header.parent, module, dirs_exist_ok=True)
    libraries = folder / "libraries"
    libraries.mkdir()
    (library,) = (installed("onnxruntime") / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        shutil.copyfile(library, libraries / name)
    shutil.copyfile(installed("ai_edge_litert") / "libLiteRt.so", libraries / "libLiteRt.so")
    return App(Swift(), folder, libraries, folder)


def embedded(site: Site, artifact: Path, project: App, name: str) -> App:
    """The package for an artifact, with our tests among its own and stand-ins for what it depends on."""
    app = replace(project, folder=project.project / name)
    result = site.vitedge("embed", artifact, "--platform", "ios", "--out", app.folder)
    assert result.exit_code == 0, result.output
    manifest = app.folder / "Package.swift"
    text, replaced = re.subn(
        r'\.package\(url: "https://github\.com/[\w-]+/([\w-]+)", [^)]*\)',
        r'.package(path: "../\1")',
        manifest.read_text(),
    )
    assert replaced == 1
    manifest.write_text(text)
    shutil.copy(OURS / "OurTests.swift", app.folder / "Tests" / "ViTEncoderTests")
    app.exchange.mkdir()
    for name in ("resize.txt", "formats.txt", "orientations.txt"):
        (app.exchange / name).touch()
    return app


@pytest.fixture(scope="module")
def apps(site: Site, built: Path, project: App) -> Mapping[str, App]:
    """An app by runtime whose tests have run, all of them."""
    found = {runtime: embedded(site, built / runtime, project, runtime) for runtime in RUNTIMES}
    for app in found.values():
        _give_cases(app.exchange)
        code, output = app.test()
        assert code == 0, output
        assert "Executed 9 tests, with 0 failures" in output
        assert "warning:" not in output
        assert "preprocessing: 0 resized values differ; largest error after normalization 0.0" in output
        assert "inference: last_hidden_state: cosine 0.99" in output
        assert not list(app.swift.home.rglob("deviceid")), "ONNX Runtime reports to Microsoft"
    return found


def _give_cases(exchange: Path) -> None:
    lines = []
    for index, (pixels, new, resample) in enumerate(resize_cases()):
        pixels.tofile(exchange / f"pixels{index}")
        lines.append(f"pixels{index} {pixels.shape[0]} {pixels.shape[1]} {new[0]} {new[1]} {resample}\n")
    (exchange / "resize.txt").write_text("".join(lines))
    lines = []
    for index, (record, values) in enumerate(format_cases()):
        values.tofile(exchange / f"values{index}")
        lines.append(f"values{index} {record.dtype} {record.scale!r} {record.zero_point}\n")
    (exchange / "formats.txt").write_text("".join(lines))
    lines = []
    for orientation in (*range(10), 255):  # 255: none; Pillow turns nothing for what is not 1 to 8
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
        image.getexif()[ORIENTATION] = orientation
        upright = np.array(ImageOps.exif_transpose(image))
        upright.tofile(exchange / f"upright{orientation}")
        stored = bytes([orientation, image.height, image.width]) + image.tobytes()
        (exchange / f"stored{orientation}").write_bytes(stored)
        lines.append(f"stored{orientation} {upright.shape[0]} {upright.shape[1]} upright{orientation}\n")
    (exchange / "orientations.txt").write_text("".join(lines))


def check_against_python(app: App) -> None:
    """Input and outputs of the golden images are those of Python, bit by bit."""
    manifest, golden = load_manifest(app.folder / "model"), load_golden(app.folder / "golden")
    (given,) = manifest.inputs
    pixel_values = golden.encoder_input()
    if given.layout == "NHWC" and given.dtype != "uint8":
        pixel_values = pixel_values.transpose(0, 2, 3, 1)
    assert np.array_equal(np.fromfile(app.exchange / "input.bin", given.dtype), quantize(pixel_values, given).ravel())
    for name, expected in golden.expected(manifest.runtime).items():
        assert np.array_equal(np.fromfile(app.exchange / f"{name}.bin", "<f4"), expected.ravel())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_are_those_of_python(runtime: str, apps: Mapping[str, App]) -> None:
    check_against_python(apps[runtime])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_filter_is_the_contracts_own(runtime: str, apps: Mapping[str, App]) -> None:
    for index, (pixels, new, resample) in enumerate(resize_cases()):
        found = np.fromfile(apps[runtime].exchange / f"pixels{index}.resized", np.uint8)
        assert np.array_equal(found, resize(pixels, *new, resample).ravel()), (pixels.shape, new, resample)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_formats_round_and_clip_as_python(runtime: str, apps: Mapping[str, App]) -> None:
    for index, (record, values) in enumerate(format_cases()):
        integers = quantize(values, record)
        source = apps[runtime].exchange / f"values{index}"
        assert np.array_equal(np.fromfile(f"{source}.integers", record.dtype), integers)
        assert np.array_equal(np.fromfile(f"{source}.floats", "<f4"), dequantize(integers, record))


def test_labels_are_a_resource(apps: Mapping[str, App]) -> None:
    resources = apps["tflite"].folder / ".build" / "debug" / "ViTEncoder_ViTEncoder.resources" / "model"
    assert len((resources / "labels.txt").read_text().splitlines()) == CLASSES


def test_pixels_in(site: Site, pixels_in: Path, project: App) -> None:
    app = embedded(site, pixels_in / "onnx", project, "pixels")
    code, output = app.test()
    assert code == 0, output
    check_against_python(app)


def test_integers_at_the_boundary(site: Site, integers: Path, project: App) -> None:
    app = embedded(site, integers / "tflite", project, "integers")
    code, output = app.test()
    assert code == 0, output
    check_against_python(app)

    quantized = app.folder / "golden" / "quantized.bin"
    quantized.write_bytes(bytes([quantized.read_bytes()[0] ^ 1]) + quantized.read_bytes()[1:])
    code, output = app.test()
    assert code == 1
    assert failures(output) == {"GoldenTests.testPreprocessing"}
    assert "preprocessing: 0 resized values differ; 1 bytes of the quantized input differ" in output


def failures(output: str) -> set[str]:
    return set(re.findall(r"Test Case '([\w.]+)' failed", output))


def test_damage_fails_the_step_it_is_in(site: Site, built: Path, project: App) -> None:
    app = embedded(site, built / "onnx", project, "damaged")
    golden = app.folder / "golden"
    resized = bytearray((golden / "resized.bin").read_bytes())
    resized[100] ^= 1
    (golden / "resized.bin").write_bytes(resized)
    code, output = app.test()
    assert (code, failures(output)) == (1, {"GoldenTests.testPreprocessing"})
    assert "preprocessing: 1 resized values differ; largest error after normalization 0.0" in output

    resized[100] ^= 1
    (golden / "resized.bin").write_bytes(resized)
    path = golden / "fp32" / "last_hidden_state.bin"
    values = np.fromfile(path, "<f4")
    (values + np.float32(2) * values[::-1]).astype("<f4").tofile(path)
    code, output = app.test()
    assert (code, failures(output)) == (1, {"GoldenTests.testInference"})

    model = app.folder / "model" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    code, output = app.test()
    assert code == 1
    assert "truncated or changed in transit" in output
