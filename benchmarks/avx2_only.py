"""Runs a command as on a CPU with AVX2 and without AVX-512, VNNI and AMX: for benchmarks of what such CPUs reach.

    python -m vitedge.benchmarks.avx2_only vitedge bench out --threads 1

ONNX Runtime, LiteRT, OpenVINO, PyTorch and numpy choose their kernels by the `cpuid` instruction, which most of them
give no switch for. Here the dynamic linker replaces it, in memory and in their libraries alone, by a trap whose
handler leaves out vector and matrix extensions newer than AVX2 (`avx2_only.c`); vendor and model stay this CPU's. No
file is changed, and processes that the command starts are held as well. The kernels then are those of older CPUs, but
clock, caches and ports are those of this one: ratios of two models carry over to other CPUs far better than
milliseconds do.

glibc chooses its own, memcpy for one, by its tunables, which are set too. Needs Linux on x86-64, glibc, gcc and
objdump. At the end it prints which libraries asked, and how often; the exit code is the command's.
"""

import importlib.util
import os
import platform
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vitedge.benchmarks.cpuid_sites import cpuid_sites
from vitedge.benchmarks.machine import AVX2_ONLY
from vitedge.benchmarks.process import BenchmarkError

_SOURCE = Path(__file__).with_name("avx2_only.c")
_PACKAGES = ("onnxruntime", "ai_edge_litert", "openvino", "torch", "numpy")
_TUNABLES = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512CD,-AVX512DQ"


@dataclass(frozen=True)
class Hold:
    """What holds a process: its environment, and the libraries and their `cpuid` instructions (by `cpuid_sites`)."""

    environment: Mapping[str, str]
    folder: Path
    sites: Sequence[tuple[int, Path]]

    def answers(self) -> Counter[str]:
        """How often each library, by file name, has asked so far, in all processes together."""
        counts = struct.unpack(f"={len(self.sites)}Q", (self.folder / "answers").read_bytes())
        asked = Counter[str]()
        for (_, library), count in zip(self.sites, counts, strict=True):
            asked[library.name] += count
        return +asked


@contextmanager
def holding() -> Iterator[Hold]:
    """Makes what holds processes to AVX2; it is removed at the end of the block.

    Yields:
        The hold: a process that is started with its environment is held, and so are those that it starts.

    Raises:
        BenchmarkError: Not Linux on x86-64, or gcc or objdump is missing or fails.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise BenchmarkError(f"expected Linux on x86_64, found {sys.platform} on {platform.machine()}")
    sites = [(address, library) for library in _libraries() for address in cpuid_sites(library)]
    with tempfile.TemporaryDirectory(prefix="vitedge-avx2-") as name:
        folder = Path(name)
        (folder / "sites").write_text("".join(f"{address:x} {library}\n" for address, library in sites))
        (folder / "answers").write_bytes(bytes(8 * len(sites)))
        auditor = _compiled(folder)
        held = {AVX2_ONLY: name, "LD_AUDIT": str(auditor), "GLIBC_TUNABLES": _TUNABLES}
        yield Hold({**os.environ, **held}, folder, sites)


def _libraries() -> list[Path]:
    """The shared libraries of the packages that are installed, and of the folders that wheels put beside them."""
    found = set[Path]()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for place in (Path(folder), Path(f"{folder}.libs")):
                found |= {path.resolve() for path in place.rglob("*.so*") if path.is_file() and path.stat().st_size}
    return sorted(found)


def _compiled(folder: Path) -> Path:
    auditor = folder / "avx2_only.so"
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(_SOURCE), "-o"]
    try:
        subprocess.run([*command, str(auditor)], capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise BenchmarkError("gcc is missing; install Debian's gcc and libc6-dev") from error
    except subprocess.CalledProcessError as error:
        raise BenchmarkError(f"gcc: {error.stderr.strip()}") from error
    return auditor


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that is given, and says which libraries were held; its exit code, or 2 if it cannot be run."""
    command = list(sys.argv[1:] if argv is None else argv)
    if command[:1] == ["--"]:
        del command[0]
    if not command or command[0] in ("-h", "--help"):
        sys.stderr.write(__doc__ or "")
        return 2
    try:
        with holding() as hold:
            # The commands of this Python's environment first, activated or not.
            path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
            code = subprocess.run(command, env={**hold.environment, "PATH": path}, check=False).returncode
            asked = ", ".join(f"{library} {count}" for library, count in sorted(hold.answers().items()))
    except OSError as error:
        sys.stderr.write(f"{command[0]}: cannot be run: {error.strerror}\n")
        return 2
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    said = f"held to AVX2; answers to cpuid: {asked}" if asked else "nothing was held: no library of this Python asked"
    sys.stderr.write(f"{said}\n")
    return code if code >= 0 else 128 - code  # ended by a signal: as shells say it


if __name__ == "__main__":
    sys.exit(main())
