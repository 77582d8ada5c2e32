"""The contract of the wrappers, written once: the three runtimes differ in nothing that a caller can see."""

import importlib.metadata
import json
import re
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtimes.conftest import CLASSES, Artifacts
from tests.runtimes.pictures import awkward, smooth
from tests.tiny import random_pixels, sqnr_db
from vitedge.quantization.encoder import FloatArray
from vitedge.runtimes.encoder import DISTRIBUTIONS, RuntimeEncoder, is_older
from vitedge.runtimes.errors import ArtifactError, ImageError, ImageSetError, InputShapeError, RuntimeMissingError
from vitedge.runtimes.file_records import sha256_of
from vitedge.runtimes.image import decode_image
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.onnx import OnnxEncoder
from vitedge.runtimes.openvino import OpenVinoEncoder
from vitedge.runtimes.tflite import TfliteEncoder

WRAPPERS: dict[str, type[RuntimeEncoder]] = {
    "onnx": OnnxEncoder,
    "openvino": OpenVinoEncoder,
    "tflite": TfliteEncoder,
}
MODULES = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "ai_edge_litert.interpreter"}
# Zero on the CPUs seen. Kernels may add in another order for another batch or thread count; a value on the edge of a
# rounding then flips by one integer. Different images are a hundred times further apart (`DISTINCT`).
TOLERANCE, DISTINCT = 0.02, 2.0
OUTPUTS = {"last_hidden_state": (17, 48), "logits": (CLASSES,)}


@pytest.fixture(params=WRAPPERS)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(runtime: str, artifacts: Artifacts) -> Path:
    return artifacts.folders[runtime]


@pytest.fixture
def encoder(runtime: str, folder: Path) -> RuntimeEncoder:
    return WRAPPERS[runtime](folder, threads=1)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The artifact in a folder that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[Any], None]) -> None:
    document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    change(document)
    (folder / "manifest.json").write_text(json.dumps(document), encoding="utf-8")


def assert_equal(found: dict[str, FloatArray], expected: dict[str, FloatArray], tolerance: float = 0) -> None:
    assert list(found) == list(expected) == list(OUTPUTS)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, atol=tolerance, rtol=0, err_msg=name)


def assert_distinct(outputs: dict[str, FloatArray]) -> None:
    """Neighbouring images give different outputs, so that a mix-up would show."""
    tokens = outputs["last_hidden_state"]
    assert all(np.abs(one - next_one).max() > DISTINCT for one, next_one in pairwise(tokens))


@pytest.mark.parametrize("count", [1, 3, 5])
def test_outputs_are_named_ordered_float32_and_batch_first(encoder: RuntimeEncoder, count: int) -> None:
    outputs = encoder(random_pixels(count=count))
    assert list(outputs) == list(OUTPUTS) == [record.name for record in encoder.manifest.outputs]
    for name, shape in OUTPUTS.items():
        assert type(outputs[name]) is np.ndarray
        assert outputs[name].dtype == np.float32
        assert outputs[name].shape == (count, *shape)
        assert np.isfinite(outputs[name]).all()


def test_computes_what_the_plan_says(runtime: str, encoder: RuntimeEncoder, artifacts: Artifacts) -> None:
    """INT8 noise is some 25 dB below the signal (see the quantization tests); the wrapper adds none of its own."""
    pixel_values = random_pixels(count=6, seed=4)
    outputs, predicted = encoder(pixel_values), artifacts.predicted(runtime, pixel_values)
    exact = artifacts.checkpoint.reference()(pixel_values)
    for name in OUTPUTS:
        assert sqnr_db(predicted[name], outputs[name]) > sqnr_db(exact[name], outputs[name]) + 10
        assert 20 < sqnr_db(exact[name], outputs[name]) < 60
    assert encoder.manifest.precision == "int8"


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_batch_is_its_images_one_by_one(encoder: RuntimeEncoder, count: int) -> None:
    pixel_values = random_pixels(count=count, seed=count)
    singles = [encoder(pixel_values[i : i + 1]) for i in range(count)]
    expected = {name: np.concatenate([single[name] for single in singles]) for name in OUTPUTS}
    assert_equal(encoder(pixel_values), expected, TOLERANCE)
    assert_distinct(expected)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_fixed_batch_takes_any_number_of_images(
    runtime: str, count: int, encoder: RuntimeEncoder, artifacts: Artifacts
) -> None:
    """The last part is filled up; what fills it does not show."""
    fixed = WRAPPERS[runtime](artifacts.fixed[runtime], threads=1)
    assert fixed.manifest.inputs[0].shape[0] == artifacts.fixed_batch
    pixel_values = random_pixels(count=count, seed=count)
    assert_equal(fixed(pixel_values), encoder(pixel_values), TOLERANCE)


def test_a_second_call_leaves_the_first_results_alone(encoder: RuntimeEncoder) -> None:
    """Runtimes reuse their output buffers: a view into one would change under the caller."""
    first = encoder(random_pixels(count=1, seed=1))
    kept = {name: values.copy() for name, values in first.items()}
    encoder(random_pixels(count=1, seed=2))
    assert_equal(first, kept)


def test_the_same_input_gives_the_same_bits(encoder: RuntimeEncoder) -> None:
    pixel_values = random_pixels(count=2)
    before = pixel_values.copy()
    assert_equal(encoder(pixel_values), encoder(pixel_values))
    np.testing.assert_array_equal(pixel_values, before)


def test_strides_do_not_matter(encoder: RuntimeEncoder) -> None:
    pixel_values = random_pixels(count=4)
    for view in (pixel_values[::2], pixel_values[..., ::-1], pixel_values.transpose(0, 1, 3, 2)):
        assert_equal(encoder(view), encoder(np.ascontiguousarray(view)))
    fortran = np.asfortranarray(pixel_values)
    assert_equal(encoder(fortran), encoder(pixel_values))
    pixel_values.setflags(write=False)
    assert_equal(encoder(pixel_values), encoder(fortran))


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_do_not_change_the_result(runtime: str, folder: Path, threads: int | None) -> None:
    pixel_values = random_pixels(count=3)
    expected = WRAPPERS[runtime](folder, threads=1)(pixel_values)
    assert_equal(WRAPPERS[runtime](folder, threads=threads)(pixel_values), expected, TOLERANCE)


@pytest.mark.parametrize("threads", [0, -1])
def test_refuses_no_threads(runtime: str, folder: Path, threads: int) -> None:
    with pytest.raises(InputShapeError, match=f"^threads: expected at least 1, found {threads}$"):
        WRAPPERS[runtime](folder, threads=threads)


def test_encodes_paths_arrays_and_both(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    files = awkward()
    paths = []
    for name in ("baseline.jpg", "palette.png", "orientation-6.jpg"):
        (tmp_path / name).write_bytes(files[name])
        paths.append(tmp_path / name)
    arrays = [decode_image(files[path.name], path.name) for path in paths]
    expected = encoder(encoder.manifest.preprocessing.batch(arrays))
    assert expected["logits"].shape == (3, CLASSES)
    assert_equal(encoder.encode(paths), expected)
    assert_equal(encoder.encode([str(path) for path in paths]), expected)
    assert_equal(encoder.encode(arrays), expected)
    assert_equal(encoder.encode([paths[0], arrays[1], str(paths[2])]), expected)
    assert_equal(encoder.encode(tuple(arrays)), expected)


def test_one_image_needs_no_list(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    image = smooth(50, 40)
    path = tmp_path / "one.png"
    path.write_bytes(awkward()["rgb.png"])
    assert_equal(encoder.encode(image), encoder.encode([image]))
    assert_equal(encoder.encode(path), encoder.encode([path]))
    assert_equal(encoder.encode(str(path)), encoder.encode([path]))
    assert encoder.encode(image)["logits"].shape == (1, CLASSES)


def test_a_folder_is_its_images_by_path(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    (tmp_path / "photos" / "b").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    files = {"b/one.jpg": "baseline.jpg", "a.png": "palette.png", "note.txt": "rgb.png"}
    for name, source in files.items():
        (tmp_path / "photos" / name).write_bytes(awkward()[source])
    expected = encoder.encode([tmp_path / "photos" / name for name in ("a.png", "b/one.jpg")])
    assert_equal(encoder.encode(str(tmp_path / "photos")), expected)
    with pytest.raises(ImageSetError, match=r"empty: no images in it or below"):
        encoder.encode(tmp_path / "empty")


def test_many_images_are_encoded_in_order(encoder: RuntimeEncoder) -> None:
    """More than are preprocessed at a time, and not a multiple of that."""
    images = [smooth(20 + i, 60 - i, seed=i) for i in range(19)]
    expected = encoder(encoder.manifest.preprocessing.batch(images))
    assert_equal(encoder.encode(images), expected, TOLERANCE)
    assert expected["logits"].shape == (19, CLASSES)
    assert_distinct(expected)


@pytest.mark.parametrize("images", [[], ()])
def test_refuses_no_image(encoder: RuntimeEncoder, images: Any) -> None:
    with pytest.raises(InputShapeError, match=r"^encode: expected at least one image, found none$"):
        encoder.encode(images)


def test_refuses_images_that_it_cannot_read(encoder: RuntimeEncoder, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"^{re.escape(str(tmp_path))}/no\.jpg: .*no such file; check the path$"):
        encoder.encode([smooth(8, 8), tmp_path / "no.jpg"])
    with pytest.raises(InputShapeError, match=r"^image: expected uint8 \[.*\], found float32 \[8, 8, 3\]"):
        encoder.encode([smooth(8, 8).astype(np.float32)])
    with pytest.raises(InputShapeError, match=r"found uint8 \[2, 8, 8, 3\]"):
        encoder.encode(np.zeros((2, 8, 8, 3), np.uint8))  # a batch in one array is not one image


@pytest.mark.parametrize(
    ("pixel_values", "found"),
    [
        (np.zeros((1, 3, 32, 32)), r"float64 \[1, 3, 32, 32\]"),
        (np.zeros((1, 3, 32, 32), np.uint8), r"uint8 \[1, 3, 32, 32\]"),
        (np.zeros((1, 3, 32, 32), np.float16), r"float16 \[1, 3, 32, 32\]"),
        (np.zeros((1, 3, 32, 32), ">f4"), r">f4 \[1, 3, 32, 32\]"),
        (np.zeros((3, 32, 32), np.float32), r"float32 \[3, 32, 32\]"),
        (np.zeros((1, 32, 32, 3), np.float32), r"float32 \[1, 32, 32, 3\]"),
        (np.zeros((1, 3, 32, 33), np.float32), r"float32 \[1, 3, 32, 33\]"),
        (np.zeros((1, 1, 3, 32, 32), np.float32), r"float32 \[1, 1, 3, 32, 32\]"),
        (np.float32(0), r"float32 \[\]"),
    ],
    ids=["float64", "uint8", "float16", "big endian", "no batch", "NHWC", "width", "5 axes", "scalar"],
)
def test_refuses_another_type_or_shape(encoder: RuntimeEncoder, pixel_values: Any, found: str) -> None:
    with pytest.raises(InputShapeError, match=rf"^pixel_values: expected float32 \[n, 3, 32, 32\], found {found}$"):
        encoder(pixel_values)


def test_refuses_an_empty_batch(encoder: RuntimeEncoder) -> None:
    with pytest.raises(InputShapeError, match=r"^pixel_values: expected at least one image, found none$"):
        encoder(np.zeros((0, 3, 32, 32), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_pixels_that_are_no_numbers(encoder: RuntimeEncoder, value: float) -> None:
    """Integer arithmetic turns NaN into an ordinary number: the features would look fine and mean nothing."""
    pixel_values = random_pixels(count=3)
    pixel_values[1, 2, 3, 4] = value
    with pytest.raises(
        InputShapeError, match=r"^pixel_values: expected finite numbers, found NaN or infinity in image 1"
    ):
        encoder(pixel_values)


def test_one_encoder_serves_several_threads(encoder: RuntimeEncoder) -> None:
    """As the three modules promise. Outputs of different images must not get mixed up."""
    inputs = [random_pixels(count=1 + i % 3, seed=i) for i in range(24)]
    expected = [encoder(pixel_values) for pixel_values in inputs]
    together = threading.Barrier(4)

    def work(part: int) -> list[tuple[int, dict[str, FloatArray]]]:
        together.wait()
        return [(i, encoder(inputs[i])) for _ in range(5) for i in range(part, len(inputs), 4)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, range(4)):
            for index, found in results:
                assert_equal(found, expected[index])


def test_two_encoders_in_two_threads(runtime: str, folder: Path) -> None:
    pixel_values = random_pixels(count=2)
    together = threading.Barrier(2)

    def work(_: int) -> dict[str, FloatArray]:
        together.wait()
        encoder = WRAPPERS[runtime](folder, threads=1)
        return [encoder(pixel_values) for _ in range(10)][-1]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert_equal(first, second)


def test_load_encoder_picks_the_wrapper(runtime: str, folder: Path) -> None:
    encoder = load_encoder(str(folder), threads=1)
    assert type(encoder) is WRAPPERS[runtime]
    assert encoder.manifest == load_manifest(folder)


def test_refuses_an_artifact_of_another_runtime(runtime: str, artifacts: Artifacts) -> None:
    for other, folder in artifacts.folders.items():
        if other == runtime:
            continue
        message = rf"^{re.escape(str(folder))}: expected an artifact for {runtime}, found one for {other};.*load_enc"
        with pytest.raises(ArtifactError, match=message):
            WRAPPERS[runtime](folder)


def test_refuses_a_folder_that_is_no_artifact(runtime: str, tmp_path: Path) -> None:
    for load in (WRAPPERS[runtime], load_encoder):
        with pytest.raises(ArtifactError, match=r"expected an artifact folder such as OUT/onnx, found no"):
            load(tmp_path)


def test_refuses_a_changed_file(runtime: str, copy: Path) -> None:
    """Any of its files: OpenVINO's weights lie beside its graph."""
    for record in load_manifest(copy).files:
        path = copy / record.name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        message = rf"^{re.escape(str(path))}: expected SHA-256 .* was changed or damaged, copy the artifact again$"
        with pytest.raises(ArtifactError, match=message):
            WRAPPERS[runtime](copy)
        path.write_bytes(content)
    WRAPPERS[runtime](copy)


def test_refuses_a_model_that_the_runtime_cannot_load(runtime: str, copy: Path) -> None:
    """Every hash matches, and yet it is not a model: one error of ours, not one of three toolchains'."""
    path = copy / load_manifest(copy).files[0].name
    path.write_bytes(b"not a model")

    def change(document: Any) -> None:
        document["files"][0] |= {"sha256": sha256_of(path), "size_bytes": path.stat().st_size}

    rewrite(copy, change)
    with pytest.raises(
        ArtifactError, match=rf"^{re.escape(str(copy))}: {DISTRIBUTIONS[runtime]} [\d.]+ cannot load it"
    ):
        WRAPPERS[runtime](copy)


def test_without_its_package_it_says_what_to_install(
    runtime: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.metadata.version

    def version(distribution: str) -> str:
        if distribution == DISTRIBUTIONS[runtime]:
            raise importlib.metadata.PackageNotFoundError(distribution)
        return real(distribution)

    monkeypatch.setattr(importlib.metadata, "version", version)
    message = rf"^{DISTRIBUTIONS[runtime]} is not installed; install it with: pip install 'vitedge\[{runtime}\]'$"
    with pytest.raises(RuntimeMissingError, match=message):
        WRAPPERS[runtime](folder)


def test_a_package_that_cannot_be_imported_is_missing(
    runtime: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an installation, or one for another libc: its metadata is there, its module is not."""
    monkeypatch.setitem(sys.modules, MODULES[runtime], None)
    message = rf"^{DISTRIBUTIONS[runtime]} cannot be imported \(.*\); .*pip install .*'vitedge\[{runtime}\]'$"
    with pytest.raises(RuntimeMissingError, match=message):
        WRAPPERS[runtime](folder)


def test_refuses_a_runtime_older_than_the_artifact_needs(runtime: str, copy: Path) -> None:
    rewrite(copy, lambda document: document.update(minimum_runtime="9999.1"))
    installed = importlib.metadata.version(DISTRIBUTIONS[runtime])
    message = rf"^{DISTRIBUTIONS[runtime]} {installed} is older than 9999\.1, .*pip install -U 'vitedge\[{runtime}\]'$"
    with pytest.raises(RuntimeMissingError, match=message):
        WRAPPERS[runtime](copy)
    rewrite(copy, lambda document: document.update(minimum_runtime=installed))
    WRAPPERS[runtime](copy)


def test_another_runtime_being_absent_does_not_matter(
    runtime: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in MODULES.keys() - {runtime}:
        monkeypatch.setitem(sys.modules, MODULES[other], None)
    for heavy in ("torch", "transformers", "onnx", "tensorflow", "safetensors", "PIL"):
        monkeypatch.setitem(sys.modules, heavy, None)
    assert load_encoder(folder)(random_pixels(count=1))["logits"].shape == (1, CLASSES)


@pytest.mark.parametrize(
    ("version", "minimum", "older"),
    [
        ("1.17.0", "1.17", False),
        ("1.17", "1.17.0", False),
        ("1.16.3", "1.17", True),
        ("1.9.9", "1.17", True),
        ("2.0", "1.17.5", False),
        ("2023.2.0", "2023.2", False),
        ("2023.1.0", "2023.2", True),
        ("1.17.0rc1", "1.17", False),
        ("1.17.1.dev20240101+cpu", "1.17.1", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, minimum: str, older: bool) -> None:
    assert is_older(version, minimum) is older
