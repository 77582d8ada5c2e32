"""Where ONNX Runtime's time goes, from the trace that its sessions write."""

import json
from collections import defaultdict
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from vitedge.benchmarks.profile_nodes import RUNS, WARM_UP_RUNS, Measurement, Node, Role, example_input, owner, run
from vitedge.runtimes.manifest import Manifest
from vitedge.runtimes.onnx import OnnxEncoder

_INTEGER_PRODUCTS = frozenset(
    ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm", "ConvInteger")
)
_FLOAT_PRODUCTS = frozenset(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "Conv", "FusedConv"))
_CONVERSIONS = frozenset(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"))
_TIMED = "_kernel_time"  # ends the name of every event that is a node's computation


class _ProfiledEncoder(OnnxEncoder):
    """The wrapper, with the profiler on, which writes into a folder of ours."""

    def __init__(self, artifact: str | PathLike[str], *, threads: int | None, scratch: Path) -> None:
        self._scratch = scratch
        super().__init__(artifact, threads=threads)

    def _options(self, threads: int | None) -> Any:
        options = super()._options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(self._scratch / "trace")
        return options

    def trace(self) -> list[dict[str, Any]]:
        """Ends the profile and returns its events."""
        events: list[dict[str, Any]] = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        return events


def measure(folder: Path, threads: int | None) -> Measurement:
    """Profiles an ONNX artifact; arguments and errors as in `RuntimeEncoder`."""
    with TemporaryDirectory() as scratch:
        encoder = _ProfiledEncoder(folder, threads=threads, scratch=Path(scratch))
        latencies_ms = run(encoder, example_input(encoder), WARM_UP_RUNS + RUNS)[WARM_UP_RUNS:]
        events = encoder.trace()
    runs: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith(_TIMED):
            runs[event["args"]["node_index"]].append(event)  # fused nodes share names, but not the index
    return Measurement(tuple(_node(encoder.manifest, found) for found in runs.values()), tuple(latencies_ms))


def _node(manifest: Manifest, runs: list[dict[str, Any]]) -> Node:
    """A node from its events, one per inference."""
    name, kind = runs[0]["name"].removesuffix(_TIMED), runs[0]["args"]["op_name"]
    # An output of the model bears its own name instead of its linear's.
    linear = "classifier" if name == "logits" else owner(name, manifest.operations.integer)
    ms = median(event["dur"] for event in runs[WARM_UP_RUNS:]) / 1e3
    is_product = kind in _INTEGER_PRODUCTS or kind in _FLOAT_PRODUCTS
    return Node(name, kind, None, _role(name, kind, linear, runs[0]["args"]), linear if is_product else None, ms)


def _role(name: str, kind: str, linear: str | None, arguments: Mapping[str, Any]) -> Role:
    if kind in _INTEGER_PRODUCTS:
        return "integer"
    if kind in _CONVERSIONS or (kind == "Cast" and "float" in _types(arguments)):
        return "conversion"
    # Ranges of rows and scales bear the name of their linear; a bias that is added apart is its output.
    needed = linear is not None and kind not in _FLOAT_PRODUCTS and name not in (f"{linear}.output", "logits")
    return "conversion" if needed else "other"


def _types(arguments: Mapping[str, Any]) -> set[str]:
    """Data types of a node's inputs and outputs."""
    return {name for tensor in (*arguments["input_type_shape"], *arguments["output_type_shape"]) for name in tensor}
