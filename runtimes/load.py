"""Picks the wrapper that an artifact's manifest asks for."""

import importlib
from os import PathLike
from pathlib import Path
from typing import cast

from vitedge.runtimes.encoder import RuntimeEncoder
from vitedge.runtimes.manifest import load_manifest

_WRAPPERS = {"onnx": "OnnxEncoder", "openvino": "OpenVinoEncoder", "tflite": "TfliteEncoder"}


def load_encoder(folder: str | PathLike[str], *, threads: int | None = None) -> RuntimeEncoder:
    """Loads the artifact in `folder` with its runtime's wrapper; arguments and errors as in `RuntimeEncoder`."""
    runtime = load_manifest(Path(folder)).runtime
    module = importlib.import_module(f"vitedge.runtimes.{runtime}")
    return cast(RuntimeEncoder, getattr(module, _WRAPPERS[runtime])(folder, threads=threads))
