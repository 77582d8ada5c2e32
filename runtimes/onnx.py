"""ONNX Runtime wrapper. Needs numpy, onnxruntime and, to decode image files, OpenCV: `pip install 'vitedge[onnx]'`.

Thread-safe: one encoder may be called from several threads at once.
"""

from collections.abc import Mapping
from pathlib import Path

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder


class OnnxEncoder(RuntimeEncoder):
    """An ONNX artifact, loaded. See `RuntimeEncoder` for arguments, calls and errors."""

    runtime = "onnx"

    def _load(self, folder: Path, threads: int | None) -> None:
        import onnxruntime  # noqa: PLC0415 - absent runtimes are reported before this line

        options = onnxruntime.SessionOptions()
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / self.manifest.files[0].name), options, providers=["CPUExecutionProvider"]
        )
        self._names = [record.name for record in self.manifest.outputs]

    def _run(self, pixel_values: FloatArray) -> Mapping[str, FloatArray]:
        outputs = self._session.run(self._names, {self.manifest.inputs[0].name: pixel_values})
        return dict(zip(self._names, outputs, strict=True))
