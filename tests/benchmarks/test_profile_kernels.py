"""Which kernels run, by the runtimes' own profiles, and that a fallback shows in them.

OpenVINO's kernels depend on the CPU: each profile that asserts some runs in a process where oneDNN is held to the
instructions that it is about.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from tests.tiny import REAL_ENCODER, needs_shared, planned, save_checkpoint
from vitedge.benchmarks.machine import describe_machine
from vitedge.benchmarks.profile import Profile, profile
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint
from vitedge.converters.lower import lower
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import Plan
from vitedge.quantization.recipe import TARGETS, Recipe
from vitedge.runtimes.file_records import FileRecord
from vitedge.runtimes.manifest import load_manifest

FLAGS = set(describe_machine().isa_flags)
needs_avx2 = pytest.mark.skipif("avx2" not in FLAGS, reason="this CPU has no AVX2")
needs_vnni = pytest.mark.skipif("avx512_vnni" not in FLAGS, reason="this CPU has no AVX-512 VNNI")
LAYERS, CLASSES = 2, 3


class Site:
    """A plan of one checkpoint for a target, and its artifacts."""

    def __init__(self, checkpoint: Checkpoint, target: str, recipes: Mapping[str, Recipe] | None = None) -> None:
        self.checkpoint = checkpoint
        self.plan: Plan
        self.smoothed: Encoder
        self.plan, self.smoothed = planned(checkpoint, target, recipes=recipes)

    def lowered(self, folder: Path, runtime: str, *, floating: tuple[str, ...] = (), portable: bool = False) -> Path:
        """An artifact whose manifest calls all linears integer; those that end in one of `floating` are not."""
        linears = self.plan.linears(runtime)
        kept = {name: linear for name, linear in linears.items() if not name.endswith(floating or ("nothing",))}
        arguments: dict[str, Any] = {"checkpoint": self.checkpoint, "plan": self.plan, "batch": None}
        arguments |= {"encoder": self.smoothed, "calibration": {}, "portable": portable}
        manifest = lower(runtime, folder, linears=kept, **arguments)
        replace(manifest, operations=replace(manifest.operations, integer=tuple(linears))).save(folder)
        return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(str(save_checkpoint(tmp_path_factory.mktemp("model"), classes=CLASSES)))


@pytest.fixture(scope="module")
def avx2(checkpoint: Checkpoint) -> Site:
    return Site(checkpoint, "avx2")


@pytest.fixture(scope="module")
def vnni(checkpoint: Checkpoint) -> Site:
    return Site(checkpoint, "vnni")


def kinds(found: Profile) -> Counter[str]:
    return Counter(node.kind for node in found.nodes)


def held_to(isa: str, folder: Path) -> Any:
    """The profile of an artifact in a process where oneDNN uses these instructions at most."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    command = [sys.executable, "-m", "vitedge", "inspect", str(folder), "--profile", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(result.stdout)["artifacts"][0]["profile"]


def products(document: Any) -> Counter[tuple[str, str]]:
    return Counter((node["kind"], node["kernel"]) for node in document["nodes"] if node["linear"] is not None)


def test_onnx_runs_every_linear_in_one_integer_kernel(avx2: Site, tmp_path: Path) -> None:
    found = profile(avx2.lowered(tmp_path / "onnx", "onnx"), threads=1)
    shape = avx2.checkpoint.encoder.shape
    integer = {node.linear: node.kind for node in found.nodes if node.role == "integer"}
    assert integer == dict.fromkeys(shape.linears, "MatMulIntegerToFloat")
    assert (found.fallbacks, found.warnings) == ((), ())
    floating = [node.name for node in found.nodes if node.kind in ("MatMul", "Gemm", "FusedMatMul")]
    attention = [f"layers.{layer}.attention.{part}" for layer in range(LAYERS) for part in ("scores", "context")]
    assert sorted(floating) == sorted(attention)


def test_onnx_fuses_what_it_can(avx2: Site, tmp_path: Path) -> None:
    found = kinds(profile(avx2.lowered(tmp_path / "onnx", "onnx"), threads=1))
    assert (found["Gelu"], found["Softmax"], found["LayerNormalization"]) == (LAYERS, LAYERS, 2 * LAYERS + 1)
    assert found["QuantizeLinear"] == found["MatMulIntegerToFloat"] == 4 * LAYERS + 2
    assert not {"DequantizeLinear", "Cast", "Erf", "Pow", "ReduceMean", "MatMulInteger"} & set(found)


def test_portable_onnx_pays_for_its_standard_operators(avx2: Site, tmp_path: Path) -> None:
    found = profile(avx2.lowered(tmp_path / "onnx", "onnx", portable=True), threads=1)
    linears = 4 * LAYERS + 2
    assert found.fallbacks == ()
    assert Counter(node.kind for node in found.nodes if node.role == "integer") == {"MatMulInteger": linears}
    conversions = Counter(node.kind for node in found.nodes if node.role == "conversion")
    assert (conversions["Cast"], conversions["QuantizeLinear"]) == (linears, linears)


def test_onnx_linear_that_stayed_float_is_a_fallback(avx2: Site, tmp_path: Path) -> None:
    found = profile(avx2.lowered(tmp_path / "onnx", "onnx", floating=("mlp.fc1", "classifier")), threads=1)
    assert {fallback.linear for fallback in found.fallbacks} == {"layers.0.mlp.fc1", "layers.1.mlp.fc1", "classifier"}
    assert found.fallbacks[0].ran_in == "float MatMul"
    assert "float MatMul: layers.*.mlp.fc1 (2)" in found.warnings[0]


def test_times_of_onnx_are_of_warm_runs_and_fit_the_latency(avx2: Site, tmp_path: Path) -> None:
    found = profile(avx2.lowered(tmp_path / "onnx", "onnx"), threads=1)
    assert found.runs == 10
    assert found.operators_ms is not None
    assert 0 < found.operators_ms < found.latency_ms * 1.5
    assert sum(group.share or 0 for group in found.groups) == pytest.approx(1)


@needs_avx2
def test_openvino_for_avx2_runs_the_fast_convolutions(avx2: Site, tmp_path: Path) -> None:
    """Width and hidden size are multiples of 16, which this kernel needs."""
    found = held_to("AVX2", avx2.lowered(tmp_path / "openvino", "openvino"))
    assert products(found) == {("Convolution", "jit_avx2_1x1_I8"): 6 * LAYERS + 1, ("Convolution", "jit_avx2_I8"): 1}
    assert (found["fallbacks"], found["warnings"]) == ([], [])


@needs_avx2
def test_openvino_matmuls_are_slow_without_vnni_and_told(vnni: Site, tmp_path: Path) -> None:
    found = held_to("AVX2", vnni.lowered(tmp_path / "openvino", "openvino"))
    linears = set(vnni.checkpoint.encoder.shape.linears) - {"patch_embedding"}
    assert {fallback["linear"] for fallback in found["fallbacks"]} == linears
    assert "slow FullyConnected jit_gemm_" in found["warnings"][0]


@needs_vnni
def test_openvino_for_vnni_runs_integer_matmuls(vnni: Site, tmp_path: Path) -> None:
    found = held_to("AVX512_CORE_VNNI", vnni.lowered(tmp_path / "openvino", "openvino"))
    kernels = products(found)
    assert kernels.pop(("Convolution", "brgconv_avx512_I8")) == 1
    assert sum(kernels.values()) == 6 * LAYERS + 1
    assert {(kind, kernel.lower()) for kind, kernel in kernels} == {("FullyConnected", "brgemm_avx512_i8")}
    assert found["fallbacks"] == []


@needs_vnni
def test_openvino_for_vnni_fuses_attention_around_an_integer_product(
    checkpoint: Checkpoint, vnni: Site, tmp_path: Path
) -> None:
    """The plugin's subgraphs of attention are compiled for integers; with float scores none is."""
    recipe = replace(TARGETS["vnni"]["openvino"], scores="float")
    counts = {}
    for name, site in (("int8", vnni), ("float", Site(checkpoint, "vnni", {"openvino": recipe}))):
        found = held_to("AVX512_CORE_VNNI", site.lowered(tmp_path / name, "openvino"))
        kernels = Counter((node["kind"], node["kernel"]) for node in found["nodes"])
        counts[name] = kernels["Subgraph", "jit_avx512_i8"]
    assert counts == {"int8": LAYERS, "float": 0}


@needs_avx2
def test_openvino_layout_changes_are_counted(avx2: Site, vnni: Site, tmp_path: Path) -> None:
    """Convolutions need tokens in a layout of their own; MatMuls do not."""
    counts = {}
    for name, site in (("convolutions", avx2), ("matmuls", vnni)):
        found = Counter(node["kind"] for node in held_to("AVX2", site.lowered(tmp_path / name, "openvino"))["nodes"])
        counts[name] = (found["Transpose"], found["Reorder"], found["Convert"])
    assert counts == {"convolutions": (9 * LAYERS + 1, 9 * LAYERS + 2, 0), "matmuls": (4 * LAYERS + 1, 2, 0)}


def test_openvino_linears_that_stayed_float_are_fallbacks(avx2: Site, tmp_path: Path) -> None:
    floating = ("attention.qkv", "patch_embedding")
    found = profile(avx2.lowered(tmp_path / "openvino", "openvino", floating=floating), threads=1)
    missing = {fallback.linear: fallback.ran_in for fallback in found.fallbacks}
    assert set(missing) == {"layers.0.attention.qkv", "layers.1.attention.qkv", "patch_embedding"}
    assert missing["patch_embedding"].startswith("float Convolution ")
    assert missing["layers.0.attention.qkv"] == "not found by name"  # float MatMuls have no names


def test_tflite_runs_in_one_partition(avx2: Site, tmp_path: Path) -> None:
    found = profile(avx2.lowered(tmp_path / "tflite", "tflite"), threads=1)
    assert found.partitions == 1
    assert {node.kernel for node in found.nodes} == {"XNNPACK"}
    assert {node.linear for node in found.nodes if node.role == "integer"} == set(avx2.checkpoint.encoder.shape.linears)
    assert found.operators_ms is None
    assert found.warnings == ()


def test_tflite_graph_in_pieces_is_told(avx2: Site, tmp_path: Path) -> None:
    """The same artifact with an operator that XNNPACK does not have in place of GELU."""
    folder = avx2.lowered(tmp_path / "tflite", "tflite")
    without_gelu(folder)
    found = profile(folder, threads=1)
    assert found.partitions == LAYERS + 1
    assert found.warnings == (
        f"{LAYERS + 1} XNNPACK partitions, expected one: tensors are copied between them",
        f"{LAYERS} of {len(found.nodes)} nodes are not in XNNPACK: LOG_SOFTMAX ({LAYERS})",
    )
    assert found.fallbacks == ()


def test_tflite_linear_that_stayed_float_is_a_fallback(avx2: Site, tmp_path: Path) -> None:
    found = profile(avx2.lowered(tmp_path / "tflite", "tflite", floating=("mlp.fc2",)), threads=1)
    assert [fallback.ran_in for fallback in found.fallbacks] == ["float FULLY_CONNECTED XNNPACK"] * LAYERS


@needs_shared
@needs_avx2
def test_real_widths_run_in_the_same_kernels(tmp_path: Path) -> None:
    """The first two layers of the real encoder; 384 wide, 257 tokens."""
    whole = load_checkpoint(str(REAL_ENCODER))
    shape = replace(whole.encoder.shape, layers=LAYERS)
    tensors = {name: whole.encoder.tensors[name] for name in shape.tensor_shapes}
    real = Site(replace(whole, encoder=Encoder(shape, tensors)), "avx2")
    linears = 4 * LAYERS
    found = profile(real.lowered(tmp_path / "onnx", "onnx"), threads=1)
    assert found.warnings == ()
    assert kinds(found)["MatMulIntegerToFloat"] == linears + 1
    assert kinds(found)["MatMul"] == 2 * LAYERS
    convolutions = held_to("AVX2", real.lowered(tmp_path / "openvino", "openvino"))
    assert convolutions["warnings"] == []
    kernels = {("Convolution", "jit_avx2_1x1_I8"): 6 * LAYERS, ("Convolution", "jit_avx2_I8"): 1}
    assert products(convolutions) == kernels
    assert 0.3 < convolutions["integer_time_share"] < convolutions["integer_macs_share"]
    found = profile(real.lowered(tmp_path / "tflite", "tflite"), threads=1)
    assert (found.partitions, found.warnings) == (1, ())


def without_gelu(folder: Path) -> None:
    manifest = load_manifest(folder)
    path = folder / manifest.files[0].name
    model = flatbuffer_utils.read_model(str(path))
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == schema.BuiltinOperator.GELU:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LOG_SOFTMAX
            code.version = 1
            for operator in model.subgraphs[0].operators:
                if operator.opcodeIndex == index:
                    operator.builtinOptions, operator.builtinOptionsType = None, 0
    flatbuffer_utils.write_model(model, str(path))
    replace(manifest, files=(FileRecord.of(path),)).save(folder)
