"""Where OpenVINO's time goes, from the counters that its CPU plugin keeps in the graph that it runs.

A counter is the mean over all inferences since the model was compiled, in whole microseconds. So one that is read
after the warm-up and again at the end gives the mean of what lies between, to about a microsecond; that is done with
the model loaded `_ROUNDS` times, and the median of these means keeps a hiccup from deciding.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vitedge.benchmarks.profile_nodes import RUNS, WARM_UP_RUNS, Measurement, Node, Role, example_input, owner, run
from vitedge.runtimes.manifest import Manifest
from vitedge.runtimes.openvino import OpenVinoEncoder

_ROUNDS = 3
_PRODUCTS = frozenset(("FullyConnected", "Convolution", "MatMul"))
_NOT_COMPUTED = frozenset(("Const", "Input", "Output"))
_INTEGERS = frozenset(("u8", "i8"))
_CONVERSIONS = frozenset(("FakeQuantize", "Convert", "Reorder"))
# What the lowering has in ranges of rows and nowhere else, by the beginning of its nodes' names.
_ROW_RANGES = ("ReduceMin_", "ReduceMax_", "Maximum_", "Subtract_", "Divide_", "Power_")


class _ProfiledEncoder(OpenVinoEncoder):
    """The wrapper, with the counters on."""

    def _settings(self, threads: int | None) -> dict[str, str | int]:
        return super()._settings(threads) | {"PERF_COUNT": True}

    def graph(self) -> list[Any]:
        """The nodes that run in each inference, in their order, with what the plugin says of them."""
        nodes: list[Any] = []
        fixed: set[str] = set()
        for node in self._request.get_compiled_model().get_runtime_model().get_ordered_ops():
            inputs = {source.get_node().get_friendly_name() for source in node.input_values()}
            kind = _said(node, "layerType")
            if kind == "Const" or (inputs and inputs <= fixed):  # such a node runs once, when the model is compiled
                fixed.add(node.get_friendly_name())
            elif kind not in _NOT_COMPUTED:
                nodes.append(node)
        return nodes


def measure(folder: Path, threads: int | None) -> Measurement:
    """Profiles an OpenVINO artifact; arguments and errors as in `RuntimeEncoder`."""
    latencies_ms: list[float] = []
    means_ms: list[list[float]] = []
    for _ in range(_ROUNDS):
        encoder = _ProfiledEncoder(folder, threads=threads)
        pixel_values = example_input(encoder)
        run(encoder, pixel_values, WARM_UP_RUNS)
        warm_up_us = [_mean_us(node) for node in encoder.graph()]
        latencies_ms += run(encoder, pixel_values, RUNS)
        nodes = encoder.graph()
        means_ms.append([_mean_ms(warm_up, _mean_us(node)) for warm_up, node in zip(warm_up_us, nodes, strict=True)])
    # Of all loads the order is the same; names are not, as the plugin numbers its own anew.
    medians_ms = map(median, zip(*means_ms, strict=True))
    found = (_node(encoder.manifest, node, ms) for node, ms in zip(nodes, medians_ms, strict=True))
    return Measurement(tuple(found), tuple(latencies_ms))


def _mean_ms(warm_up_us: int, all_us: int) -> float:
    """The mean of the runs after the warm-up from that of the warm-up and that of all."""
    total_us = all_us * (WARM_UP_RUNS + RUNS) - warm_up_us * WARM_UP_RUNS
    return max(total_us, 0) / RUNS / 1e3  # means are rounded down, so that a difference can be below zero


def _node(manifest: Manifest, node: Any, ms: float) -> Node:
    kind, kernel = _said(node, "layerType"), _said(node, "primitiveType")
    originals = [name for name in _said(node, "originalLayersNames").split(",") if name]
    linear = next((found for name in originals if (found := owner(name, manifest.operations.integer))), None)
    role = _role(node, kind, originals, linear)
    return Node(node.get_friendly_name(), kind, kernel, role, linear if kind in _PRODUCTS else None, ms)


def _role(node: Any, kind: str, originals: Sequence[str], linear: str | None) -> Role:
    if kind in _PRODUCTS:
        return "integer" if _said(node, "runtimePrecision") in _INTEGERS else "other"
    ranges = any(name.startswith(_ROW_RANGES) for name in originals)
    # A node that bears a linear's name, but is no product, is a dequantization that was not fused into the product.
    return "conversion" if kind in _CONVERSIONS or ranges or linear is not None else "other"


def _mean_us(node: Any) -> int:
    """The counter; zero for what took less than a microsecond or works in place."""
    said = _said(node, "execTimeMcs")
    return 0 if said == "not_executed" else int(said)


def _said(node: Any, key: str) -> str:
    information: Mapping[str, Any] = node.get_rt_info()
    value = information[key]
    return str(getattr(value, "value", value))
