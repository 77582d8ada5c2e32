"""`vitedge embed --platform cpp`: compiled and run here, and, cross-compiled, on emulated ARM64 CPUs."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.arm64 import CPUS, Arm64, needs_arm64
from tests.commands.conftest import CLASSES, Site
from tests.commands.embed.conftest import claim_exact, turned_away
from tests.held import needs_holding
from tests.npm import ONNX_RUNTIME, needs_npm, npm_package
from tests.telemetry import left_behind, watch
from vitedge.converters.embed import take, write
from vitedge.runtimes.golden import load_golden
from vitedge.runtimes.resize import resize

needs_compiler = pytest.mark.skipif(
    os.environ.get("CI") is None and not (shutil.which("cmake") and shutil.which("g++")), reason="needs cmake and g++"
)
needs_cross_compiler = pytest.mark.skipif(
    os.environ.get("CI") is None and not shutil.which("aarch64-linux-gnu-g++"), reason="needs g++-aarch64-linux-gnu"
)
pytestmark = [needs_compiler, needs_npm]
CROSS = (
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
)
PACKAGES = (("onnx", "onnxruntime"), ("openvino", "openvino"))
RUNTIMES = tuple(runtime for runtime, _ in PACKAGES)
DIFFERENCE = {"onnx": 0, "openvino": 1e-5}  # from Python, at most
EXACT = "preprocessing  pass  0 resized values differ; largest error after normalization 0.0e+00"
# The same inference in Python, image by image, on the emulated CPU.
PYTHON = """
import sys
import numpy as np
runtime, model, images, out = sys.argv[1:]
images = np.load(images)
if runtime == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = [session.run(["last_hidden_state"], {"pixel_values": image[None]})[0] for image in images]
else:
    import openvino
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    found = [compiled({"pixel_values": image[None]})["last_hidden_state"].copy() for image in images]
np.concatenate(found).astype("<f4").tofile(out)
"""


def installed(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def onnxruntime_release(package: Path, folder: Path) -> Path:
    """The library out of the Python package and the headers out of npm's, laid out as a release of ONNX Runtime."""
    header = next(npm_package(*ONNX_RUNTIME).rglob("onnxruntime_c_api.h"))
    (library,) = (package / "capi").glob("libonnxruntime.so.*")
    shutil.copytree(header.parent, folder / "include")
    (folder / "lib").mkdir()
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "lib" / name).symlink_to(library)
    return folder


def compiled(app: Path, runtime: str, package: Path, *options: str) -> Path:
    """The self-test of an app folder, compiled as its README says; for warnings too."""
    where = {
        "onnx": lambda: f"-DONNXRUNTIME_DIR={onnxruntime_release(package, app / 'onnxruntime')}",
        "openvino": lambda: f"-DOpenVINO_DIR={package / 'cmake'}",
    }
    build = app / "build"
    for command in (["cmake", "-B", str(build), where[runtime](), *options], ["cmake", "--build", str(build)]):
        result = subprocess.run(command, cwd=app, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "warning:" not in result.stdout + result.stderr
    return build / "selftest"


def run(program: Path, *words: str, prefix: tuple[str, ...] = (), **more: str) -> subprocess.CompletedProcess[str]:
    libraries = {"LD_LIBRARY_PATH": str(program.parents[1] / "onnxruntime" / "lib"), **more}
    return subprocess.run(
        [*prefix, str(program), *words],
        cwd=program.parents[1],
        env={**os.environ, **libraries},
        capture_output=True,
        text=True,
        check=False,
    )


def last_hidden_state(path: Path) -> np.ndarray:
    return np.fromfile(path, "<f4")


@pytest.fixture(scope="module")
def programs(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The native self-test by runtime."""
    found = {}
    for runtime, package in PACKAGES:
        app = tmp_path_factory.mktemp("cpp") / runtime
        result = site.vitedge("embed", built / runtime, "--platform", "cpp", "--out", app)
        assert result.exit_code == 0, result.output
        found[runtime] = compiled(app, runtime, installed(package))
    return found


@pytest.fixture
def program(request: pytest.FixtureRequest, programs: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    app = tmp_path / "app"
    shutil.copytree(programs[request.param].parents[1], app, symlinks=True)
    return app / "build" / "selftest"


both = pytest.mark.parametrize("program", RUNTIMES, indirect=True)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_outputs_equal_those_of_python(runtime: str, programs: Mapping[str, Path], tmp_path: Path) -> None:
    program, out = programs[runtime], tmp_path / "found.bin"
    result = run(program, "model", "golden", "--write", str(out))
    assert result.returncode == 0, result.stdout + result.stderr
    assert EXACT in result.stdout
    expected = last_hidden_state(program.parents[1] / "golden" / runtime / "last_hidden_state.bin")
    # The same library gives the same bits; but OpenVINO of a loaded machine may split its sums otherwise.
    assert np.abs(last_hidden_state(out) - expected).max() <= DIFFERENCE[runtime]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_is_reported(
    runtime: str, programs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(tmp_path / "home", monkeypatch)
    assert run(programs[runtime], "model", "golden").returncode == 0
    assert left_behind(tmp_path / "home") == set()


def test_labels_come_as_lines(programs: Mapping[str, Path]) -> None:
    assert len((programs["onnx"].parents[1] / "model" / "labels.txt").read_text().splitlines()) == CLASSES


@needs_arm64
@needs_cross_compiler
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_on_arm64_outputs_equal_those_of_python_there(
    runtime: str, built: Path, for_arm64: Path, tmp_path: Path
) -> None:
    """Of the build for ARM64; its OpenVINO artifact saturates on x86 CPUs without VNNI, where embed refuses it."""
    arm64, app = Arm64(), tmp_path / "app"
    write(take(for_arm64 / runtime, "cpp"), "cpp", app, kind="x86-vnni")
    package = arm64.site / {"onnx": "onnxruntime", "openvino": "openvino"}[runtime]
    program = compiled(app, runtime, package, *CROSS)
    model = next((app / "model").glob("model.[ox]*"))
    np.save(app / "images.npy", load_golden(app / "golden").encoder_input())
    for cpu in CPUS:
        prefix = arm64.emulator(cpu, LD_LIBRARY_PATH=f"{app / 'onnxruntime' / 'lib'}:{package / 'libs'}")
        result = run(
            program, "model", "golden", "--write", "found.bin", prefix=prefix,
            LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""),
        )  # fmt: skip
        assert result.returncode == 0, result.stdout + result.stderr
        assert EXACT in result.stdout
        python = arm64.python(cpu, "-c", PYTHON, runtime, str(model), "images.npy", "expected.bin", cwd=app)
        assert python.returncode == 0, python.stderr
        difference = last_hidden_state(app / "found.bin") - last_hidden_state(app / "expected.bin")
        assert np.abs(difference).max() <= DIFFERENCE[runtime]


@needs_holding
def test_an_artifact_for_vnni_does_not_saturate_without(
    site: Site, for_vnni: Path, held_to_avx2: None, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    assert site.vitedge("embed", for_vnni, "--platform", "cpp", "--out", app).exit_code == 0
    program = compiled(app, "onnx", installed("onnxruntime"))
    result = run(program)
    assert result.returncode == 0, result.stdout + result.stderr
    claim_exact(app / "vitedge" / "contract.hpp")
    subprocess.run(["cmake", "--build", str(program.parent)], check=True, capture_output=True)
    result = run(program)
    assert result.returncode == 1
    assert "preprocessing  pass" in result.stdout
    assert "inference      FAIL" in result.stdout


@both
def test_a_changed_model_is_refused(program: Path) -> None:
    model = max((program.parents[1] / "model").iterdir(), key=lambda path: path.stat().st_size)
    model.write_bytes(model.read_bytes()[:-1])
    result = run(program)
    assert result.returncode == 2
    assert model.name in result.stderr
    assert "expected SHA-256" in result.stderr
    model.unlink()
    assert "cannot be read" in run(program).stderr


@both
def test_another_preprocessing_fails_that_step(program: Path) -> None:
    path = program.parents[1] / "golden" / "resized.bin"
    pixels = bytearray(path.read_bytes())
    pixels[100] ^= 1
    path.write_bytes(pixels)
    result = run(program)
    assert result.returncode == 1
    assert "preprocessing  FAIL  1 resized values differ" in result.stdout
    assert "inference      pass" in result.stdout


@both
def test_other_outputs_fail_inference(program: Path) -> None:
    folder = program.parents[1] / "golden" / "fp32"
    paths = sorted(folder.iterdir())
    assert [path.stem for path in paths] == ["last_hidden_state", "logits"]
    for path in paths:
        kept = path.read_bytes()
        turned_away(path)
        result = run(program)
        assert result.returncode == 1
        assert "inference      FAIL" in result.stdout
        path.write_bytes(kept[:-4])
        result = run(program)
        assert result.returncode == 2
        assert f"{path.name}: expected" in result.stderr
        path.write_bytes(kept)
    assert run(program).returncode == 0


@pytest.mark.parametrize(("runtime", "package"), PACKAGES)
def test_pixels_in(runtime: str, package: str, site: Site, pixels_in: Path, tmp_path: Path) -> None:
    app = tmp_path / "app"
    assert site.vitedge("embed", pixels_in / runtime, "--platform", "cpp", "--out", app).exit_code == 0
    program = compiled(app, runtime, installed(package))
    result = run(program, "model", "golden", "--write", "found.bin")
    assert result.returncode == 0, result.stdout + result.stderr
    expected = last_hidden_state(app / "golden" / runtime / "last_hidden_state.bin")
    assert np.abs(last_hidden_state(app / "found.bin") - expected).max() <= DIFFERENCE[runtime]


@pytest.mark.parametrize("resample", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_every_filter_is_the_contracts_own(resample: str, resize_program: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for size, new in (
        ((37, 61), (32, 32)),
        ((7, 5), (32, 31)),
        ((90, 33), (32, 32)),
        ((32, 90), (32, 17)),
        ((1, 1), (3, 2)),
    ):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        pixels.tofile(tmp_path / "in.bin")
        words = ["in.bin", *map(str, size), "out.bin", *map(str, new), resample]
        subprocess.run([str(resize_program), *words], cwd=tmp_path, check=True)
        found = np.fromfile(tmp_path / "out.bin", np.uint8).reshape(*new, 3)
        assert np.array_equal(found, resize(pixels, *new, resample)), (size, new)


@pytest.fixture(scope="module")
def resize_program(programs: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("resize") / "resize"
    source = Path(__file__).with_name("resize.cpp")
    command = ["g++", "-std=c++17", "-O1", "-Wall", "-Wextra", "-Wconversion", "-fsanitize=undefined"]
    include = f"-I{programs['onnx'].parents[1]}"
    subprocess.run([*command, include, str(source), "-o", str(program)], check=True)
    return program
