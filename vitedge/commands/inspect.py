"""`vitedge inspect`: what an artifact is made of, whether its files are whole, and whether it fits this machine.

With a profile, also where the time of an inference goes here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.benchmarks.machine import Machine, describe_machine
from vitedge.benchmarks.profile import Profile
from vitedge.benchmarks.profile import profile as run_profile
from vitedge.runtimes.encoder import DISTRIBUTIONS, installed_version, is_older
from vitedge.runtimes.instruction_sets import X86, X86_VNNI
from vitedge.runtimes.manifest import Manifest, artifact_folders, load_manifest, verify_files


@dataclass(frozen=True)
class Inspection:
    """A verified manifest, what this machine makes of it, in words, and its profile here if one was asked for."""

    folder: Path
    manifest: Manifest
    fits: tuple[str, ...]
    profile: Profile | None

    def to_json(self) -> dict[str, Any]:
        share = self.manifest.operations.integer_share
        document = {"folder": str(self.folder), **self.manifest.to_json(), "integer_macs_share": share}
        return document | {"fits": self.fits, "profile": self.profile.to_json() if self.profile else None}


def inspect(artifact: Path, *, profile: bool = False, threads: int = 1) -> tuple[Inspection, ...]:
    """Reads and verifies every artifact at a path.

    Args:
        artifact: An artifact folder, or the folder of a build.
        profile: Whether to run each under its runtime's profiler.
        threads: Threads of the runtime in a profile.

    Raises:
        ArtifactError: No artifact there, or its files do not match its manifest.
        RuntimeMissingError: A profile was asked for, and the runtime is not installed.
    """
    found, machine = [], describe_machine()
    for folder in artifact_folders(artifact).values():
        manifest = load_manifest(folder)
        verify_files(manifest, folder)
        fits = _runtime_verdict(manifest), cpu_verdict(manifest, machine)
        found.append(Inspection(folder, manifest, fits, run_profile(folder, threads=threads) if profile else None))
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
    saturation = manifest.saturation
    if manifest.target == "npu" and manifest.precision == "int8":
        return "exact on any CPU, and slow on it: made for accelerators"
    if saturation.not_applicable is not None:
        return "runs on any CPU"
    if saturation.proven_safe:
        if manifest.target == "avx2" and machine.kind == X86_VNNI:
            return "exact on this CPU; it has VNNI, for which --target vnni is more accurate"
        return "exact on this CPU"
    return _unsafe_verdict(manifest, machine.kind)


def _unsafe_verdict(manifest: Manifest, kind: str) -> str:
    if kind in manifest.instruction_sets:
        return "exact on this CPU; not on x86 CPUs without VNNI"
    known = (
        "this CPU has no VNNI"
        if kind == X86
        else "this CPU is of no kind that vitedge knows; if it is x86 without VNNI"
    )
    count = f"{len(manifest.saturation.unsafe)} of {manifest.saturation.linears} integer products"
    if X86 in manifest.exact_in_wrapper:
        return f"{known}: exact in vitedge's wrapper, by slower kernels; in other programs {count} can saturate"
    return f"{known}: {count} can saturate here and give wrong features; build for avx2"
