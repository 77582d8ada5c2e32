"""Picks the wrapper that an artifact's manifest asks for, and says what was measured with it."""

import importlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, cast

from vitedge.runtimes.encoder import DISTRIBUTIONS, RuntimeEncoder, installed_version
from vitedge.runtimes.manifest import Manifest, load_manifest

_WRAPPERS = {"onnx": "OnnxEncoder", "openvino": "OpenVinoEncoder", "tflite": "TfliteEncoder"}


def load_encoder(folder: str | PathLike[str], *, threads: int | None = None) -> RuntimeEncoder:
    """Loads the artifact in `folder` with its runtime's wrapper; arguments and errors as in `RuntimeEncoder`."""
    runtime = load_manifest(Path(folder)).runtime
    module = importlib.import_module(f"vitedge.runtimes.{runtime}")
    return cast(RuntimeEncoder, getattr(module, _WRAPPERS[runtime])(folder, threads=threads))


def identities(manifests: Mapping[str, Manifest]) -> Mapping[str, Any]:
    """What a result is about, by artifact: SHA-256 of the model files, and the version of the runtime here."""
    return {
        name: {
            "runtime": manifest.runtime,
            "runtime_version": installed_version(DISTRIBUTIONS[manifest.runtime]),
            "target": manifest.target,
            "sha256": {record.name: record.sha256 for record in manifest.files},
        }
        for name, manifest in manifests.items()
    }
