"""ONNX Runtime wrapper. Needs numpy, onnxruntime and, to decode image files, OpenCV: `pip install 'vitedge[onnx]'`.

Thread-safe: one encoder may be called from several threads at once.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder
from vitedge.runtimes.instruction_sets import X86
from vitedge.runtimes.preprocess import PixelValues

# MatMulInteger of uint8 a [m, k] and int8 b [k, n], operator set 10: the onnx package is not needed to ask.
_PRODUCT = bytes.fromhex(
    "080512003a620a180a01610a0162120179220d4d61744d756c496e74656765721201675a150a016112100a0e0802120a0a0312016d0a0312016b"
    "5a150a016212100a0e0803120a0a0312016b0a0312016e62150a017912100a0e0806120a0a0312016d0a0312016e42040a00100a"
)
_PRECISE = "session.x64quantprecision"


@functools.cache
def saturates_here() -> bool:
    """Whether ONNX Runtime's kernels for uint8 times int8 saturate on this CPU, as those of x86 without VNNI do: they
    are asked for 255 · 127 + 255 · 127.
    """
    import onnxruntime  # noqa: PLC0415 - absent runtimes are reported before this line

    session = onnxruntime.InferenceSession(_PRODUCT, providers=["CPUExecutionProvider"])
    a, b = np.zeros((32, 64), np.uint8), np.full((64, 32), 127, np.int8)
    a[:, :2] = 255
    (product,) = session.run(None, {"a": a, "b": b})
    return bool((product != 2 * 255 * 127).any())


class OnnxEncoder(RuntimeEncoder):
    """An ONNX artifact, loaded. See `RuntimeEncoder` for arguments, calls and errors."""

    runtime = "onnx"

    def _load(self, folder: Path, threads: int | None) -> None:
        import onnxruntime  # noqa: PLC0415 - absent runtimes are reported before this line

        self._session = onnxruntime.InferenceSession(
            str(folder / self.manifest.files[0].name), self._options(threads), providers=["CPUExecutionProvider"]
        )
        self._names = [record.name for record in self.manifest.outputs]

    def _options(self, threads: int | None) -> Any:
        import onnxruntime  # noqa: PLC0415 - as above

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        if X86 not in self.manifest.instruction_sets and saturates_here():
            # Kernels for uint8 times uint8: exact, and slower, for nothing on CPUs where those for int8 are exact too.
            options.add_session_config_entry(_PRECISE, "1")
        return options

    def _run(self, pixel_values: PixelValues) -> Mapping[str, FloatArray]:
        outputs = self._session.run(self._names, {self.manifest.inputs[0].name: pixel_values})
        return dict(zip(self._names, outputs, strict=True))
