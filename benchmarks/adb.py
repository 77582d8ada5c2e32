"""Files and commands on an Android device, by the `adb` program of this machine; nothing stays there.

adb talks to the device with its own server and key. Commands run in the device's shell, which gets one line: what
comes from outside is quoted for it.
"""

import re
import secrets
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitedge.benchmarks.devices import DeviceError, DeviceResult, cleaned_up, last_line
from vitedge.runtimes.file_records import FileRecord

# The one place where Android lets the shell's user write and execute.
_PLACE = "/data/local/tmp"
_SPACE_FACTOR = 1.1
_SECONDS, _PUSH_SECONDS, _RETURN_SECONDS = 60.0, 600.0, 15.0
_NO_COMMAND = 127  # the shell's
_END = "vitedge-end:"
NO_ADB = "adb is not installed here: install Android's platform-tools (Debian: adb)"
_PID = "pid"
# What `adb devices` says of a device that is no use, and what to do about it.
_ADVICE: Mapping[str, str] = {
    "unauthorized": "unlock it, and allow USB debugging by this computer in the dialog that it shows",
    "authorizing": "unlock it, and allow USB debugging by this computer in the dialog that it shows",
    "offline": "plug it in again or restart it, then: adb reconnect offline",
    "no permissions": "let this user access USB devices (udev rules, group plugdev), then: adb kill-server",
}


@dataclass(frozen=True)
class AdbDevice:
    """A device, by the serial that `adb devices` lists."""

    serial: str

    @property
    def name(self) -> str:
        return f"adb:{self.serial}"


def parse_adb(text: str) -> AdbDevice:
    """`adb:SERIAL`, with a serial as `adb devices` prints it.

    Raises:
        DeviceError: It is not that.
    """
    serial = text.removeprefix("adb:")
    if not text.startswith("adb:") or not re.fullmatch(r"\S+", serial):
        raise DeviceError(f"--device: expected adb:SERIAL with a serial that adb devices lists, found {text}")
    return AdbDevice(serial)


def check_ready(device: AdbDevice) -> None:
    """Checks that adb is here, and that the device is listed, authorized and online.

    Raises:
        DeviceError: It is not, with what to do.
    """
    states = _states()
    found = states.get(device.serial)
    if found is None:
        listed = ", ".join(f"{serial} ({state})" for serial, state in states.items()) or "none"
        raise DeviceError(
            f"{device.name}: adb knows no device of that serial; it lists: {listed}. Plug it in with USB debugging on,"
            " or: adb connect HOST:PORT"
        )
    if found != "device":
        advice = next((words for state, words in _ADVICE.items() if found.startswith(state)), "restart it into Android")
        raise DeviceError(f"{device.name}: expected it ready, found it {found}; {advice}")


def check_space(device: AdbDevice, needed_bytes: int) -> None:
    """Checks the free space where `in_private_folder` makes its folder.

    Raises:
        DeviceError: It is too little, or the device does not say.
    """
    said = ask(device, f"df -P -k {_PLACE}", "df")
    fields = said.splitlines()[-1].split() if said.strip() else []
    if len(fields) < 6 or not fields[3].isdecimal():
        raise DeviceError(f"{device.name}: expected df to tell the free space in {_PLACE}, found: {said.strip()}")
    free_bytes, needed_bytes = int(fields[3]) << 10, int(needed_bytes * _SPACE_FACTOR)
    if free_bytes < needed_bytes:
        raise DeviceError(
            f"{device.name}: expected {needed_bytes / 1e6:.1f} MB of free space in {_PLACE}, found"
            f" {free_bytes / 1e6:.1f} MB; make room there"
        )


def in_private_folder(device: AdbDevice, work: Callable[[str], DeviceResult]) -> DeviceResult:
    """Works in a new folder on the device that only its shell's user can enter, and removes it.

    Returns:
        What `work` gave for the folder, and what is left there if that could not be removed.

    Raises:
        DeviceError: It cannot be made.
    """
    folder = f"{_PLACE}/vitedge-{secrets.token_hex(8)}"

    def in_new_folder() -> DeviceResult:
        ask(device, f"mkdir -m 700 {folder}", "making a folder")
        return work(folder)

    def clean_up() -> str | None:
        why = _remove(device, folder)
        by_hand = f"remove it: adb -s {device.serial} shell rm -r {folder}"
        return f"{folder} could not be removed ({why}); {by_hand}" if why else None

    return cleaned_up(device.name, folder, in_new_folder, clean_up)


def push(device: AdbDevice, source: Path, destination: str, record: FileRecord) -> str:
    """Copies a file to the device and checks what arrived.

    Returns:
        What was compared: sha256, or size where the device has no sha256sum.

    Raises:
        DeviceError: It did not arrive, or arrived as another.
    """
    result = _adb(device, "push", str(source), destination, seconds=_PUSH_SECONDS)
    if result.returncode:
        check_ready(device)
        raise failure(device, f"copying {source.name}", result)
    found = sha256_there(device, destination)
    if found is None:
        size = ask(device, f"stat -c %s {shlex.quote(destination)}", "stat").strip()
        compared, expected, found = "size", str(record.size_bytes), size
    else:
        compared, expected = "sha256", record.sha256
    if found != expected:
        raise DeviceError(
            f"{device.name}: {source.name} was changed on its way: expected {compared} {expected}, found {found};"
            " try another cable or port"
        )
    return compared


def sha256_there(device: AdbDevice, path: str) -> str | None:
    """SHA-256 of a file on the device; None where it has no sha256sum.

    Raises:
        DeviceError: There is no such file.
    """
    result = shell(device, f"sha256sum {shlex.quote(path)}")
    if result.returncode == _NO_COMMAND:
        return None
    if result.returncode or not result.stdout.strip():
        raise failure(device, f"sha256sum {path}", result)
    return result.stdout.split()[0].removeprefix("\\")  # sha256sum's mark of a name that it had to escape


def ask(device: AdbDevice, script: str, what: str) -> str:
    """What a line in the device's shell prints; the words in it must be quoted.

    Raises:
        DeviceError: It failed there.
    """
    result = shell(device, script)
    if result.returncode:
        raise failure(device, what, result)
    return result.stdout


def shell(device: AdbDevice, script: str, *, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    """Runs a line in the device's shell, whatever its exit code; the words in it must be quoted.

    Raises:
        DeviceError: The connection was lost, or there is no answer within so many seconds.
    """
    return judge(device, _program(shell_command(device, script), seconds))


def shell_command(device: AdbDevice, script: str) -> list[str]:
    """What to run here to run a line in the device's shell; `judge` what it did."""
    # Without the mark at the end a connection that breaks is a success: adb's exit code is 0 then.
    return ["adb", "-s", device.serial, "shell", f"({script}); echo {_END}$?"]


def judge(device: AdbDevice, result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """What the line did in the device's shell, of what `shell_command` did.

    Raises:
        DeviceError: The connection was lost.
    """
    said, end, code = result.stdout.rpartition(_END)
    if not end or not code.strip().isdecimal():
        check_ready(device)
        raise DeviceError(f"{device.name}: the connection was lost ({last_line(result)}); check the cable, try again")
    return subprocess.CompletedProcess(result.args, int(code), said, result.stderr)


def wait(device: AdbDevice) -> None:
    """Gives a cable that wiggled some time to come back.

    Raises:
        DeviceError: It does not.
    """
    _adb(device, "wait-for-device", seconds=_RETURN_SECONDS)


def killable(folder: str, words: Sequence[str]) -> str:
    """A line that runs words, which end when `in_private_folder` removes that folder: adb leaves them running."""
    pid = shlex.quote(f"{folder}/{_PID}")
    start = shlex.quote(f'echo $$ > {pid}; exec "$@"')
    return f"sh -c {start} sh {shlex.join(words)} 2>&1; code=$?; rm -f {pid}"


def failure(device: AdbDevice, what: str, result: subprocess.CompletedProcess[str]) -> DeviceError:
    """The error to raise for a command that failed on the device."""
    return DeviceError(f"{device.name}: {what} failed there (exit code {result.returncode}): {last_line(result)}")


def _remove(device: AdbDevice, folder: str) -> str | None:
    """Ends what runs in it and removes it; why that failed, or None."""
    script = f"[ ! -e {folder}/{_PID} ] || kill -9 $(cat {folder}/{_PID}) 2>/dev/null; rm -rf {folder}"
    try:
        try:
            result = shell(device, script)
        except DeviceError:
            wait(device)
            result = shell(device, script)
    except DeviceError as error:
        return str(error)
    return last_line(result) if result.returncode else None


def _states() -> dict[str, str]:
    """All devices that adb knows, with their states."""
    result = _program(["adb", "devices"], _SECONDS)
    if result.returncode:
        raise DeviceError(f"adb devices failed: {last_line(result)}; try adb kill-server")
    rows = (line.split("\t", 1) for line in result.stdout.splitlines() if "\t" in line)
    return {serial: state.strip() for serial, state in rows}


def _adb(device: AdbDevice, *words: str, seconds: float = _SECONDS) -> subprocess.CompletedProcess[str]:
    return _program(["adb", "-s", device.serial, *words], seconds)


def _program(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        raise DeviceError(NO_ADB) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"no answer within {seconds:g} s: {shlex.join(command)}; is the device awake?") from error
