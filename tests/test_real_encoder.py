"""The numbers of the README's table: a real pretrained encoder, real photographs, all 400 of them.

Two minutes; accuracy and size only, as speed is measured by `vitedge bench`. The floors are the project's promise, the
ceilings catch an improvement that nobody can explain.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter as LiteRtInterpreter
from typer.testing import CliRunner

from tests.tiny import PHOTOGRAPHS, REAL_ENCODER, needs_shared
from vitedge.calibration.images import batches, scan
from vitedge.cli import app
from vitedge.converters.checkpoint import load_checkpoint
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import load_plan
from vitedge.quantization.quantize import apply_rewrites
from vitedge.runtimes.instruction_sets import KINDS
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest

# SQNR of last_hidden_state in dB, mean and worst cosine of the class token.
FLOORS = {"onnx": (31.0, 0.9995, 0.996), "openvino": (30.0, 0.9994, 0.993), "tflite": (33.5, 0.9997, 0.997)}
CEILING_ABOVE_FLOOR_DB = 4.0


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real") / "out"
    arguments = ["build", REAL_ENCODER, "--images", PHOTOGRAPHS / "calibration", "--eval", PHOTOGRAPHS / "evaluation"]
    arguments += ["--out", out, "--bench-seconds", "0", "--keep-fp32", "--min-cosine", "0.997"]
    cache = {"VITEDGE_CACHE": str(tmp_path_factory.mktemp("cache"))}
    result = CliRunner(env=cache).invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return out


@needs_shared
@pytest.mark.parametrize("runtime", FLOORS)
def test_real_encoder_keeps_its_floors(built: Path, runtime: str) -> None:
    report = json.loads((built / "report.json").read_text())
    assert (report["calibration"]["images"], report["evaluation"]["images"]) == (100, 400)
    found = report["accuracy"][runtime]["outputs"]["last_hidden_state"]
    sqnr_db, mean, worst = FLOORS[runtime]
    assert sqnr_db <= found["sqnr_db"] <= sqnr_db + CEILING_ABOVE_FLOOR_DB
    assert found["cosine_mean"] >= mean
    assert found["cosine_worst"] >= worst
    assert report["export_max_abs_error"][runtime] <= 1e-3
    sizes = [load_manifest(folder / runtime).size_bytes for folder in (built, built / "fp32")]
    assert sizes[0] <= 0.28 * sizes[1]
    assert load_manifest(built / runtime).operations.integer_share > 0.9


@needs_shared
def test_float_rewrites_change_nothing(built: Path) -> None:
    """Centering and smoothing, with this encoder's outlier channels: to 1e-4, of outputs up to 12."""
    checkpoint = load_checkpoint(str(REAL_ENCODER))
    rewritten = apply_rewrites(checkpoint.encoder, load_plan(built))
    assert any((rewritten.tensors[name] != tensor).any() for name, tensor in checkpoint.encoder.tensors.items())
    pixels = next(batches(scan(PHOTOGRAPHS / "evaluation", 4), checkpoint.preprocessing, 4))
    expected, found = (
        forward(encoder, pixels, float_linear(encoder))["last_hidden_state"]
        for encoder in (checkpoint.encoder, rewritten)
    )
    assert np.abs(found - expected).max() < 1e-4


@needs_shared
@pytest.mark.parametrize("runtime", FLOORS)
def test_fake_quantization_predicts_each_artifact(built: Path, runtime: str) -> None:
    """To 0.5 dB: a larger difference is a bug in a lowering.

    A value that rounds the other way in one of the two arithmetics is amplified by the layers behind it, so that one
    image's error differs by 1 dB (standard deviation) where nothing is wrong: 24 images let chance reach 0.6 dB, the
    mean over 96 keeps it near 0.1.
    """
    checkpoint, plan = load_checkpoint(str(REAL_ENCODER)), load_plan(built)
    smoothed, encoder = apply_rewrites(checkpoint.encoder, plan), load_encoder(built / runtime)
    linear = fake_quantized_linear(smoothed, plan.linears(runtime))
    differences_db: list[float] = []
    for pixels in batches(scan(PHOTOGRAPHS / "evaluation", 96), checkpoint.preprocessing, 16):
        expected = checkpoint.reference()(pixels)["last_hidden_state"]
        predicted = forward(smoothed, pixels, linear)["last_hidden_state"]
        noise = [
            np.square(output - expected).sum(axis=(1, 2))
            for output in (predicted, encoder(pixels)["last_hidden_state"])
        ]
        differences_db.extend(10 * np.log10(noise[0] / noise[1]))
    assert abs(np.mean(differences_db)) < 0.5


@needs_shared
def test_avx2_artifacts_are_proven_safe_with_all_eight_bits(built: Path) -> None:
    for runtime in ("onnx", "openvino"):
        manifest = load_manifest(built / runtime)
        assert manifest.saturation.proven_safe
        assert manifest.instruction_sets == KINDS
    largest = {name: np.abs(linear.weight.values).max() for name, linear in load_plan(built).linears("onnx").items()}
    assert largest.pop("patch_embedding") <= 64
    assert min(largest.values()) > 64


@needs_shared
@pytest.mark.filterwarnings(r"ignore:[\s\S]*tf.lite.Interpreter is deprecated:UserWarning")  # in favor of LiteRT
def test_tensorflows_own_interpreter_gives_the_same(built: Path) -> None:
    """Kernels differ between the two packages' versions of XNNPACK at most in how they round sums."""
    import tensorflow as tf

    images = scan(PHOTOGRAPHS / "evaluation", 4)
    pixels = next(batches(images, load_manifest(built / "tflite").preprocessing, 4)).transpose(0, 2, 3, 1)
    model = str(built / "tflite" / "model.tflite")
    outputs = []
    for interpreter in (tf.lite.Interpreter(model), LiteRtInterpreter(model)):
        runner = interpreter.get_signature_runner("serving_default")
        outputs.append(np.concatenate([runner(pixel_values=image[None])["last_hidden_state"] for image in pixels]))
    noise = np.square(outputs[0] - outputs[1]).sum()
    assert 10 * np.log10(np.square(outputs[0]).sum() / max(noise, 1e-30)) > 40
