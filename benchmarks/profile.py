"""Where the time of an inference goes, by the runtime's own profiler: operators, kernels, conversions, fallbacks.

The artifact runs in its wrapper, with the same settings and the profiler on, which itself takes some time. ONNX Runtime
and OpenVINO time every node. LiteRT's Python package does not, and no times are made up for it: there the profile says
which nodes XNNPACK took, in how many partitions. The first inferences are not counted; each node's time is the median
of the others.
"""

import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

from vitedge.benchmarks.profile_nodes import OWN, Measurement, Node, Role
from vitedge.names import pattern
from vitedge.runtimes.manifest import Manifest, load_manifest

NO_TIMES = "LiteRT's Python package has no profiler: no times by operator, only which nodes XNNPACK took"
# Integer kernels of oneDNN that are slower than its float ones: on a CPU held to AVX2, ViT-S takes 151 ms of CPU time
# with its linears in jit_gemm_I8, 131 ms in FP32, and 90 ms with them in jit_avx2_1x1_I8.
_GENERIC_KERNEL = re.compile(r"ref_|jit_gemm_")


@dataclass(frozen=True)
class Group:
    """All nodes of one operator that ran in one kernel in one role; `share` is of the time in all operators."""

    kind: str
    kernel: str | None
    role: Role
    count: int
    ms: float | None
    share: float | None


@dataclass(frozen=True)
class Fallback:
    """A linear that the manifest calls integer and that no fast integer kernel computed; `ran_in` is what did."""

    linear: str
    ran_in: str


@dataclass(frozen=True)
class Profile:
    """What ran in one inference and how long it took.

    `latency_ms` is the median of calls of the wrapper under the profiler; `operators_ms` what nodes took of that, None
    where the runtime times none. `partitions` are XNNPACK's, None for other runtimes.
    """

    runtime: str
    threads: int | None
    runs: int
    latency_ms: float
    nodes: tuple[Node, ...]
    partitions: int | None
    integer_macs_share: float
    fallbacks: tuple[Fallback, ...]

    @property
    def operators_ms(self) -> float | None:
        return _sum_ms(self.nodes)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Nodes by operator, kernel and role, the slowest first; where nothing is timed, the most frequent."""
        found: defaultdict[tuple[str, str | None, Role], list[Node]] = defaultdict(list)
        for node in self.nodes:
            found[node.kind, node.kernel, node.role].append(node)
        groups = []
        for (kind, kernel, role), nodes in found.items():
            ms = _sum_ms(nodes)
            groups.append(Group(kind, kernel, role, len(nodes), ms, self._share(ms)))
        return tuple(sorted(groups, key=lambda group: (-(group.ms or 0), -group.count)))

    def role_ms(self, role: Role) -> float | None:
        """Time in nodes of a role."""
        return _sum_ms(node for node in self.nodes if node.role == role) if self.operators_ms is not None else None

    def role_share(self, role: Role) -> float | None:
        """Share of a role of the time in all operators."""
        return self._share(self.role_ms(role))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is not as the manifest promises, in words."""
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for fallback in self.fallbacks:
            found[fallback.ran_in][pattern(fallback.linear)] += 1
        listed = "; ".join(
            f"{ran_in}: {', '.join(f'{name} ({count})' for name, count in names.items())}"
            for ran_in, names in found.items()
        )
        fell_back = f"linears that the manifest calls integer, but no fast integer kernel computed: {listed}"
        warnings = [fell_back] if listed else []
        if self.partitions is not None and self.partitions != 1:
            warnings.append(f"{self.partitions} XNNPACK partitions, expected one: tensors are copied between them")
        outside = [node.kind for node in self.nodes if node.kernel == OWN]
        if outside:
            kinds = ", ".join(f"{kind} ({outside.count(kind)})" for kind in sorted(set(outside)))
            warnings.append(f"{len(outside)} of {len(self.nodes)} nodes are not in XNNPACK: {kinds}")
        return tuple(warnings)

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "threads": self.threads,
            "runs": self.runs,
            "latency_ms": self.latency_ms,
            "operators_ms": self.operators_ms,
            "integer_macs_share": self.integer_macs_share,
            "integer_time_share": self.role_share("integer"),
            "conversions_ms": self.role_ms("conversion"),
            "conversions_share": self.role_share("conversion"),
            "partitions": self.partitions,
            "groups": [vars(group) for group in self.groups],
            "fallbacks": [vars(fallback) for fallback in self.fallbacks],
            "warnings": list(self.warnings),
            "nodes": [node.to_json() for node in self.nodes],
        }

    def _share(self, ms: float | None) -> float | None:
        return ms / self.operators_ms if ms is not None and self.operators_ms else None


def profile(folder: Path, *, threads: int | None = None) -> Profile:
    """Runs an artifact under its runtime's profiler.

    Args:
        folder: Artifact folder.
        threads: Threads of the runtime; None leaves it to the runtime.

    Raises:
        ArtifactError: The folder is not an artifact, or the runtime cannot load it.
        RuntimeMissingError: The runtime is not installed, or too old.
    """
    manifest = load_manifest(folder)
    module = importlib.import_module(f"vitedge.benchmarks.profile_{manifest.runtime}")
    measured = cast(Measurement, module.measure(folder, threads))
    return Profile(
        runtime=manifest.runtime,
        threads=threads,
        runs=len(measured.latencies_ms),
        latency_ms=median(measured.latencies_ms),
        nodes=measured.nodes,
        partitions=measured.partitions,
        integer_macs_share=manifest.operations.integer_share,
        fallbacks=_fallbacks(manifest, measured.nodes),
    )


def _fallbacks(manifest: Manifest, nodes: tuple[Node, ...]) -> tuple[Fallback, ...]:
    """Integer linears of the manifest without a product in a fast integer kernel."""
    products: defaultdict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.linear is not None:
            products[node.linear].append(node)
    found = []
    for linear in manifest.operations.integer:
        ran_in = [_slow_or_float(product) for product in products[linear]] or ["not found by name"]
        found += [Fallback(linear, wrong) for wrong in ran_in if wrong is not None][:1]
    return tuple(found)


def _slow_or_float(product: Node) -> str | None:
    """What is wrong with where a product ran; None if nothing is."""
    name = f"{product.kind} {product.kernel or ''}".strip()
    if product.role != "integer":
        return f"float {name}"
    if product.kernel == OWN:
        return f"{product.kind} outside XNNPACK"
    return f"slow {name}" if _GENERIC_KERNEL.match(product.kernel or "") else None


def _sum_ms(nodes: Iterable[Node]) -> float | None:
    """The time of nodes together; None if the runtime times none of them."""
    times = [node.ms for node in nodes]
    known = [ms for ms in times if ms is not None]
    return None if len(known) < len(times) else sum(known)
