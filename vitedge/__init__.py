"""vitedge: INT8 Vision Transformer encoders for phones and edge boxes, with proof.

The public names load on first use, so that `import vitedge` needs nothing but the standard library:

    build, BuildRequest    a checkpoint and images in, proven artifacts out      (needs vitedge[convert])
    verify                 accuracy of an artifact against FP32                  (needs vitedge[convert])
    bench                  latency, memory and size                              (needs the runtime)
    load_encoder           an artifact, ready to encode images                   (needs the runtime)
    Gates                  what may be lost at most, for `BuildRequest` and `verify`
    VitedgeError           base of every error raised on purpose
"""

import importlib
import os
import sys
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "BuildRequest": "vitedge.commands.build",
    "Gates": "vitedge.quantization.gates",
    "build": "vitedge.commands.build",
    "verify": "vitedge.commands.verify",
    "bench": "vitedge.commands.bench",
    "load_encoder": "vitedge.runtimes.load",
    "VitedgeError": "vitedge.runtimes.errors",
}
__all__ = ["BuildRequest", "Gates", "VitedgeError", "__version__", "bench", "build", "load_encoder", "verify"]


def _switch_telemetry_off() -> None:
    """Runtimes report to their vendors from where they run, and leave an identifier there, unless told not to in time.

    ONNX Runtime (1.29 and newer) reads a variable when it is imported; the user's own setting of it stays. OpenVINO's
    Python package has no switch, but reports nothing where it finds no `openvino_telemetry`.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as documented: absent


_switch_telemetry_off()


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module vitedge has no attribute {name}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
