"""What is read from /proc and /sys, on made-up machines and on this one."""

import json
import os
import time
from pathlib import Path

import pytest

from vitedge.benchmarks import machine
from vitedge.benchmarks.machine import Sensors, State, cpu_times, describe_machine, read_sensors, read_state

X86 = """processor\t: 0
model name\t: AMD EPYC 7B13
cpu MHz\t\t: 2449.998
flags\t\t: fpu sse2 ssse3 avx2 fma
power management:

processor\t: 1
model name\t: AMD EPYC 7B13
cpu MHz\t\t: 3100.5
flags\t\t: fpu sse2 ssse3 avx2 fma
"""
ARM_CORE = "processor\t: {}\nFeatures\t: fp asimd asimddp i8mm\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
# Two kinds of cores, and one newer than the table.
ARM = "".join(ARM_CORE.format(number, part) for number, part in enumerate(["0xd05"] * 4 + ["0xd41"] * 3 + ["0xfff"]))


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_x86(tmp_path: Path) -> None:
    found = describe_machine(
        tree(
            tmp_path,
            {
                "proc/cpuinfo": X86,
                "proc/meminfo": "MemTotal:       24684084 kB\nMemFree: 1 kB\n",
                "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            },
        )
    )
    assert found.cpu_model == "AMD EPYC 7B13"
    assert found.isa_flags == ("ssse3", "fma", "avx2")
    assert found.frequency_mhz == 3100.5
    assert found.memory_total_bytes == 24684084 * 1024
    assert found.system == "Debian GNU/Linux 12 (bookworm)"


def test_arm_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_usable_cores", lambda: (0, 4))
    cores = "sys/devices/system/cpu"
    found = describe_machine(
        tree(
            tmp_path,
            {
                "proc/cpuinfo": ARM,
                "proc/device-tree/model": "Some Board 5\0",
                f"{cores}/cpu0/cpufreq/scaling_governor": "schedutil\n",
                f"{cores}/cpu0/cpufreq/scaling_cur_freq": "600000\n",
                f"{cores}/cpu0/cpufreq/cpuinfo_max_freq": "1800000\n",
                f"{cores}/cpu4/cpufreq/scaling_governor": "performance\n",
                f"{cores}/cpu4/cpufreq/scaling_cur_freq": "2400000\n",
                f"{cores}/cpu4/cpufreq/cpuinfo_max_freq": "2400000\n",
                f"{cores}/cpu5/cpufreq/scaling_governor": "powersave\n",  # not a core that we may use
                "sys/class/thermal/thermal_zone0/type": "battery\n",
                "sys/class/thermal/thermal_zone0/temp": "90000\n",
                "sys/class/thermal/thermal_zone1/type": "cpu-thermal\n",
                "sys/class/thermal/thermal_zone1/temp": "51500\n",
            },
        )
    )
    assert found.cpu_model == "Some Board 5, 4× Cortex-A55 + 3× Cortex-A78 + 1× part 0xfff"
    assert found.isa_flags == ("asimd", "asimddp", "i8mm")
    assert (found.usable_cores, found.affinity) == (2, (0, 4))
    assert found.governor == "performance, schedutil"
    assert (found.frequency_mhz, found.max_frequency_mhz) == (2400.0, 2400.0)
    assert found.temperature_celsius == 51.5


def test_pinned_cores_are_the_ones_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_usable_cores", lambda: (0, 4))
    cores = "sys/devices/system/cpu"
    board = tree(
        tmp_path,
        {
            f"{cores}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cores}/cpu0/cpufreq/scaling_cur_freq": "600000\n",
            f"{cores}/cpu4/cpufreq/scaling_governor": "performance\n",
            f"{cores}/cpu4/cpufreq/scaling_cur_freq": "2400000\n",
        },
    )
    assert read_sensors(board).frequency_mhz == 2400
    assert read_sensors(board, cpus=(0,)) == Sensors(600, None)
    found = describe_machine(board, cpus=(0,))
    assert (found.governor, found.frequency_mhz, found.usable_cores) == ("powersave", 600, 2)


def test_state(tmp_path: Path) -> None:
    """The battery is the machine's own, not that of what is connected to it."""
    supplies, clock = "sys/class/power_supply", "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"
    board = {
        clock: "600000\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "51500\n",
        f"{supplies}/AC/type": "Mains\n",
        f"{supplies}/hid-mouse/type": "Battery\n",
        f"{supplies}/hid-mouse/scope": "Device\n",
        f"{supplies}/hid-mouse/capacity": "5\n",
    }
    assert read_state(tree(tmp_path / "board", board), cpus=(0,)) == State(600, 51.5, None, None)
    own = {f"{supplies}/BAT0/type": "Battery\n", f"{supplies}/BAT0/capacity": "83\n"}
    laptop = tree(tmp_path / "laptop", {**board, **own, f"{supplies}/BAT0/status": "Not charging\n"})
    assert read_state(laptop, cpus=(0,)) == State(600, 51.5, 83, "not charging")
    silent = tree(tmp_path / "silent", {f"{supplies}/BAT0/type": "Battery\n"})
    assert read_state(silent) == State(None, None, None, None)


def test_cpu_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    text = "cpu  1000 200 300 4000 500 60 70 80 900 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n"
    # Guests' 900 are in user time already.
    found = cpu_times(tree(tmp_path, {"proc/stat": text}))
    assert found is not None
    assert (found.busy, found.steal, found.total) == pytest.approx((16.3, 0.8, 62.1))


@pytest.mark.parametrize("text", [None, "", "cpu  1 2 3\n", "cpu0 1 2 3 4 5 6 7 8\n"])
def test_cpu_times_that_are_not_told(tmp_path: Path, text: str | None) -> None:
    assert cpu_times(tree(tmp_path, {} if text is None else {"proc/stat": text})) is None


def test_cpu_times_of_this_machine_grow() -> None:
    before = cpu_times()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    after = cpu_times()
    assert before is not None
    assert after is not None
    assert after.busy - before.busy > 0.05
    assert after.total - before.total >= after.busy - before.busy - 0.01  # the kernel counts in hundredths


def test_what_the_system_does_not_say_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "getloadavg")
    found = describe_machine(tree(tmp_path, {"proc/meminfo": "garbage", "proc/cpuinfo": "cpu MHz : unknown\n"}))
    unknown = {name for name, value in found.to_json().items() if value is None}
    assert unknown == {
        "cpu_model",
        "governor",
        "frequency_mhz",
        "max_frequency_mhz",
        "temperature_celsius",
        "memory_total_bytes",
        "load_average_1min",
    }
    assert found.isa_flags == ()
    assert (found.usable_cores, found.affinity) == (os.cpu_count(), ())


def test_this_machine_as_json() -> None:
    document = json.loads(json.dumps(describe_machine().to_json(), allow_nan=False))
    assert document["usable_cores"] == len(os.sched_getaffinity(0))
    assert document["isa_flags"]
    assert document["memory_total_bytes"] > 1 << 28
