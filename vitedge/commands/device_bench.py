"""`vitedge bench --device`: artifacts go to a device, are measured there, and removed.

Where the device has Python a bundle is tested too; LiteRT's `benchmark_model` measures the TFLite model alone.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from vitedge.benchmarks.adb import parse_adb
from vitedge.benchmarks.adb_python import TERMUX_PYTHON, PythonDevice, measure_python_over_adb
from vitedge.benchmarks.benchmark_model import Delegate
from vitedge.benchmarks.bundle import gather, write_bundle
from vitedge.benchmarks.devices import DeviceError, DeviceResult
from vitedge.benchmarks.measure_adb import ToolDevice, measure_over_adb
from vitedge.benchmarks.remote import measure_bundle
from vitedge.benchmarks.ssh import SshDevice, parse_ssh
from vitedge.console import Console
from vitedge.runtimes.manifest import artifact_folders, fp32_twins

Device = SshDevice | PythonDevice | ToolDevice


def parse_device(
    text: str,
    *,
    python: str | None,
    folder: str | None,
    install: bool,
    config: Path | None,
    benchmark_model: str | None,
    delegate: Delegate | None,
) -> Device:
    """`ssh://user@host:port` or `adb:SERIAL`, with the options that belong to it; None leaves one out.

    Args:
        text: That.
        python: As in `SshDevice` and `PythonDevice`.
        folder: As in `SshDevice` and `PythonDevice`.
        install: As in `SshDevice`.
        config: As in `SshDevice`.
        benchmark_model: As in `ToolDevice`; over adb, None has the device's Python measure.
        delegate: As in `ToolDevice`.

    Raises:
        DeviceError: It is neither, or has an option of the other.
    """
    if folder is not None and not folder.startswith("/"):
        raise DeviceError(f"--device-folder: expected an absolute path on the device, found {folder}")
    if text.startswith("adb:"):
        if not install or config is not None:
            raise DeviceError(f"{text}: leave --no-install and --ssh-config out; they are for ssh")
        serial = parse_adb(text).serial
        if benchmark_model is None:
            if delegate is not None:
                raise DeviceError(f"{text}: --delegate is for --benchmark-model; pass that, or leave it out")
            return PythonDevice(serial, python or TERMUX_PYTHON, folder)
        if python is not None or folder is not None:
            raise DeviceError(f"{text}: leave --device-python and --device-folder out, or --benchmark-model")
        return ToolDevice(serial, benchmark_model, delegate or "none")
    if benchmark_model is not None or delegate is not None:
        raise DeviceError(f"{text}: leave --benchmark-model and --delegate out; they are for adb")
    return replace(parse_ssh(text), python=python or "python3", install=install, folder=folder, config=config)


def bench_on_device(artifact: Path, device: Device, *, threads: int, seconds: float, console: Console) -> DeviceResult:
    """Measures artifacts on a device, and tests them where it has Python; against FP32 where the build kept the twins.

    Args:
        artifact: An artifact folder, or a build's folder.
        device: Where, and by what; `benchmark_model` measures TFLite alone.
        threads: Of the runtimes there.
        seconds: For each artifact.
        console: Shows progress.

    Raises:
        ArtifactError: No artifact there, or a build without golden vectors.
        DeviceError: See `measure_bundle`, `measure_python_over_adb` and `measure_over_adb`.
    """
    folders = artifact_folders(artifact)
    kept, missing = fp32_twins(folders)
    if isinstance(device, ToolDevice):
        if "tflite" not in folders:
            raise DeviceError(
                f"{artifact}: benchmark_model measures TFLite; expected a tflite artifact, found {[*folders]}"
            )
        missing = {name: place for name, place in missing.items() if name == "tflite"}
    for name, place in missing.items():
        console.warn(f"{place} is not there, so {name} has no FP32 to compare with; build with --keep-fp32")
    if isinstance(device, ToolDevice):
        with console.step(f"Measuring on {device.name}"):
            return measure_over_adb(device, folders["tflite"], kept.get("tflite"), threads=threads, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="vitedge-") as temporary:
        bundle = Path(temporary) / "bundle"
        with console.step(f"Bundling {', '.join(folders)}"):
            write_bundle(gather([artifact], fp32="kept"), bundle)
        with console.step(f"Testing and measuring on {device.name}"):
            if isinstance(device, PythonDevice):
                return measure_python_over_adb(device, bundle, threads=threads, seconds=seconds)
            return measure_bundle(device, bundle, threads=threads, seconds=seconds)
