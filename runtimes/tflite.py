"""LiteRT (TFLite) wrapper. Needs numpy, ai-edge-litert and, for image files, OpenCV: `pip install 'vitedge[tflite]'`.

Thread-safe: calls from several threads take turns on one interpreter.

Artifacts for NPUs may have integers as input and output. Here they are floats all the same: the manifest holds the
scale and zero point of each, and the wrapper converts.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.manifest import TensorRecord
from vitedge.runtimes.preprocess import PixelValues

_PLAIN, _INTEGERS = ("float32", "uint8"), ("int8", "int16")


class TfliteEncoder(RuntimeEncoder):
    """A TFLite artifact, loaded. See `RuntimeEncoder` for arguments, calls and errors."""

    runtime = "tflite"

    def _load(self, folder: Path, threads: int | None) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - absent runtimes are reported before this

        for record in (*self.manifest.inputs, *self.manifest.outputs):
            _check_scale(record)
        self._interpreter = Interpreter(str(folder / self.manifest.files[0].name), num_threads=threads)
        self._runner = self._interpreter.get_signature_runner("serving_default")
        self._lock = threading.Lock()

    def _run(self, pixel_values: PixelValues) -> Mapping[str, FloatArray]:
        record = self.manifest.inputs[0]
        with self._lock:
            outputs = self._runner(**{record.name: quantize(pixel_values, record)})
        return {record.name: dequantize(outputs[record.name], record) for record in self.manifest.outputs}


def quantize(value: PixelValues, record: TensorRecord) -> NDArray[Any]:
    """Real numbers to what the tensor holds: integers, rounded to nearest and clipped, or the values as they are."""
    if record.scale is None or record.zero_point is None:
        return value
    limits = np.iinfo(record.dtype)
    rounded = np.rint(value / np.float32(record.scale)) + record.zero_point
    return np.asarray(np.clip(rounded, limits.min, limits.max), record.dtype)


def dequantize(value: NDArray[Any], record: TensorRecord) -> FloatArray:
    """What the tensor holds to real numbers: float32 [same shape]."""
    if record.scale is None or record.zero_point is None:
        return value
    return (value.astype(np.float32) - np.float32(record.zero_point)) * np.float32(record.scale)


def _check_scale(record: TensorRecord) -> None:
    """Refuses a manifest that does not say what a tensor's integers mean, or gives a meaning to floats or pixels."""
    described = record.scale is not None and record.zero_point is not None and 0 < record.scale < np.inf
    absent = record.scale is None and record.zero_point is None
    if not (absent if record.dtype in _PLAIN else described and record.dtype in _INTEGERS):
        raise ArtifactError(
            f"{record.name}: expected {' or '.join(_PLAIN)} without, or {' or '.join(_INTEGERS)} with scale and zero"
            f" point, found {record.dtype} with scale {record.scale} and zero point {record.zero_point}"
        )
