"""What a runtime's own profiler says of one artifact, in one form for all three."""

import time
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.encoder import RuntimeEncoder

WARM_UP_RUNS, RUNS = 3, 10
DELEGATED, OWN = "XNNPACK", "TFLite's own"  # kernels of TFLite
_SEED = 0

Role = Literal["integer", "conversion", "other"]


@dataclass(frozen=True)
class Node:
    """One node of the graph as the runtime runs it, after its own fusions.

    `kernel` is the implementation, where the runtime names one. `role` is `integer` for a product of integers,
    `conversion` for what only turns floats into integers and back (with ranges of rows and changes of layout around
    integer kernels), and `other`. `linear` is the linear whose product it computes, if it does. `ms` is its median
    time in one inference; None where the runtime does not measure it.
    """

    name: str
    kind: str
    kernel: str | None
    role: Role
    linear: str | None
    ms: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """Nodes, the latency of each call of the wrapper while they were measured, and for TFLite XNNPACK's partitions."""

    nodes: tuple[Node, ...]
    latencies_ms: tuple[float, ...]
    partitions: int | None = None


def example_input(encoder: RuntimeEncoder) -> NDArray[Any]:
    """Random images as the encoder takes them, of the batch that the artifact is made for; one if it is for any."""
    contract, batch = encoder.manifest.preprocessing, encoder.manifest.inputs[0].shape[0]
    shape = (batch if isinstance(batch, int) else 1, contract.height, contract.width, 3)
    return contract.batch(list(np.random.default_rng(_SEED).integers(0, 256, shape, np.uint8)))


def run(encoder: RuntimeEncoder, pixel_values: NDArray[Any], count: int) -> list[float]:
    """Runs some inferences and returns their latencies in ms."""
    latencies_ms = []
    for _ in range(count):
        start = time.perf_counter_ns()
        encoder(pixel_values)
        latencies_ms.append((time.perf_counter_ns() - start) / 1e6)
    return latencies_ms


def owner(name: str, linears: Collection[str]) -> str | None:
    """The linear that a node or tensor belongs to by its name: `a.b.output` and `a.b/Multiply` belong to `a.b`."""
    parts = name.partition("/")[0].split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in linears), None)
