"""What a measurement was made on: CPU, INT8 instructions, clock, memory, system and how busy it was.

Everything is read from Linux's `/proc` and `/sys`. Where those do not say (another system, a locked-down phone), the
field is None: nothing is guessed.
"""

import os
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from vitedge.runtimes.instruction_sets import ANY, ARM64, kind_of

# Instructions that decide which INT8, bfloat16 and float kernels a runtime picks, by Linux's names in /proc/cpuinfo.
_X86_FLAGS = (
    "ssse3 sse4_1 avx f16c fma avx2 avx_vnni avx_vnni_int8 avx512f avx512bw avx512vl avx512_vnni avx512_bf16"
    " avx512_fp16 amx_tile amx_int8 amx_bf16"
)
_ARM_FLAGS = "neon asimd asimdhp asimddp i8mm bf16 sve sve2 svei8mm svebf16 sme sme2"
_ISA_FLAGS = tuple(f"{_X86_FLAGS} {_ARM_FLAGS}".split())
_NEWER_THAN_AVX2 = ("avx_", "avx512", "amx_")
# Set in processes that `avx2_only.py` holds; the kernel's /proc still says what the CPU itself has.
AVX2_ONLY = "VITEDGE_AVX2_ONLY"

# ARM cores report no name, only a part number of Arm Ltd (implementer 0x41): arch/arm64/include/asm/cputype.h in Linux.
_ARM_PARTS: Mapping[str, str] = MappingProxyType(
    {
        "0xd03": "Cortex-A53",
        "0xd04": "Cortex-A35",
        "0xd05": "Cortex-A55",
        "0xd07": "Cortex-A57",
        "0xd08": "Cortex-A72",
        "0xd09": "Cortex-A73",
        "0xd0a": "Cortex-A75",
        "0xd0b": "Cortex-A76",
        "0xd0c": "Neoverse-N1",
        "0xd0d": "Cortex-A77",
        "0xd40": "Neoverse-V1",
        "0xd41": "Cortex-A78",
        "0xd44": "Cortex-X1",
        "0xd46": "Cortex-A510",
        "0xd47": "Cortex-A710",
        "0xd48": "Cortex-X2",
        "0xd49": "Neoverse-N2",
        "0xd4d": "Cortex-A715",
        "0xd4e": "Cortex-X3",
        "0xd4f": "Neoverse-V2",
        "0xd80": "Cortex-A520",
        "0xd81": "Cortex-A720",
        "0xd82": "Cortex-X4",
    }
)


@dataclass(frozen=True)
class Machine:
    """The machine, as it was when `describe_machine` was called; None where the system does not say.

    `isa_flags` are the instruction sets that matter to INT8 inference, in Linux's spelling; empty means unknown, since
    every CPU that can run a wrapper has one of them. `affinity` are the CPUs that this process may run on, empty where
    the system has no such notion, and `usable_cores` their number, or that of all. `governor`, `frequency_mhz` and
    `max_frequency_mhz` are of those CPUs; of different ones, all governors and the highest frequencies.
    `load_average_1min` counts processes that ran or waited during the last minute.
    """

    cpu_model: str | None
    architecture: str | None
    usable_cores: int | None
    affinity: tuple[int, ...]
    isa_flags: tuple[str, ...]
    governor: str | None
    frequency_mhz: float | None
    max_frequency_mhz: float | None
    temperature_celsius: float | None
    memory_total_bytes: int | None
    system: str | None
    kernel: str | None
    python_version: str
    numpy_version: str
    load_average_1min: float | None

    @property
    def kind(self) -> str:
        """Which INT8 arithmetic its CPU has (`runtimes/instruction_sets.py`)."""
        kind = kind_of(self.isa_flags)
        # Systems other than Linux tell no flags; what ARM64 has at least is known all the same.
        return ARM64 if kind == ANY and self.architecture in ("aarch64", "arm64") else kind

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sensors:
    """What changes while something runs; None where the system does not say."""

    frequency_mhz: float | None
    temperature_celsius: float | None


@dataclass(frozen=True)
class State(Sensors):
    """What a measurement may change, or depend on, before and after it. The battery is that of the machine itself."""

    battery_percent: float | None
    battery_status: str | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class CpuTimes:
    """Seconds that all cores together have spent since the start: at work, stolen by the hypervisor, and in all."""

    busy: float
    steal: float
    total: float


def describe_machine(root: Path = Path("/"), *, cpus: Sequence[int] = ()) -> Machine:
    """Describes the machine that this process runs on.

    Args:
        root: Where `proc`, `sys` and `etc` are.
        cpus: Cores whose governor and frequencies count; empty means all usable ones.

    Returns:
        What is known about it.
    """
    cpuinfo = _text(root / "proc/cpuinfo") or ""
    usable = _usable_cores()
    cores = tuple(cpus) or usable
    sensors = read_sensors(root, cpus=cpus)
    name = cpu_model(cpuinfo, (_text(root / "proc/device-tree/model") or "").strip("\0 \n"))
    flags = isa_flags(cpuinfo)
    if AVX2_ONLY in os.environ:
        name = f"{name or 'CPU'}, held to AVX2"
        flags = tuple(flag for flag in flags if not flag.startswith(_NEWER_THAN_AVX2))
    return Machine(
        cpu_model=name,
        architecture=platform.machine() or None,
        usable_cores=len(usable) or os.cpu_count(),
        affinity=usable,
        isa_flags=flags,
        governor=", ".join(sorted(set(_of_cores(root, cores, "scaling_governor")))) or None,
        frequency_mhz=sensors.frequency_mhz,
        max_frequency_mhz=_highest(_of_cores(root, cores, "cpuinfo_max_freq"), 1000),
        temperature_celsius=sensors.temperature_celsius,
        memory_total_bytes=_memory_total(root),
        system=_system_name(root),
        kernel=f"{platform.system()} {platform.release()}".strip() or None,
        python_version=platform.python_version(),
        numpy_version=np.__version__,
        load_average_1min=_load_average(),
    )


def read_sensors(root: Path = Path("/"), *, cpus: Sequence[int] = ()) -> Sensors:
    """The highest clock of the cores that count (as in `describe_machine`), and the CPU's temperature, now."""
    frequencies = _of_cores(root, tuple(cpus) or _usable_cores(), "scaling_cur_freq")
    frequency_mhz = _highest(frequencies, 1000) or _highest(_fields(_text(root / "proc/cpuinfo") or "", "cpu MHz"), 1)
    return Sensors(frequency_mhz, _temperature(root))


def read_state(root: Path = Path("/"), *, cpus: Sequence[int] = ()) -> State:
    """What `read_sensors` reads, and the battery."""
    sensors = read_sensors(root, cpus=cpus)
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        # A mouse has one too; its scope is Device (Documentation/ABI/testing/sysfs-class-power of Linux).
        if (_word(supply / "type"), _word(supply / "scope")) in (("battery", None), ("battery", "system")):
            percent = next(iter(_numbers([_word(supply / "capacity") or ""])), None)
            return State(sensors.frequency_mhz, sensors.temperature_celsius, percent, _word(supply / "status"))
    return State(sensors.frequency_mhz, sensors.temperature_celsius, None, None)


def cpu_times(root: Path = Path("/")) -> CpuTimes | None:
    """Reads /proc/stat (proc_stat(5)); None where it is absent or locked, as on Android."""
    found = re.search(r"^cpu +(.*)$", _text(root / "proc/stat") or "", re.MULTILINE)
    ticks = _numbers(found[1].split()) if found else []
    if len(ticks) < 8:
        return None
    # Guest time is in user time already.
    user, nice, system, idle, iowait, irq, softirq, steal = (value / os.sysconf("SC_CLK_TCK") for value in ticks[:8])
    busy = user + nice + system + irq + softirq
    return CpuTimes(busy, steal, busy + idle + iowait + steal)


def cpu_model(cpuinfo: str, board: str) -> str | None:
    """The CPU's name, or for ARM the board and the kinds of cores (`4× Cortex-A78 + 4× Cortex-A55`).

    Args:
        cpuinfo: Contents of /proc/cpuinfo.
        board: What is known of the board, if cpuinfo does not name it; may be empty.
    """
    names = _fields(cpuinfo, "model name")
    parts = [_ARM_PARTS.get(part, f"part {part}") for part in _fields(cpuinfo, "CPU part")]
    # 32-bit kernels print a "model name" such as ARMv7 Processor rev 4 that hides which core it is.
    if names and not parts:
        return names[0]
    kinds = " + ".join(f"{count}× {name}" for name, count in Counter(parts).most_common())
    hardware = (_fields(cpuinfo, "Hardware") or [board])[0]
    return ", ".join(text for text in (hardware, kinds) if text) or None


def isa_flags(cpuinfo: str) -> tuple[str, ...]:
    """The instruction sets that matter to INT8 inference, of the contents of /proc/cpuinfo."""
    # x86 says "flags", ARM says "Features"; either is the same for all cores.
    lines = _fields(cpuinfo, "flags") + _fields(cpuinfo, "Features")
    present = set(lines[0].split()) if lines else set()
    return tuple(flag for flag in _ISA_FLAGS if flag in present)


def _usable_cores() -> tuple[int, ...]:
    """Numbers of the cores that this process may run on; empty where the system has no such notion."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):
        return ()


def _of_cores(root: Path, cores: tuple[int, ...], name: str) -> list[str]:
    texts = (_text(root / f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}") for core in cores)
    return [text.strip() for text in texts if text]


def _temperature(root: Path) -> float | None:
    """The hottest of the sensors that are named after the CPU."""
    celsius = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        if re.search("cpu|pkg|soc", _text(zone / "type") or "", re.IGNORECASE):
            celsius += [value / 1000 for value in _numbers([_text(zone / "temp") or ""])]
    return max(celsius, default=None)


def _memory_total(root: Path) -> int | None:
    kibibytes = _numbers(field.removesuffix("kB") for field in _fields(_text(root / "proc/meminfo") or "", "MemTotal"))
    return int(kibibytes[0]) * 1024 if kibibytes else None


def _system_name(root: Path) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(root / "etc/os-release") or "", re.MULTILINE)
    return found[1] if found else platform.system() or None


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _fields(text: str, name: str) -> list[str]:
    """All values of `name : value` lines."""
    return re.findall(rf"^{re.escape(name)}[ \t]*:[ \t]*(.*\S)", text, re.MULTILINE)


def _word(path: Path) -> str | None:
    """The contents of a file of one word, in small letters."""
    return (_text(path) or "").strip().lower() or None


def _highest(texts: list[str], divisor: int) -> float | None:
    return max((value / divisor for value in _numbers(texts)), default=None)


def _numbers(texts: Iterable[str]) -> list[float]:
    """Those of the texts that are numbers."""
    values = []
    for text in texts:
        try:
            values.append(float(text))
        except ValueError:
            continue
    return values


def _text(path: Path) -> str | None:
    """Contents, or None: sensors are absent, unreadable or answer with an I/O error as they please."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
