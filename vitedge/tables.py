"""What results look like in a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.table import Table

from vitedge.runtimes.manifest import Manifest

_NAMES = {"onnx": "ONNX", "openvino": "OpenVINO", "tflite": "TFLite"}


def show(*renderables: RenderableType) -> None:
    """Prints to stdout."""
    RichConsole(highlight=False).print(Group(*renderables))
