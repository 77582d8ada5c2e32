"""Runs in a process of its own, held to AVX2 or not; `benchmarks/test_avx2_only.py` starts it.

    python tests/held_process.py registers ARTIFACT
    python tests/held_process.py product
    python tests/held_process.py saturates

`registers` runs an artifact and prints which AVX-512 registers this thread has used since: a kernel that uses them
leaves values in them. `product` prints an ONNX Runtime product of 255 · 127 + 255 · 127, which AVX2 alone saturates;
`saturates` prints whether the wrapper finds that out.
"""

import ctypes
import mmap
import sys
from pathlib import Path

# Parts of the register state that is not as at the start (Intel's manual, volume 1, 13.6): masks, upper halves of
# zmm0 to zmm15, zmm16 to zmm31.
AVX512 = 0b111 << 5
# mov ecx, 1; xgetbv; ret
XGETBV = bytes.fromhex("b9010000000f01d0c3")


def registers(folder: Path) -> int:
    """The AVX-512 state after inferences with one thread, which is this one."""
    import numpy as np

    from vitedge.runtimes.load import load_encoder

    code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(XGETBV)
    start = ctypes.c_char.from_buffer(code)
    in_use = ctypes.CFUNCTYPE(ctypes.c_uint)(ctypes.addressof(start))
    encoder = load_encoder(folder, threads=1)
    contract = encoder.manifest.preprocessing
    for _ in range(3):
        encoder(np.ones((1, 3, contract.height, contract.width), np.float32))
    return in_use() & AVX512


def product() -> int:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "product",
        [
            helper.make_tensor_value_info("a", TensorProto.UINT8, [32, 64]),
            helper.make_tensor_value_info("b", TensorProto.INT8, [64, 32]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [32, 32])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    a, b = np.zeros((32, 64), np.uint8), np.full((64, 32), 127, np.int8)
    a[:, :2] = 255
    return int(session.run(None, {"a": a, "b": b})[0][0, 0])


def saturates() -> int:
    from vitedge.runtimes.onnx import saturates_here

    return int(saturates_here())


if __name__ == "__main__":
    what = {"registers": lambda: registers(Path(sys.argv[2])), "product": product, "saturates": saturates}
    print(what[sys.argv[1]]())
