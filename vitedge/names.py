"""Names as people read them."""

from collections.abc import Mapping
from types import MappingProxyType

RUNTIME_NAMES: Mapping[str, str] = MappingProxyType({"onnx": "ONNX", "openvino": "OpenVINO", "tflite": "TFLite"})


def pattern(name: str) -> str:
    """With layers' numbers as stars: `layers.7.mlp.fc1` becomes `layers.*.mlp.fc1`."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))
