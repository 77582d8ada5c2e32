"""Every vendor recipe end to end on a tiny encoder: what the files hold, what the rows and the failures say."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe

from tests.tiny import save_checkpoint, save_images
from vitedge.benchmarks import vendor_rows, vendors
from vitedge.benchmarks.machine import describe_machine
from vitedge.benchmarks.process import worker_command
from vitedge.benchmarks.vendor_recipes import (
    DEFAULT_RECIPES,
    RECIPES,
    CalibrationPixels,
    Recipe,
    export_fp32,
    known_warnings_ignored,
)
from vitedge.benchmarks.vendor_rows import FP32, Row, build_rows, judged, measured
from vitedge.calibration.images import ImageSet, batches, scan
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint
from vitedge.converters.lower import RUNTIMES
from vitedge.quantization.accuracy import Comparison
from vitedge.quantization.encoder import FloatArray
from vitedge.runtimes.errors import CheckpointError
from vitedge.runtimes.instruction_sets import X86
from vitedge.runtimes.manifest import load_manifest

CONSOLE = Console(quiet=True)
CALIBRATION_IMAGES = 4
# Of the tiny encoder: 2 layers of query, key, value, output, fc1 and fc2, and the pooler; its 4 attention MatMuls.
LINEARS, ATTENTION_MATMULS = 13, 4


@dataclass
class Counting:
    """Calibration images that count how often one was asked for."""

    pixels: CalibrationPixels
    seen: int = 0

    def __iter__(self) -> Iterator[FloatArray]:
        for found in self.pixels:
            self.seen += 1
            yield found


@dataclass(frozen=True)
class Work:
    """Every recipe, run once."""

    checkpoint: Checkpoint
    calibration: ImageSet
    evaluation: ImageSet
    rows: list[Row]
    seen: dict[str, int]

    def row(self, name: str, runtime: str | None = None) -> Row:
        (found,) = (row for row in self.rows if row.name == name and runtime in (None, row.runtime))
        return found


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    root = tmp_path_factory.mktemp("vendors")
    checkpoint = load_checkpoint(str(save_checkpoint(root / "model")))
    calibration = scan(save_images(root / "calibration", CALIBRATION_IMAGES, seed=1), None)
    evaluation = scan(save_images(root / "evaluation", 24, seed=2), None)
    seen: dict[str, int] = {}

    def counted(recipe: Recipe, start: Path, pixels: CalibrationPixels, folder: Path) -> None:
        counting = Counting(pixels)
        recipe.quantize(start, counting, folder)  # type: ignore[arg-type]
        seen[recipe.name] = counting.seen

    recipes = [replace(recipe, quantize=partial(counted, recipe)) for recipe in RECIPES]
    rows = vendor_rows.vendor_rows(checkpoint, calibration, root / "models", CONSOLE, recipes=recipes)
    rows = judged(rows, checkpoint, evaluation, CONSOLE, threads=1)
    return Work(checkpoint, calibration, evaluation, rows, seen)


# Rows


def test_every_recipe_has_a_row_behind_its_start(work: Work) -> None:
    expected = [
        (runtime, name)
        for runtime in RUNTIMES
        for name in (FP32, *(recipe.name for recipe in RECIPES if recipe.runtime == runtime))
    ]
    assert [(row.runtime, row.name) for row in work.rows] == expected
    assert [row.error for row in work.rows] == [None] * len(expected)


def test_fp32_models_compute_what_pytorch_computes(work: Work) -> None:
    starts = [row for row in work.rows if row.is_fp32]
    assert len(starts) == len(RUNTIMES)
    for row in starts:
        assert row.export_max_abs_error is not None
        assert 0 < row.export_max_abs_error < 1e-4
        assert row.accuracy is None


def test_static_recipes_calibrate_on_every_image_and_dynamic_ones_on_none(work: Work) -> None:
    for name, seen in work.seen.items():
        assert (seen == 0) if "dynamic" in name else (seen >= CALIBRATION_IMAGES), (name, seen)


def test_fidelity_is_that_of_integers(work: Work) -> None:
    """Within what 8 bits lose; a float model would be far above, a broken one far below."""
    for row in work.rows:
        if row.accuracy is not None:
            # NNCF's saturates without VNNI, to 18.6 dB on a Zen 3.
            lowest = 15 if row.name.startswith("NNCF") and describe_machine().kind == X86 else 20
            assert lowest < row.accuracy.outputs["last_hidden_state"].sqnr_db < 45, row.name
            assert row.accuracy.outputs.keys() == work.checkpoint.encoder.shape.outputs.keys()


def test_accuracy_is_what_comparison_gives(work: Work) -> None:
    """The row against ONNX Runtime itself, without our wrapper, image by image."""
    row = work.row("quantize_static, defaults")
    session = onnxruntime.InferenceSession(row.folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    reference, comparison = work.checkpoint.reference(), Comparison()
    for index, pixel_values in enumerate(batches(work.evaluation, work.checkpoint.preprocessing, 1)):
        outputs = dict(zip(names, session.run(None, {"pixel_values": pixel_values}), strict=True))
        comparison.add([f"image{index:03}.png"], reference(pixel_values), outputs)
    expected, found = comparison.result(), row.accuracy
    assert found is not None
    assert found.neighbor_agreement == expected.neighbor_agreement
    for name, output in expected.outputs.items():
        assert found.outputs[name].sqnr_db == pytest.approx(output.sqnr_db, abs=0.05)
        assert found.outputs[name].cosine_worst == pytest.approx(output.cosine_worst, abs=1e-5)
        assert found.outputs[name].worst_image == output.worst_image


def test_a_benchmark_runs_the_defaults_that_it_can_afford() -> None:
    assert [recipe.name for recipe in DEFAULT_RECIPES] == [
        "quantize_static, defaults",
        "quantize_dynamic, defaults",
        "NNCF quantize, TRANSFORMER",
        "static_wi8_ai8",
        "dynamic_wi8_afp32",
    ]


# What the files hold


def onnx_operators(row: Row) -> tuple[onnx.ModelProto, Counter[str]]:
    model = onnx.load(row.folder / "model.onnx")
    return model, Counter(node.op_type for node in model.graph.node)


def test_static_onnx_defaults_hold_int8_weights_and_quantize_attention(work: Work) -> None:
    model, operators = onnx_operators(work.row("quantize_static, defaults"))
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) >= 2]
    assert len(weights) >= LINEARS + 1  # the patch embedding's convolution
    assert quantized_attention(model) == ATTENTION_MATMULS
    assert operators["QuantizeLinear"] > 2 * LINEARS


def test_tuned_static_onnx_leaves_attention_and_outputs_float(work: Work) -> None:
    model, operators = onnx_operators(work.row("quantize_static, tuned: linears only, U8U8"))
    weights = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) >= 2]
    assert len(weights) == LINEARS + 1
    assert quantized_attention(model) == 0
    assert operators["QuantizeLinear"] == LINEARS + 1  # one for each input, none for outputs


def quantized_attention(model: onnx.ModelProto) -> int:
    """How many MatMuls of two activations read dequantized ones."""
    producers = {name: node for node in model.graph.node for name in node.output}
    quantized = {name for name, node in producers.items() if node.op_type == "QuantizeLinear"}
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in quantized}
    return sum(node.op_type == "MatMul" and set(node.input) <= dequantized for node in model.graph.node)


@pytest.mark.parametrize(
    ("name", "convolutions"),
    [("quantize_dynamic, defaults", 1), ("quantize_dynamic, tuned: MatMul, per-channel reduce_range", 0)],
)
def test_dynamic_onnx_multiplies_integers(work: Work, name: str, convolutions: int) -> None:
    model, operators = onnx_operators(work.row(name))
    assert operators["MatMulInteger"] == LINEARS
    assert operators["ConvInteger"] == convolutions
    assert operators["MatMul"] == ATTENTION_MATMULS
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    largest = max(int(np.abs(weights[n.input[1]]).max()) for n in model.graph.node if n.op_type == "MatMulInteger")
    assert largest == (127 if convolutions else 64)


def test_openvino_quantizes_every_linear(work: Work) -> None:
    model = openvino.Core().read_model(work.row("NNCF quantize, TRANSFORMER").folder / "model.xml")
    operators = Counter(node.get_type_name() for node in model.get_ops())
    int8 = [n for n in model.get_ops() if n.get_type_name() == "Constant" and n.get_element_type().to_string() == "i8"]
    assert len(int8) == LINEARS + 1
    assert operators["FakeQuantize"] >= LINEARS - 4  # query, key and value share theirs


@pytest.mark.parametrize(
    ("name", "activations"),
    [("static_wi8_ai8", np.int8), ("static_wi8_ai16", np.int16), ("dynamic_wi8_afp32", np.float32)],
)
def test_tflite_types(work: Work, name: str, activations: type[np.generic]) -> None:
    interpreter = Interpreter(str(work.row(name).folder / "model.tflite"))
    interpreter.allocate_tensors()
    tensors = {tensor["index"]: tensor for tensor in interpreter.get_tensor_details()}
    linears = [op for op in interpreter._get_ops_details() if op["op_name"] == "FULLY_CONNECTED"]
    assert len(linears) == LINEARS
    assert {tensors[op["inputs"][1]]["dtype"] for op in linears} == {np.int8}
    assert {tensors[op["inputs"][0]]["dtype"] for op in linears} == {activations}
    runner = interpreter.get_signature_runner("serving_default")
    boundary = [*runner.get_input_details().values(), *runner.get_output_details().values()]
    assert {tensor["dtype"] for tensor in boundary} == {np.float32}


def test_float_boundary_of_full_integer_tflite_changes_nothing(work: Work, tmp_path: Path) -> None:
    """The vendor's recipe as it is has int8 inputs and outputs; quantized and dequantized by hand it gives the same."""
    pixels = CalibrationPixels(work.calibration, work.checkpoint.preprocessing)
    untouched = quantizer.Quantizer(str(work.row(FP32, "tflite").folder / "model.tflite"), recipe.static_wi8_ai8())
    with known_warnings_ignored():
        statistics = untouched.calibrate({"serving_default": [{"pixel_values": found} for found in pixels]})
        result = untouched.quantize(statistics, enable_progress_report=False)
    path = tmp_path / "untouched.tflite"
    result.export_model(str(path))
    integer = Interpreter(str(path)).get_signature_runner("serving_default")
    row = Interpreter(str(work.row("static_wi8_ai8").folder / "model.tflite")).get_signature_runner("serving_default")
    pixel_values = next(iter(pixels))
    scale, zero_point = integer.get_input_details()["pixel_values"]["quantization"]
    quantized = np.clip(np.round(pixel_values / scale) + zero_point, -128, 127).astype(np.int8)
    found, expected = integer(pixel_values=quantized), row(pixel_values=pixel_values)
    for name, details in integer.get_output_details().items():
        scale, zero_point = details["quantization"]
        assert found[name].dtype == np.int8
        error = np.abs((found[name].astype(np.float32) - zero_point) * scale - expected[name])
        assert error.max() <= 1.001 * scale  # a pixel halfway between two integers may round either way


# Failures


def broken(*_: object) -> None:
    raise ValueError("no such operator [3]")


def constant_nan(start: Path, _: CalibrationPixels, folder: Path) -> None:
    """The start model with NaN in the last weight, the pooler's."""
    model = onnx.load(start / "model.onnx")
    tensor = next(t for t in model.graph.initializer if t.name.endswith("pooler.dense.weight"))
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(tensor.dims, np.nan, np.float32), tensor.name))
    onnx.save_model(model, folder / "model.onnx")


def not_a_model(_: Path, __: CalibrationPixels, folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no model")


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        (broken, "ValueError: no such operator [3]"),
        (constant_nan, "AccuracyError: pooler_output of the artifact holds NaN"),
        (not_a_model, "ArtifactError: "),
    ],
)
def test_recipe_that_fails_says_so_and_the_others_go_on(
    work: Work, tmp_path: Path, quantize: Callable[..., None], message: str
) -> None:
    recipes = [Recipe("bad", "onnx", quantize), next(r for r in RECIPES if r.name == "quantize_dynamic, defaults")]
    rows = vendor_rows.vendor_rows(
        work.checkpoint, work.calibration, tmp_path, CONSOLE, runtimes=["onnx"], recipes=recipes
    )
    _, bad, good = judged(rows, work.checkpoint, work.evaluation, CONSOLE, threads=1)
    assert (bad.accuracy, good.error) == (None, None)
    assert bad.error is not None
    assert bad.error.startswith(message)
    assert good.accuracy == work.row("quantize_dynamic, defaults").accuracy


def test_export_that_is_not_the_encoder_stops_its_recipes(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_checkpoint(str(save_checkpoint(tmp_path / "other", seed=5)))
    monkeypatch.setattr(vendor_rows, "export_fp32", lambda runtime, _, folder: export_fp32(runtime, other, folder))
    rows = vendor_rows.vendor_rows(work.checkpoint, work.calibration, tmp_path / "out", CONSOLE, runtimes=["openvino"])
    assert rows[0].error is not None
    assert "differs from PyTorch" in rows[0].error
    assert [row.error for row in rows[1:]] == ["no FP32 model to start from"]


def test_slow_recipes_see_an_even_share(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vendor_rows, "SLOW_IMAGES", 8)
    fast = replace(work.row("quantize_dynamic, defaults"), accuracy=None)
    rows = judged([fast, replace(fast, slow=True)], work.checkpoint, work.evaluation, CONSOLE, threads=1)
    assert [row.accuracy.images for row in rows if row.accuracy] == [24, 8]
    assert "(8 images)" in text(rows)


def test_latency_is_relative_to_the_vendors_fp32(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def rounds(runners: list[object], **_: object) -> list[tuple[list[float], ...]]:
        seen.append(len(runners))
        return [([8.0], [2.0, 4.0, 4.0]), ([8.0], [4.0])]

    monkeypatch.setattr(vendor_rows, "interleaved", rounds)
    failed = replace(work.row("static_wi8_ai8"), error="failed")
    rows = [work.row(FP32, "onnx"), work.row("quantize_dynamic, defaults"), failed]
    start, int8, untouched = measured(rows, CONSOLE, seconds=1)
    assert seen == [2]
    assert untouched == failed
    assert start.speedup is not None
    assert int8.speedup is not None
    assert (start.latency_median_ms, start.speedup.median) == (8.0, 1.0)
    assert (int8.latency_median_ms, int8.speedup.median, int8.speedup.rounds) == (4.0, 2.0, 2)


def test_measuring_process_that_dies_is_the_rows_error(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        vendor_rows, "worker_command", lambda folder, **options: [*worker_command(folder, **options), "--unknown"]
    )
    (row,) = measured([work.row("static_wi8_ai8")], CONSOLE, seconds=0.1)
    assert row.error is not None
    assert row.error.startswith("BenchmarkError: the measuring process ended with exit code 2")
    assert row.accuracy is not None


# The command


@pytest.fixture(scope="module")
def build(work: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished build looks like from here: an artifact of the same checkpoint and calibration."""
    root = tmp_path_factory.mktemp("build")
    shutil.copytree(work.row("quantize_dynamic, defaults").folder, root / "onnx")
    manifest = load_manifest(root / "onnx")
    replace(manifest, target="avx2", calibration={"digest": work.calibration.digest}).save(root / "onnx")
    return root


def run(work: Work, *arguments: str | Path) -> int:
    folders = ["--calibration", work.calibration.folder, "--eval", work.evaluation.folder]
    return vendors.main([str(value) for value in (work.checkpoint.origin.source, *folders, "--threads", 1, *arguments)])


def text(rows: list[Row]) -> str:
    from rich.console import Console as RichConsole

    console = RichConsole(width=200)
    with console.capture() as captured:
        console.print(vendors.table(rows, "title"))
    return captured.get()


def test_command_puts_builds_beside_vendors(
    work: Work, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [recipe for recipe in RECIPES if recipe.name == "quantize_dynamic, defaults"]
    monkeypatch.setattr(vendors, "vendor_rows", partial(vendor_rows.vendor_rows, recipes=recipes))
    report = tmp_path / "report.json"
    code = run(work, "--runtime", "onnx", "--build", build, "--json", report, "--bench-seconds", "0.5")
    assert code == 0
    document: dict[str, Any] = json.loads(report.read_text())
    assert document["format"] == vendors.FORMAT
    assert document["calibration"] == {"digest": work.calibration.digest, "images": CALIBRATION_IMAGES}
    assert document["evaluation"]["images"] == 24
    name = f"vitedge avx2 ({build.name})"
    assert [row["name"] for row in document["rows"]] == [FP32, "quantize_dynamic, defaults", name]
    for row in document["rows"]:
        assert row["error"] is None
        assert row["latency_median_ms"] > 0
        assert row["speedup"]["rounds"] >= 6
    ours = document["rows"][2]
    assert ours["size_bytes"] == load_manifest(build / "onnx").size_bytes
    hidden = ours["accuracy"]["outputs"]["last_hidden_state"]
    shown, progress = capsys.readouterr()
    assert "calibrated on other images" not in progress
    assert f"{hidden['sqnr_db']:.1f}" in shown
    assert f"{hidden['cosine_p01']:.4f}" in shown
    assert name in shown
    assert "instruction sets: " in shown


def test_command_fails_when_a_recipe_does(
    work: Work, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = [Recipe("bad", "onnx", broken)]
    monkeypatch.setattr(vendors, "vendor_rows", partial(vendor_rows.vendor_rows, recipes=recipes))
    assert run(work, "--runtime", "onnx", "--bench-seconds", "0") == 1
    shown = capsys.readouterr().out
    assert "bad: failed, see below" in shown
    assert "onnx, bad: ValueError: no such operator [3]" in shown


def test_command_refuses_wrong_input(
    work: Work, build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(work, "--eval", work.calibration.folder) == 2
    assert "evaluation images are calibration images too" in capsys.readouterr().err
    assert run(work, "--build", tmp_path) == 2
    assert "expected an artifact such as OUT/onnx" in capsys.readouterr().err
    monkeypatch.setattr(vendors, "installed_version", lambda name: None if name == "nncf" else "1")
    assert run(work) == 2
    assert "nncf: not installed; install with: pip install 'vitedge[vendors]'" in capsys.readouterr().err
    for option, value in (("--runtime", "onnx,coreml"), ("--eval-images", "0")):
        with pytest.raises(SystemExit) as stopped:
            run(work, option, value)
        assert stopped.value.code == 2


def test_build_of_another_checkpoint_is_refused(work: Work, build: Path, tmp_path: Path) -> None:
    other = load_checkpoint(str(save_checkpoint(tmp_path / "other", seed=5)))
    with pytest.raises(CheckpointError, match="was built from a checkpoint with digest"):
        build_rows(build, other)
    assert build_rows(build, work.checkpoint, ["tflite"]) == []


def test_calibration_pixels_are_read_when_asked_for(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitedge.calibration import images

    read: list[Path] = []
    monkeypatch.setattr(images, "read_image", lambda path: read.append(path) or np.zeros((40, 40, 3), np.uint8))
    pixels = CalibrationPixels(work.calibration, work.checkpoint.preprocessing)
    first = iter(pixels)
    assert (next(first).shape, len(read)) == ((1, 3, 32, 32), 1)
    assert (sum(len(found) for found in pixels), len(read)) == (CALIBRATION_IMAGES, CALIBRATION_IMAGES + 1)


def test_unknown_warnings_pass() -> None:
    import warnings

    with known_warnings_ignored():
        warnings.warn("`torch.jit.trace` is deprecated. Please switch", DeprecationWarning, stacklevel=1)
        with pytest.raises(UserWarning, match="something new"):
            warnings.warn("something new", UserWarning, stacklevel=1)
