"""That ONNX Runtime is asked for kernels which cannot saturate where it would, and only there: they are slower."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.tiny import planned, random_pixels, save_checkpoint
from vitedge.benchmarks.machine import describe_machine
from vitedge.converters.checkpoint import load_checkpoint
from vitedge.converters.lower import lower
from vitedge.quantization.recipe import TARGETS
from vitedge.runtimes import onnx as wrapper
from vitedge.runtimes.instruction_sets import X86
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.onnx import OnnxEncoder


@pytest.fixture(scope="module", params=["vnni", "avx2"])
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the target vnni, which can saturate, and of avx2, which cannot."""
    folder = tmp_path_factory.mktemp("kernels")
    checkpoint = load_checkpoint(str(save_checkpoint(folder / "checkpoint")))
    plan, smoothed = planned(checkpoint, request.param, recipes={"onnx": TARGETS[request.param]["onnx"]})
    lower(
        "onnx",
        folder / "onnx",
        encoder=smoothed,
        linears=plan.linears("onnx"),
        checkpoint=checkpoint,
        plan=plan,
        batch=None,
        calibration={},
    )
    return folder / "onnx"


def weight_types(model: Path) -> set[int]:
    """Types of the weights that integer products take."""
    graph = onnx.load(model).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    return {types[node.input[1]] for node in graph.node if node.op_type == "MatMulIntegerToFloat"}


@pytest.mark.skipif("avx2" not in describe_machine().isa_flags, reason="this CPU has no AVX2")
@pytest.mark.parametrize("saturates", [True, False])
def test_slower_kernels_where_it_would_saturate(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool
) -> None:
    """What the optimizer makes of the model: unsigned weights mean kernels for uint8 times uint8."""
    options = OnnxEncoder._options

    def kept(self: OnnxEncoder, threads: int | None) -> object:
        found = options(self, threads)
        found.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        return found

    monkeypatch.setattr(wrapper, "saturates_here", lambda: saturates)
    monkeypatch.setattr(OnnxEncoder, "_options", kept)
    OnnxEncoder(artifact, threads=1)
    unsafe = load_manifest(artifact).target == "vnni"
    signed, unsigned = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
    assert weight_types(tmp_path / "optimized.onnx") == {unsigned if saturates and unsafe else signed}


def test_slower_kernels_differ_only_where_the_others_saturate(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    differ = wrapper.saturates_here() and load_manifest(artifact).target == "vnni"
    pixels = random_pixels(load_checkpoint(str(artifact.parent / "checkpoint")).encoder.shape, count=2)
    found = []
    for saturates in (False, True):
        monkeypatch.setattr(wrapper, "saturates_here", lambda answer=saturates: answer)
        found.append(OnnxEncoder(artifact, threads=1)(pixels)["last_hidden_state"])
    assert (np.abs(found[0] - found[1]).max() > 1e-4) == differ


def test_the_product_that_is_asked_for() -> None:
    model = onnx.load_from_string(wrapper._PRODUCT)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    types = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32]
    assert wrapper.saturates_here() == (describe_machine().kind == X86)
