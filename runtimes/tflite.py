"""LiteRT (TFLite) wrapper. Needs numpy, ai-edge-litert and, for image files, OpenCV: `pip install 'vitedge[tflite]'`.

Thread-safe: calls from several threads take turns on one interpreter.
"""

import threading
from collections.abc import Mapping
from pathlib import Path

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder


class TfliteEncoder(RuntimeEncoder):
    """A TFLite artifact, loaded. See `RuntimeEncoder` for arguments, calls and errors."""

    runtime = "tflite"

    def _load(self, folder: Path, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - absent runtimes are reported before this

        self._interpreter = Interpreter(str(folder / self.manifest.files[0].name), num_threads=threads)
        self._runner = self._interpreter.get_signature_runner("serving_default")
        self._lock = threading.Lock()

    def _run(self, pixel_values: FloatArray) -> Mapping[str, FloatArray]:
        with self._lock:
            outputs = self._runner(**{self.manifest.inputs[0].name: pixel_values})
        return {record.name: outputs[record.name] for record in self.manifest.outputs}
