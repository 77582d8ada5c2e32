"""ONNX Runtime wrapper. Needs numpy, onnxruntime and, to decode image files, OpenCV: `pip install 'vitedge[onnx]'`.

Thread-safe: one encoder may be called from several threads at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder
from vitedge.runtimes.instruction_sets import X86
from vitedge.runtimes.manifest import Manifest
from vitedge.runtimes.preprocess import PixelValues


def x64_quant_precision(manifest: Manifest) -> str:
    """ONNX Runtime's session option of that name: "1" makes x86 without VNNI take kernels that are slower and cannot
    saturate; it changes nothing elsewhere. "0" for artifacts that are exact in any kernel.
    """
    return "0" if X86 in manifest.instruction_sets else "1"


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
        options.add_session_config_entry("session.x64quantprecision", x64_quant_precision(self.manifest))
        return options

    def _run(self, pixel_values: PixelValues) -> Mapping[str, FloatArray]:
        outputs = self._session.run(self._names, {self.manifest.inputs[0].name: pixel_values})
        return dict(zip(self._names, outputs, strict=True))
