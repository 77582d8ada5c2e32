"""`vitedge build --input uint8`: artifacts that take pixels as they are."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter

from tests.commands.conftest import Site, report_of
from tests.tiny import sqnr_db
from vitedge.converters.tflite_file import count_operators
from vitedge.runtimes.errors import InputShapeError
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest

RUNTIMES = ("onnx", "openvino", "tflite")


@pytest.fixture(scope="module")
def pixels_in(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("uint8") / "out"
    result = site.build(out, "--input", "uint8", "--keep-fp32", "--bench-seconds", "0.2")
    assert result.exit_code == 0, result.output
    return out


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float_twin_is_the_checkpoint_and_integers_are_as_good(
    site: Site, built: Path, pixels_in: Path, runtime: str
) -> None:
    assert report_of(pixels_in)["export_max_abs_error"][runtime] < 1e-3
    images = sorted(site.evaluation.rglob("*.png"))[:12]
    exact = load_encoder(built / "fp32" / runtime).encode(images)["last_hidden_state"]
    of_floats, of_pixels = (
        load_encoder(out / runtime).encode(images)["last_hidden_state"] for out in (built, pixels_in)
    )
    assert sqnr_db(exact, of_pixels) > sqnr_db(exact, of_floats) - 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_manifest_and_wrapper_agree_on_what_comes_in(pixels_in: Path, runtime: str) -> None:
    record = load_manifest(pixels_in / runtime).inputs[0]
    assert (record.dtype, record.layout, record.shape[1:], record.scale) == ("uint8", "NHWC", (32, 32, 3), None)
    encoder = load_encoder(pixels_in / runtime)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(encoder(image[None])["logits"], encoder.encode(image)["logits"])
    with pytest.raises(InputShapeError, match=r"expected uint8 \[n, 32, 32, 3\], found float32 \[1, 3, 32, 32\]"):
        encoder(np.zeros((1, 3, 32, 32), np.float32))


def test_pixels_are_multiplied_as_they_are(pixels_in: Path) -> None:
    graph = onnx.load(pixels_in / "onnx" / "model.onnx").graph
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    producers = {output: node for node in graph.node for output in node.output}
    node = next(node for node in graph.node if "patch_embedding.weight" in node.input)
    assert node.op_type == "MatMulIntegerToFloat"
    path = []
    while node.input[0] in producers:
        node = producers[node.input[0]]
        path.append(node.op_type)
    assert path == ["Reshape", "Transpose", "Reshape"]
    scale = next(tensor for tensor in graph.initializer if tensor.name == "patch_embedding.input_scale")
    assert onnx.numpy_helper.to_array(scale) == 1


def test_tflite_reads_pixels_within_its_partition(pixels_in: Path) -> None:
    assert count_operators(pixels_in / "tflite" / "model.tflite")["DEQUANTIZE"] == 1
    interpreter = Interpreter(str(pixels_in / "tflite" / "model.tflite"))
    interpreter.allocate_tensors()
    (partition,) = (op for op in interpreter._get_ops_details() if op["op_name"] == "DELEGATE")
    assert interpreter.get_input_details()[0]["index"] in partition["inputs"]


def test_verify_and_bench_feed_pixels(site: Site, pixels_in: Path) -> None:
    result = site.vitedge("verify", pixels_in, "--eval", site.evaluation, "--min-sqnr", "15")
    assert result.exit_code == 0, result.output
    assert load_manifest(pixels_in / "onnx").latency is not None
    assert "then as it is" in site.vitedge("inspect", pixels_in / "onnx").output


def test_artifacts_that_take_different_pixels_are_not_verified_together(
    site: Site, built: Path, pixels_in: Path, tmp_path: Path
) -> None:
    shutil.copytree(built / "onnx", tmp_path / "onnx")
    shutil.copytree(pixels_in / "tflite", tmp_path / "tflite")
    result = site.vitedge("verify", tmp_path, "--eval", site.evaluation)
    assert result.exit_code == 2
    assert "are not of one build; verify them apart" in " ".join(result.stderr.split())


def test_npu_has_integers_of_its_own(site: Site, tmp_path: Path) -> None:
    result = site.build(tmp_path / "out", "--input", "uint8", "--target", "npu")
    assert result.exit_code == 2
    assert "--input uint8 is for CPU targets; for --target npu there is --integer-io" in " ".join(result.stderr.split())
