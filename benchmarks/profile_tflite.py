"""How much of a TFLite graph runs in XNNPACK. LiteRT's Python package has no profiler, so that no node has a time.

The interpreter keeps the graph's own nodes and adds one node per partition that a delegate has taken over. What such a
partition holds are the nodes that its outputs depend on, back to its inputs.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.benchmarks.profile_nodes import (
    DELEGATED,
    OWN,
    RUNS,
    WARM_UP_RUNS,
    Measurement,
    Node,
    example_input,
    owner,
    run,
)
from vitedge.runtimes.tflite import TfliteEncoder

_PRODUCTS = frozenset(("FULLY_CONNECTED", "CONV_2D", "BATCH_MATMUL"))
_CONVERSIONS = frozenset(("QUANTIZE", "DEQUANTIZE"))
_QKV = re.compile(r"\.(query|key|value)(?=\.weight$)")  # for accelerators they are three linears


class _ProfiledEncoder(TfliteEncoder):
    """The wrapper, and what its interpreter says of its graph once it has run."""

    def graph(self) -> list[Mapping[str, Any]]:
        nodes: list[Mapping[str, Any]] = self._interpreter._get_ops_details()
        return nodes

    def tensor_names(self) -> dict[int, str]:
        return {tensor["index"]: tensor["name"] for tensor in self._interpreter.get_tensor_details()}


def measure(folder: Path, threads: int | None) -> Measurement:
    """Measures latency, and finds the partitions; arguments and errors as in `RuntimeEncoder`."""
    encoder = _ProfiledEncoder(folder, threads=threads)
    latencies_ms = run(encoder, example_input(encoder), WARM_UP_RUNS + RUNS)[WARM_UP_RUNS:]
    graph, names = encoder.graph(), encoder.tensor_names()
    partitions = [node for node in graph if node["op_name"] == "DELEGATE"]
    own = [node for node in graph if node["op_name"] != "DELEGATE"]
    delegated = {index for partition in partitions for index in _inside(partition, own)}
    linears = encoder.manifest.operations.integer
    nodes = tuple(_node(node, names, linears, DELEGATED if node["index"] in delegated else OWN) for node in own)
    return Measurement(nodes, tuple(latencies_ms), len(partitions))


def _inside(partition: Mapping[str, Any], nodes: list[Mapping[str, Any]]) -> set[int]:
    """Indices of the nodes that a partition holds."""
    makers = {int(tensor): node for node in nodes for tensor in node["outputs"]}
    given = {int(tensor) for tensor in partition["inputs"]}
    wanted, found = [int(tensor) for tensor in partition["outputs"]], set()
    while wanted:
        tensor = wanted.pop()
        node = makers.get(tensor)
        if tensor not in given and node is not None and node["index"] not in found:
            found.add(node["index"])
            wanted += map(int, node["inputs"])
    return found


def _node(node: Mapping[str, Any], names: Mapping[int, str], linears: tuple[str, ...], kernel: str) -> Node:
    """A node; one is a product of integers if its second operand, the weights, is int8: the kernel rounds the first."""
    kind, output = node["op_name"], names.get(int(node["outputs"][0]), "")
    if kind not in _PRODUCTS:
        return Node(output, kind, kernel, "conversion" if kind in _CONVERSIONS else "other", None, None)
    integer = node["operand_types"][1] is np.int8
    linear = owner(_QKV.sub(".qkv", names.get(int(node["inputs"][1]), "")), linears)
    return Node(output, kind, kernel, "integer" if integer else "other", linear, None)
