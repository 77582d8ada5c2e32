"""OpenVINO wrapper. Needs numpy, openvino and, to decode image files, OpenCV: `pip install 'vitedge[openvino]'`.

Thread-safe: calls from several threads take turns on one inference request.

The plugin is held to float32 for what the artifact keeps float. By its own default it would compute those parts in
bfloat16 on CPUs with AMX and in float16 on ARM, and the same file would give different features on different machines.
"""

import threading
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import numpy as np

from vitedge.runtimes.encoder import FloatArray, RuntimeEncoder
from vitedge.runtimes.preprocess import PixelValues


class OpenVinoEncoder(RuntimeEncoder):
    """An OpenVINO artifact, loaded. See `RuntimeEncoder` for calls and errors.

    Args:
        folder: Artifact folder.
        threads: As in `RuntimeEncoder`.
        cache: Folder in which the plugin keeps what it compiled, by the model's SHA-256, and finds it the next time:
            INT8 compiles slowly. What lies there is run, so let nobody else write to it. None compiles at every load.
    """

    runtime = "openvino"

    def __init__(
        self, folder: str | PathLike[str], *, threads: int | None = None, cache: str | PathLike[str] | None = None
    ) -> None:
        self._cache = None if cache is None else Path(cache)
        super().__init__(folder, threads=threads)

    def _load(self, folder: Path, threads: int | None) -> None:
        import openvino  # noqa: PLC0415 - absent runtimes are reported before this line

        model = folder / self.manifest.files[0].name
        self._request = openvino.Core().compile_model(model, "CPU", self._settings(threads)).create_infer_request()
        self._names = [record.name for record in self.manifest.outputs]
        self._lock = threading.Lock()

    def _settings(self, threads: int | None) -> dict[str, str | int]:
        settings: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        if self._cache is not None:
            # The plugin's own key is the path, under which another model may lie tomorrow.
            key = "-".join(file.sha256[:16] for file in self.manifest.files)
            settings["CACHE_DIR"] = str(self._cache / key)
        return settings

    def _run(self, pixel_values: PixelValues) -> Mapping[str, FloatArray]:
        with self._lock:
            self._request.infer({self.manifest.inputs[0].name: pixel_values})
            return {name: np.array(self._request.get_tensor(name).data, np.float32) for name in self._names}
