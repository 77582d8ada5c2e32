"""`vitedge inspect`: what an artifact is made of, whether its files are whole, and whether it fits this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.benchmarks.machine import Machine, describe_machine
from vitedge.runtimes.encoder import DISTRIBUTIONS, installed_version, is_older
from vitedge.runtimes.manifest import Manifest, artifact_folders, load_manifest, verify_files

# CPUs with one of these add four products of bytes in 32 bits, or widen first: nothing saturates.
_VNNI = frozenset({"avx_vnni", "avx512_vnni"})
_ARM = frozenset({"neon", "asimd"})


@dataclass(frozen=True)
class Inspection:
    """A verified manifest, and what this machine makes of it, in words."""

    folder: Path
    manifest: Manifest
    fits: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        share = self.manifest.operations.integer_share
        return {"folder": str(self.folder), **self.manifest.to_json(), "integer_macs_share": share, "fits": self.fits}


def inspect(artifact: Path) -> tuple[Inspection, ...]:
    """Reads and verifies every artifact at a path.

    Raises:
        ArtifactError: No artifact there, or its files do not match its manifest.
    """
    found, machine = [], describe_machine()
    for folder in artifact_folders(artifact).values():
        manifest = load_manifest(folder)
        verify_files(manifest, folder)
        found.append(Inspection(folder, manifest, (_runtime_verdict(manifest), cpu_verdict(manifest, machine))))
    return tuple(found)


def _runtime_verdict(manifest: Manifest) -> str:
    distribution = DISTRIBUTIONS[manifest.runtime]
    version = installed_version(distribution)
    if version is None:
        return f"{distribution} is not installed here: pip install 'vitedge[{manifest.runtime}]'"
    if is_older(version, manifest.minimum_runtime):
        return f"{distribution} {version} here is too old: it needs {manifest.minimum_runtime}"
    return f"{distribution} {version} here loads it"


def cpu_verdict(manifest: Manifest, machine: Machine) -> str:
    """Whether the artifact is exact on a machine, by its saturation certificate."""
    saturation, vnni = manifest.saturation, _VNNI & set(machine.isa_flags)
    if manifest.target == "npu" and manifest.precision == "int8":
        return "exact on any CPU, and slow on it: made for accelerators"
    if saturation.not_applicable is not None:
        return "runs on any CPU"
    if saturation.proven_safe:
        if manifest.target == "avx2" and vnni:
            return "exact on this CPU; it has VNNI, for which --target vnni is more accurate"
        return "exact on this CPU"
    if vnni or _ARM & set(machine.isa_flags):
        return "exact on this CPU; not on x86 CPUs without VNNI"
    known = "this CPU has no VNNI" if machine.isa_flags else "this CPU reports no instruction sets; if it has no VNNI"
    count = f"{len(saturation.unsafe)} of {saturation.linears} linears"
    return f"{known}: {count} can saturate here and give wrong features; build for avx2"
