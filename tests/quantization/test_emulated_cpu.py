"""The saturation certificate against reality: kernels of ONNX Runtime and OpenVINO on a CPU with AVX2 and no VNNI.

The CPU is emulated (qemu in user mode, a Haswell), so that it is the same on every machine; where qemu is missing, a
machine that has no VNNI itself will do. Scales are 1, so that a linear's float output is its integer accumulator.
"""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from openvino import opset13 as ops

from tests.tiny import SHAPE
from vitedge.benchmarks.machine import describe_machine
from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.recipe import WEIGHT_FORMATS
from vitedge.quantization.rounding import factorize, round_weights
from vitedge.quantization.saturation import Pairing, certify, pairings

CHILD = Path(__file__).parents[1] / "emulated_cpu.py"
OUTPUTS, ZERO_POINT = 24, 3
# Each kernel that an artifact uses, by name: the linear that it computes, and the runtime.
KERNELS: Mapping[str, tuple[str, str]] = {
    "onnx": ("layers.0.attention.qkv", "onnx"),
    "onnx_one_row": ("layers.0.attention.qkv", "onnx"),
    "onnx_patches": ("patch_embedding", "onnx"),
    "openvino_matmul": ("layers.0.attention.qkv", "openvino"),
    "openvino_convolution": ("layers.0.attention.qkv", "openvino"),
    "openvino_patches": ("patch_embedding", "openvino"),
}
# OpenVINO pairs the patch embedding's inputs otherwise, which is why its weights are kept to 7 bits.
ADJACENT = tuple(kernel for kernel in KERNELS if kernel != "openvino_patches")
Integers = NDArray[np.int32]


def write_onnx(path: Path, values: NDArray[np.int8]) -> None:
    """The nodes of an ONNX artifact's linear."""
    constants = {
        "scale": np.float32(1),
        "zero_point": np.uint8(ZERO_POINT),
        "weight": np.ascontiguousarray(values.T),
        "weight_scale": np.ones(OUTPUTS, np.float32),
        "weight_zero_point": np.zeros(OUTPUTS, np.int8),
        "bias": np.zeros(OUTPUTS, np.float32),
    }
    linear = ["q", "weight", "scale", "weight_scale", "zero_point", "weight_zero_point", "bias"]
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"]),
            helper.make_node("MatMulIntegerToFloat", linear, ["y"], domain="com.microsoft"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", values.shape[1]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", OUTPUTS])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path.with_suffix(".onnx"))


def write_openvino(path: Path, kind: str, values: NDArray[np.int8], dims: tuple[int, ...]) -> None:
    """The nodes of an OpenVINO artifact's linear: FakeQuantize, then MatMul or convolution, then the bias."""

    def constant(value: Any) -> Any:
        return ops.constant(np.asarray(value, order="C"))

    def dequantized(filters: NDArray[np.int8]) -> Any:
        scale = np.ones((OUTPUTS, *(1,) * (filters.ndim - 1)), np.float32)
        return ops.multiply(ops.convert(constant(filters), "f32"), constant(scale))

    x = ops.parameter(dims, np.float32, name="x")
    low, high = constant(np.float32(-ZERO_POINT)), constant(np.float32(255 - ZERO_POINT))
    if kind == "openvino_matmul":
        product = ops.matmul(ops.fake_quantize(x, low, high, low, high, 256), dequantized(values), False, True)
        y = ops.add(product, constant(np.zeros(OUTPUTS, np.float32)))
    else:
        channels_first = ops.transpose(x, constant(np.array([0, 3, 1, 2]))) if kind == "openvino_convolution" else x
        filters = values.reshape(OUTPUTS, *((-1, 1, 1) if kind == "openvino_convolution" else dims[1:]))
        quantized = ops.fake_quantize(channels_first, low, high, low, high, 256)
        stride = list(filters.shape[2:])
        y = ops.convolution(quantized, dequantized(filters), stride, [0, 0], [0, 0], [1, 1])
        y = ops.add(y, constant(np.zeros((1, OUTPUTS, 1, 1), np.float32)))
        y = ops.transpose(y, constant(np.array([0, 2, 3, 1])))
    openvino.save_model(openvino.Model([ops.result(y)], [x], "linear"), path.with_suffix(".xml"), False)


def input_dims(kernel: str, rows: int, width: int) -> tuple[int, ...]:
    if kernel == "openvino_patches":
        return rows, SHAPE.channels, SHAPE.patch_height, SHAPE.patch_width
    return {"openvino_matmul": (1, rows, width), "openvino_convolution": (1, rows, 1, width)}.get(kernel, (rows, width))


def columns(kernel: str) -> int:
    return int(SHAPE.tensor_shapes[f"{KERNELS[kernel][0]}.weight"][1])


def weights(kernel: str, kind: str) -> NDArray[np.int8]:
    """Full-range weights; weights with wide values in them that are safe in every pair of this kernel; or rounded ones:
    what becomes of wide float weights in the format for CPUs without VNNI.
    """
    generator = np.random.default_rng(len(kernel))
    if kind == "rounded":
        return rounded(generator.standard_t(4, (OUTPUTS, columns(kernel))).astype(np.float32))
    values = generator.integers(-128, 128, (OUTPUTS, columns(kernel))).astype(np.int8)
    if kind == "safe":
        first, second = pairing(kernel).T
        room = 128 - np.abs(values[:, first].astype(int))
        wide = np.abs(values[:, first].astype(int) + values[:, second]) > 128
        values[:, second] = np.where(wide, np.sign(values[:, second]) * room, values[:, second])
    return values


def rounded(weight: FloatArray) -> NDArray[np.int8]:
    """Integers that a plan would hold: pair-safe for adjacent inputs, by the statistics of correlated ones."""
    x = np.random.default_rng(2).standard_normal((2 * weight.shape[1], weight.shape[1])).astype(np.float32)
    x[:, 1::2] += x[:, ::2]
    statistics = InputStatistics(x.min(0), x.max(0), x.mean(0), np.cov(x.T, bias=True).astype(np.float32))
    formats = {"int8-pair-safe": WEIGHT_FORMATS["int8-pair-safe"]}
    return round_weights(weight, np.zeros(OUTPUTS, np.float32), factorize(statistics), formats)["int8-pair-safe"].values


def pairing(kernel: str) -> Pairing:
    linear, runtime = KERNELS[kernel]
    (only,) = pairings(linear, SHAPE, runtime)
    return only


def bytes_of_inputs(kernel: str) -> Integers:
    """One row per pair, 255 at its two inputs and 0 elsewhere; then all 255, and noise."""
    pairs = pairing(kernel)
    rows = np.zeros((len(pairs), columns(kernel)), np.int32)
    rows[np.arange(len(pairs))[:, None], pairs] = 255
    noise = np.random.default_rng(1).integers(0, 256, (8, columns(kernel)))
    every = np.concatenate([rows, np.full((1, columns(kernel)), 255), noise]).astype(np.int32)
    return every[len(rows) : len(rows) + 1] if kernel == "onnx_one_row" else every


def saturating(q: Integers, values: NDArray[np.int8], kernel: str) -> Integers:
    """[rows, outputs] as vpmaddubsw adds it: each pair clipped to int16, then everything in 32 bits."""
    wide, pairs = values.astype(np.int32), pairing(kernel)
    alone = np.setdiff1d(np.arange(columns(kernel)), pairs)
    sums = (q[:, None, pairs] * wide[None, :, pairs]).sum(3)
    return np.clip(sums, -32768, 32767).sum(2) + q[:, alone] @ wide[:, alone].T


def emulator() -> list[str]:
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu and platform.machine() == "x86_64":
        return [qemu, "-cpu", "Haswell"]
    flags = set(describe_machine().isa_flags)
    if "avx2" in flags and not flags & {"avx_vnni", "avx512_vnni"}:
        return []
    pytest.skip("needs an x86 CPU without VNNI: install Debian's qemu-user-static, which emulates one")


@pytest.fixture(scope="module")
def accumulators(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Integers]:
    """The integers that a kernel computes with full-range or safe weights, [rows, outputs]."""
    command, folder = emulator(), tmp_path_factory.mktemp("kernels")
    for kernel in KERNELS:
        rows = bytes_of_inputs(kernel)
        for kind in ("full", "safe", "rounded") if kernel in ADJACENT else ("full", "safe"):
            path, values = folder / f"{kernel}-{kind}", weights(kernel, kind)
            dims = input_dims(kernel, *rows.shape)
            if kernel.startswith("onnx"):
                write_onnx(path, values)
            else:
                write_openvino(path, kernel, values, dims)
            np.save(path.with_suffix(".npy"), (rows - ZERO_POINT).astype(np.float32).reshape(dims))
    finished = subprocess.run(
        [*command, sys.executable, str(CHILD), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr

    def read(kernel: str, kind: str) -> Integers:
        found = np.load(folder / f"{kernel}-{kind}.out.npy").reshape(-1, OUTPUTS)
        assert (found == np.rint(found)).all()
        # The zero point's share is added in 32 bits: without it, what remains is the sum of byte products.
        return np.asarray(found, np.int32) + ZERO_POINT * weights(kernel, kind).astype(np.int32).sum(1)

    return read


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_saturates_where_the_certificate_says_and_by_as_much(
    accumulators: Callable[[str, str], Integers], kernel: str
) -> None:
    q, values = bytes_of_inputs(kernel), weights(kernel, "full")
    found, exact = accumulators(kernel, "full"), q @ values.astype(np.int32).T
    np.testing.assert_array_equal(found, saturating(q, values, kernel))
    certificate = certify(values, (pairing(kernel),))
    assert certificate.unsafe_pairs > 100
    assert (found != exact).any()
    if kernel == "onnx_one_row":
        return
    pairs = {tuple(map(int, pair)): row for row, pair in enumerate(pairing(kernel))}
    lost = np.abs(found - exact)[: len(pairs)]
    assert np.count_nonzero(lost) == certificate.unsafe_pairs
    assert lost.max() == certificate.max_excess
    for pair in certificate.worst:
        assert lost[pairs[pair.inputs], pair.output] == pair.excess


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_is_exact_with_certified_weights(accumulators: Callable[[str, str], Integers], kernel: str) -> None:
    q, values = bytes_of_inputs(kernel), weights(kernel, "safe")
    assert certify(values, (pairing(kernel),)).proven_safe
    assert np.abs(values.astype(int)).max() > 120  # wider than 7 bits
    np.testing.assert_array_equal(accumulators(kernel, "safe"), q @ values.astype(np.int32).T)


@pytest.mark.parametrize("kernel", ADJACENT)
def test_kernel_is_exact_with_pair_safe_rounding(accumulators: Callable[[str, str], Integers], kernel: str) -> None:
    q, values = bytes_of_inputs(kernel), weights(kernel, "rounded")
    np.testing.assert_array_equal(pairing(kernel), np.arange(columns(kernel)).reshape(-1, 2))
    assert certify(values, (pairing(kernel),)).proven_safe
    assert np.abs(values.astype(int)).max() > 100  # wider than 7 bits
    np.testing.assert_array_equal(accumulators(kernel, "rounded"), q @ values.astype(np.int32).T)
