"""What an Android device says of itself: what it is, and what changes while it measures.

All is asked in the device's shell, by commands that need no root. Devices differ in what they let the shell's user
read: what one does not tell is None, and nothing is guessed. Sources: `dumpsys battery` and `dumpsys thermalservice`
(Android 10 on), Linux's cpufreq and thermal zones.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitedge.benchmarks.adb import AdbDevice, ask
from vitedge.benchmarks.devices import DeviceError
from vitedge.benchmarks.machine import Sensors, cpu_model, isa_flags

_MARK = "==vitedge "
_CPUFREQ, _THERMAL = "/sys/devices/system/cpu/cpu*/cpufreq", "/sys/class/thermal/thermal_zone*"
_SENSORS: Mapping[str, str] = {
    "clocks": f"grep -sH . {_CPUFREQ}/scaling_cur_freq {_CPUFREQ}/scaling_max_freq",
    "zones": f"grep -sH . {_THERMAL}/type {_THERMAL}/temp",
    "thermalservice": "dumpsys thermalservice",
}
_STATE: Mapping[str, str] = {
    **_SENSORS,
    "battery": "dumpsys battery",
    "low_power": "settings get global low_power",
}
_PROPERTIES = {
    "soc": "ro.soc.model",
    "soc_manufacturer": "ro.soc.manufacturer",
    "product": "ro.product.model",
    "android_version": "ro.build.version.release",
    "architecture": "ro.product.cpu.abi",
}
_IDENTITY: Mapping[str, str] = {
    **{name: f"getprop {name_there}" for name, name_there in _PROPERTIES.items()},
    "kernel": "uname -r",
    "cpuinfo": "cat /proc/cpuinfo",
    "governors": f"grep -sh . {_CPUFREQ}/scaling_governor",
    "maxima": f"grep -sH . {_CPUFREQ}/cpuinfo_max_freq",
}
# android.os.BatteryManager.BATTERY_STATUS_* and android.os.PowerManager.THERMAL_STATUS_*
_BATTERY = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
_THERMAL_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_LOW_BATTERY = 20.0  # percent, where Android offers to save power
_CAP_RATIO = 0.95
_WARMING_CELSIUS = 10.0


def _script(commands: Mapping[str, str]) -> str:
    return "; ".join(f"echo '{_MARK}{name}'; {command} 2>/dev/null" for name, command in commands.items()) + "; true"


SENSORS_SCRIPT = _script(_SENSORS)
SENSORS_BEGIN = f"{_MARK}{next(iter(_SENSORS))}\n"
STATE_SCRIPT = _script(_STATE)
IDENTITY_SCRIPT = _script(_IDENTITY)


@dataclass(frozen=True)
class Android:
    """The device; None where it does not say. `architecture` is the ABI; `max_frequency_mhz` of its fastest core."""

    cpu_model: str | None
    architecture: str | None
    system: str
    product: str | None
    soc: str | None
    soc_manufacturer: str | None
    android_version: str | None
    kernel: str | None
    isa_flags: tuple[str, ...]
    governor: str | None
    max_frequency_mhz: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class AndroidState:
    """What changes; None where the device does not say.

    `frequency_mhz` and `frequency_limit_mhz` are of the fastest core, the latter what the system allows it now;
    `temperature_celsius` is of the hottest sensor of the CPU, `zones_celsius` of all that are readable.
    `thermal_status` is Android's word for how much it throttles.
    """

    frequency_mhz: float | None
    frequency_limit_mhz: float | None
    temperature_celsius: float | None
    zones_celsius: Mapping[str, float]
    thermal_status: str | None
    battery_percent: float | None
    battery_status: str | None
    battery_celsius: float | None
    power_saving: bool | None

    @property
    def sensors(self) -> Sensors:
        return Sensors(self.frequency_mhz, self.temperature_celsius)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def parse_identity(text: str) -> Android:
    """Reads what `IDENTITY_SCRIPT` printed."""
    found = _sections(text)
    told = {name: found.get(name, "").strip() or None for name in (*_PROPERTIES, "kernel")}
    board = " ".join(told[name] or "" for name in ("soc_manufacturer", "soc")).strip()
    cpuinfo = found.get("cpuinfo", "")
    return Android(
        cpu_model=cpu_model(cpuinfo, board),
        system=" ".join(filter(None, ("Android", told["android_version"]))),
        isa_flags=isa_flags(cpuinfo),
        governor=", ".join(sorted(set(found.get("governors", "").split()))) or None,
        max_frequency_mhz=_highest_mhz(found.get("maxima", ""), "cpuinfo_max_freq"),
        **told,
    )


def parse_state(text: str) -> AndroidState:
    """Reads what `STATE_SCRIPT`, or `SENSORS_SCRIPT`, printed."""
    found = _sections(text)
    clocks, thermal, battery = (found.get(name, "") for name in ("clocks", "thermalservice", "battery"))
    zones = _zones(found.get("zones", ""))
    of_cpu = [celsius for name, celsius in zones.items() if re.search("cpu|pkg|soc", name, re.IGNORECASE)]
    level, scale = _field(battery, "level"), _field(battery, "scale")
    tenths, status, low_power = _field(battery, "temperature"), _field(battery, "status"), found.get("low_power", "")
    return AndroidState(
        frequency_mhz=_highest_mhz(clocks, "scaling_cur_freq"),
        frequency_limit_mhz=_highest_mhz(clocks, "scaling_max_freq"),
        temperature_celsius=max(of_cpu or _hal_celsius(thermal), default=None),
        zones_celsius=zones,
        thermal_status=_thermal_status(thermal),
        battery_percent=None if level is None or not scale else 100 * level / scale,
        battery_status=None if status is None else _BATTERY.get(int(status), f"status {status:g}"),
        battery_celsius=None if tenths is None else tenths / 10,
        power_saving={"0": False, "1": True}.get(low_power.strip()),
    )


def state_flags(device: Android, before: AndroidState, after: AndroidState) -> Iterator[str]:
    """What to doubt about everything that was measured between two states."""
    if before.power_saving or after.power_saving:
        yield "power saving is on, which lowers the clock: turn it off"
    if after.battery_percent is not None and after.battery_percent < _LOW_BATTERY:
        yield f"the battery is at {after.battery_percent:.0f} %: the device may save power; charge it"
    throttled = [state.thermal_status for state in (before, after) if state.thermal_status not in (None, "none")]
    if throttled:
        yield f"Android's thermal status was {throttled[-1]}: it throttles; let the device cool"
    limit, most = after.frequency_limit_mhz, device.max_frequency_mhz
    if limit is not None and most is not None and limit < _CAP_RATIO * most:
        yield f"the system limits the clock to {limit:.0f} of {most:.0f} MHz: throttling, or power saving"
    first, last = before.temperature_celsius, after.temperature_celsius
    if first is not None and last is not None and last - first >= _WARMING_CELSIUS:
        yield f"the CPU warmed by {last - first:.0f} °C to {last:.0f} °C: longer runs may throttle"


def identify(device: AdbDevice) -> Android:
    """What a device is; raises `DeviceError` if it does not answer."""
    return parse_identity(ask(device, IDENTITY_SCRIPT, "asking what it is"))


def read_state(device: AdbDevice) -> AndroidState:
    """The state of a device now; raises `DeviceError` if it does not answer."""
    return parse_state(ask(device, STATE_SCRIPT, "asking for its state"))


def state_after(device: AdbDevice) -> tuple[AndroidState, tuple[str, ...]]:
    """Its state after a measurement, which is not lost if the device does not tell: then there is a doubt."""
    try:
        return read_state(device), ()
    except DeviceError as error:
        return parse_state(""), (f"nothing is known of the device's state afterwards: {error}",)


def _sections(text: str) -> dict[str, str]:
    """What each command printed, by its name."""
    parts = re.split(rf"^{_MARK}(\w+)\r?\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _rows(text: str, name: str) -> dict[str, str]:
    """Contents of the files of a name, by folder, of what `grep -H` printed."""
    found = re.findall(rf"^(\S+)/{name}:(.*\S)", text, re.MULTILINE)
    return dict(found)


def _highest_mhz(text: str, name: str) -> float | None:
    return max((int(value) / 1000 for value in _rows(text, name).values() if value.isdecimal()), default=None)


def _zones(text: str) -> dict[str, float]:
    """Temperatures by the sensor's name; the hottest of those that share one. Absent sensors read as 0 or less."""
    names, zones = _rows(text, "type"), dict[str, float]()
    for folder, value in _rows(text, "temp").items():
        name = names.get(folder, folder.rpartition("/")[2])
        if value.isdecimal() and int(value) > 0:
            zones[name] = max(int(value) / 1000, zones.get(name, 0.0))
    return zones


def _hal_celsius(thermal: str) -> list[float]:
    """Of the CPU's sensors that Android's thermal service reads; type 0 is the CPU."""
    current = thermal.partition("Current temperatures from HAL:")[2]
    found = re.findall(r"\bTemperature\{mValue=(\d+(?:\.\d+)?), mType=0,", current)
    return [float(value) for value in found]


def _thermal_status(thermal: str) -> str | None:
    found = re.search(r"Thermal Status: (\d+)", thermal)
    if found is None:
        return None
    number = int(found[1])
    return _THERMAL_STATUS[number] if number < len(_THERMAL_STATUS) else f"status {number}"


def _field(battery: str, name: str) -> float | None:
    found = re.search(rf"^\s*{name}: (-?\d+)", battery, re.MULTILINE)
    return None if found is None else float(found[1])
