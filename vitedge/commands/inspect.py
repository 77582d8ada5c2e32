"""`vitedge inspect`: what an artifact is made of, whether its files are whole, and whether it fits this machine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.encoder import DISTRIBUTIONS, installed_version, is_older
from vitedge.runtimes.manifest import Manifest, artifact_folders, load_manifest, verify_files


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
    found = []
    for folder in artifact_folders(artifact).values():
        manifest = load_manifest(folder)
        verify_files(manifest, folder)
        found.append(Inspection(folder, manifest, (_runtime_verdict(manifest), _cpu_verdict(manifest))))
    return tuple(found)


def _runtime_verdict(manifest: Manifest) -> str:
    distribution = DISTRIBUTIONS[manifest.runtime]
    version = installed_version(distribution)
    if version is None:
        return f"{distribution} is not installed here: pip install 'vitedge[{manifest.runtime}]'"
    if is_older(version, manifest.minimum_runtime):
        return f"{distribution} {version} here is too old: it needs {manifest.minimum_runtime}"
    return f"{distribution} {version} here loads it"


def _cpu_verdict(manifest: Manifest) -> str:
    flags = set(describe_machine().isa_flags)
    vnni = flags & {"avx_vnni", "avx512_vnni"}
    if manifest.precision == "fp32" or manifest.runtime == "tflite":
        return "runs on any CPU"
    if manifest.target == "vnni" and not vnni:
        return "this CPU has no VNNI: 8-bit weights can saturate here and give wrong features; build for avx2"
    if manifest.target == "avx2" and vnni:
        return "exact on this CPU; it has VNNI, so that --target vnni could use all 8 weight bits"
    return "exact on this CPU"
