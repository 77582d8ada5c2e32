"""An ARM64 user-space for tests, under qemu: Debian's Python, and the runtimes' own wheels for aarch64.

Packages are unpacked into a folder, and `qemu-aarch64-static -L FOLDER` resolves libraries there. It takes about ten
seconds.

Two things that fail otherwise: onnxruntime crashes on the host's x86 `/proc/cpuinfo`, so each CPU has a folder with
one of its own; and qemu's `-cpu max` computes garbage in SME, so the CPUs here are real ones.

    python -m tests.arm64 BUILD [RUNTIME …]

runs the self-test of a build's bundle on each CPU, runtime by runtime; a ViT-S takes three to six minutes each.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tests.debian import run, unpack
from tests.unpacked import unpacked
from vitedge.benchmarks.bundle import gather, write_bundle
from vitedge.benchmarks.machine import describe_machine

_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1", "zlib1g")
_WHEELS = ("numpy", "onnxruntime", "openvino", "ai-edge-litert")
_PLATFORMS = ("2_17", "2_27", "2_28", "2_34", "2_35")
# Model: CPU part of /proc/cpuinfo, and its features that matter here; the first has no dot product of bytes.
CPUS: Mapping[str, tuple[str, str]] = {
    "cortex-a72": ("0xd08", "fp asimd evtstrm aes pmull sha1 sha2 crc32"),
    "neoverse-n1": ("0xd0c", "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc asimddp"),
}
_CPUINFO = "processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {part}\n"

needs_arm64 = pytest.mark.skipif(
    os.environ.get("CI") is None and not (shutil.which("qemu-aarch64-static") and shutil.which("apt-get")),
    reason="needs Debian's apt and qemu-user-static",
)


class Arm64:
    """The user-space, unpacked if nobody did."""

    def __init__(self) -> None:
        self._folder = unpacked("arm64", _make)

    @property
    def site(self) -> Path:
        """Where the runtimes' Python packages are."""
        return self._folder / "site"

    def emulator(self, cpu: str, **environment: str) -> tuple[str, ...]:
        """Words before a program for aarch64; the environment is the program's only, not the emulator's."""
        settings = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
        return ("qemu-aarch64-static", "-cpu", cpu, "-L", str(self._folder / cpu), *settings)

    def python(self, cpu: str, *arguments: str, cwd: Path, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs Python on a CPU model, in a folder, with numpy and the runtimes."""
        environment = {"PYTHONPATH": str(self.site), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
        command = [*self.emulator(cpu), str(self._folder / "root" / "usr" / "bin" / "python3.11"), *arguments]
        return subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=timeout
        )


def _make(folder: Path) -> None:
    """`root`, the same for each CPU with a `/proc/cpuinfo`, and in `site` wheels of the versions that this host has."""
    unpack(_PACKAGES, folder / "root", architecture="arm64", release="bookworm")
    for cpu, (part, features) in CPUS.items():
        (folder / cpu / "proc").mkdir(parents=True)
        (folder / cpu / "proc" / "cpuinfo").write_text(_CPUINFO.format(part=part, features=features))
        for path in (folder / "root").iterdir():
            (folder / cpu / path.name).symlink_to(Path("..") / "root" / path.name)
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in _WHEELS]
    platforms = [part for version in _PLATFORMS for part in ("--platform", f"manylinux_{version}_aarch64")]
    platforms += ["--platform", "manylinux2014_aarch64"]
    target = ["--target", str(folder / "site"), "--python-version", "3.11", "--implementation", "cp"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
    run([*pip, *target, *platforms, *wanted])


def bundle_for_arm64(build: Path, out: Path) -> Path:
    """A build's bundle, made as on a CPU with VNNI.

    On others `vitedge bundle` refuses OpenVINO's artifact for ARM64, as it saturates there. Then what it gave on this
    host, and a bound that comes of it, mean nothing; what it gives on ARM64, against FP32, does.
    """
    machine = describe_machine()
    machine = replace(machine, isa_flags=(*machine.isa_flags, "avx512_vnni"))
    with mock.patch("vitedge.benchmarks.bundle.describe_machine", lambda: machine):
        write_bundle(gather([build], fp32="none"), out)
    return out


def main(build: str, *runtimes: str) -> None:
    arm64 = Arm64()
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_for_arm64(Path(build), Path(folder) / "bundle")
        for runtime in runtimes or sorted(path.name for path in (bundle / "artifacts").iterdir()):
            for cpu in CPUS:
                words = ("-m", "vitedge.device", "selftest", "--artifact", runtime)
                result = arm64.python(cpu, *words, cwd=bundle, timeout=7200)
                print(f"{cpu}\n{result.stdout}{result.stderr}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
