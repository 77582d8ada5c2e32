"""What is read from an Android device: recorded answers, devices that say little, and what makes a run doubtful."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.benchmarks import android
from vitedge.benchmarks.adb import AdbDevice
from vitedge.benchmarks.android import (
    Android,
    AndroidState,
    parse_identity,
    parse_state,
    read_state,
    state_after,
    state_flags,
)
from vitedge.benchmarks.devices import DeviceError

QUIET = AndroidState(
    frequency_mhz=3000.0,
    frequency_limit_mhz=3000.0,
    temperature_celsius=40.0,
    zones_celsius={"cpu-0": 40.0},
    thermal_status="none",
    battery_percent=80.0,
    battery_status="discharging",
    battery_celsius=30.0,
    power_saving=False,
)
PHONE = parse_identity(
    "==vitedge soc\nTensor G3\n==vitedge architecture\narm64-v8a\n==vitedge maxima\n"
    "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq:1704000\n"
    "/sys/devices/system/cpu/cpu8/cpufreq/cpuinfo_max_freq:3000000\n"
)


def test_a_device_that_is_gone_afterwards_is_a_doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was measured is kept; before a measurement it is an error."""

    def gone(device: AdbDevice, *_: str) -> str:
        raise DeviceError(f"{device.name}: offline")

    monkeypatch.setattr(android, "ask", gone)
    state, doubts = state_after(AdbDevice("R5"))
    assert state == parse_state("")
    assert doubts == ("nothing is known of the device's state afterwards: adb:R5: offline",)
    with pytest.raises(DeviceError, match="adb:R5: offline"):
        read_state(AdbDevice("R5"))


def test_identity_of_one_that_says_little() -> None:
    expected = Android(
        cpu_model="Tensor G3",
        architecture="arm64-v8a",
        system="Android",
        product=None,
        soc="Tensor G3",
        soc_manufacturer=None,
        android_version=None,
        kernel=None,
        isa_flags=(),
        governor=None,
        max_frequency_mhz=3000.0,
    )
    assert expected == PHONE
    assert parse_identity("").cpu_model is None


def test_state() -> None:
    state = parse_state(
        "==vitedge clocks\n/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq:1200000\n"
        "/sys/devices/system/cpu/cpu7/cpufreq/scaling_cur_freq:2400000\n"
        "/sys/devices/system/cpu/cpu7/cpufreq/scaling_max_freq:2800000\n"
        "==vitedge zones\n/sys/class/thermal/thermal_zone0/type:cpu-0-0\n/sys/class/thermal/thermal_zone1/type:skin\n"
        "/sys/class/thermal/thermal_zone0/temp:51500\n/sys/class/thermal/thermal_zone1/temp:36000\n"
        "/sys/class/thermal/thermal_zone2/temp:-40000\n"
        "==vitedge thermalservice\nThermal Status: 2\n"
        "==vitedge battery\n  status: 3\n  level: 50\n  scale: 200\n  temperature: 315\n==vitedge low_power\n1\n"
    )
    assert (state.frequency_mhz, state.frequency_limit_mhz, state.temperature_celsius) == (2400.0, 2800.0, 51.5)
    assert state.zones_celsius == {"cpu-0-0": 51.5, "skin": 36.0}
    assert (state.thermal_status, state.battery_percent, state.battery_status) == ("moderate", 25.0, "discharging")
    assert (state.battery_celsius, state.power_saving) == (31.5, True)


def test_temperature_of_androids_thermal_service_where_zones_are_locked() -> None:
    """Of the current temperatures of CPUs, neither cached ones nor the skin's."""
    state = parse_state(
        "==vitedge thermalservice\nThermal Status: 9\n"
        "Cached temperatures:\n Temperature{mValue=99.0, mType=0, mName=CPU0, mStatus=0}\n"
        "Current temperatures from HAL:\n Temperature{mValue=42.5, mType=0, mName=CPU0, mStatus=0}\n"
        " Temperature{mValue=77.0, mType=3, mName=skin, mStatus=0}\nCurrent cooling devices from HAL:\n"
    )
    assert (state.temperature_celsius, state.thermal_status, state.power_saving) == (42.5, "status 9", None)


def test_quiet_device_raises_no_flag() -> None:
    assert list(state_flags(PHONE, QUIET, QUIET)) == []
    nothing = parse_state("")
    assert list(state_flags(parse_identity(""), nothing, nothing)) == []


@pytest.mark.parametrize(
    ("after", "flag"),
    [
        (replace(QUIET, power_saving=True), "power saving is on, which lowers the clock: turn it off"),
        (replace(QUIET, battery_percent=19.0), "the battery is at 19 %: the device may save power; charge it"),
        (replace(QUIET, thermal_status="severe"), "thermal status was severe: it throttles; let the device cool"),
        (replace(QUIET, frequency_limit_mhz=2000.0), "limits the clock to 2000 of 3000 MHz: throttling, or"),
        (replace(QUIET, temperature_celsius=52.0), "the CPU warmed by 12 °C to 52 °C: longer runs may throttle"),
    ],
)  # fmt: skip
def test_flags(after: AndroidState, flag: str) -> None:
    (found,) = state_flags(PHONE, QUIET, after)
    assert flag in found


@given(
    st.lists(st.sampled_from(["clocks", "zones", "thermalservice", "battery", "low_power", "cpuinfo", "soc"])),
    st.text(),
)
def test_any_answer_can_be_read(names: list[str], text: str) -> None:
    """A device may print anything; it then says less, and nothing breaks."""
    said = "".join(f"==vitedge {name}\n{text}\n" for name in names)
    parse_identity(said)
    parse_state(said)
