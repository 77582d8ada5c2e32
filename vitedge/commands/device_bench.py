"""`vitedge bench --device`: a bundle of the artifacts goes to the device, is tested and measured there, and removed."""

import tempfile
from pathlib import Path

from vitedge.benchmarks.bundle import gather, write_bundle
from vitedge.benchmarks.ssh import DeviceResult, SshDevice, measure_over_ssh
from vitedge.console import Console
from vitedge.runtimes.manifest import artifact_folders


def bench_on_device(
    artifact: Path, device: SshDevice, *, threads: int, seconds: float, console: Console
) -> DeviceResult:
    """Tests and measures artifacts on a device; against FP32 where the build kept the twins.

    Args:
        artifact: An artifact folder, or a build's folder.
        device: Where.
        threads: Of the runtimes there.
        seconds: For each artifact.
        console: Shows progress.

    Raises:
        ArtifactError: No artifact there, or a build without golden vectors.
        DeviceError: See `measure_over_ssh`.
    """
    folders = artifact_folders(artifact)
    with_fp32 = all((folder.resolve().parent / "fp32" / name).is_dir() for name, folder in folders.items())
    with tempfile.TemporaryDirectory(prefix="vitedge-") as temporary:
        bundle = Path(temporary) / "bundle"
        with console.step(f"Bundling {', '.join(folders)}"):
            write_bundle(gather([artifact], with_fp32=with_fp32), bundle)
        with console.step(f"Testing and measuring on {device.name}"):
            return measure_over_ssh(device, bundle, threads=threads, seconds=seconds)
