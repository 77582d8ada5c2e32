"""Tests and measures a bundle on a device that OpenSSH reaches, and leaves the device as it was.

    probe Python and free space ─► a private folder ─► the bundle ─► a virtual environment ─► selftest, bench ─► remove

The `ssh` of this machine does the talking, with its own configuration and keys. It never asks: host keys must be known,
and a key or an agent must open the door. On the device only Python is needed, and all steps are Python. Nothing is put
into a shell unquoted: sshd hands the command line to the user's shell, so that each word is quoted for it. What runs
there ends with the connection: it is watched by a process that ends it when its standard input does.
"""

import json
import os
import re
import secrets
import shlex
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.benchmarks.devices import DeviceError, DeviceResult

_MINIMUM_PYTHON = (3, 11)
_CONNECTION_LOST = 255  # ssh's own exit code
_NO_COMMAND = (126, 127)  # a shell's
_SPACE_FACTOR, _ENVIRONMENT_BYTES = 1.5, 700 << 20  # unpacked while the archive arrives; numpy and three runtimes
_PROBE = (
    "import json, shutil, sys, tempfile; folder = tempfile.gettempdir();"
    " print(json.dumps([list(sys.version_info[:2]), folder, shutil.disk_usage(folder).free]))"
)
_MAKE = "import os, sys; os.mkdir(sys.argv[1], 0o700)"
_UNPACK = "import sys, tarfile; tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall(sys.argv[1])"
# Another process may still be ending, and writing.
_REMOVE = (
    "import shutil, sys, time\nfor last in (False, False, True):\n"
    " try: shutil.rmtree(sys.argv[1]); break\n"
    " except FileNotFoundError: break\n"
    " except OSError:\n  if last: raise\n  time.sleep(1)"
)
_GUARD = (
    "import os, signal, subprocess, sys, threading\n"
    "child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)\n"
    "def watch():\n os.read(0, 1)\n os.killpg(child.pid, signal.SIGKILL)\n"
    "threading.Thread(target=watch, daemon=True).start()\n"
    "code = child.wait(); sys.stdout.flush(); os._exit(code if code >= 0 else 128 - code)"
)
# Nothing that ssh could take for an option; names of hosts keep their case, as aliases of its configuration have one.
_URL = re.compile(
    r"ssh://((?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\])(:(?P<port>\d{1,5}))?/?",
    re.ASCII,
)


@dataclass(frozen=True)
class SshDevice:
    """Where it is, and how to use it.

    `python` is the interpreter there. Unless `install`, that one runs the bundle, with the packages that it has.
    `config` is a file for `ssh -F` in place of the user's own.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    install: bool = True
    config: Path | None = None

    @property
    def name(self) -> str:
        user, port = self.user and f"{self.user}@", self.port and f":{self.port}"
        return f"ssh://{user or ''}{self.host}{port or ''}"


def parse_ssh(text: str) -> SshDevice:
    """`ssh://user@host:port`; user and port may be left to ssh's configuration.

    Raises:
        DeviceError: It is not that.
    """
    found = _URL.fullmatch(text)
    if found is None or int(found["port"] or 22) > 65535:
        raise DeviceError(f"--device: expected local, ssh://user@host:port or adb:SERIAL, found {text}")
    return SshDevice(found["host"].strip("[]"), found["user"], int(found["port"]) if found["port"] else None)


def measure_over_ssh(device: SshDevice, bundle: Path, *, threads: int, seconds: float) -> DeviceResult:
    """Pushes a bundle, tests and measures it there, and removes it, also after an error or an interrupt.

    Args:
        device: Where.
        bundle: A bundle's folder.
        threads: Of the runtimes.
        seconds: For each artifact.

    Raises:
        DeviceError: The device is unreachable, its host key unknown or another one, it has no Python 3.11, too little
            space, or a step failed there.
    """
    size_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    place = _probe(device, int(size_bytes * _SPACE_FACTOR) + (_ENVIRONMENT_BYTES if device.install else 0))
    with _private_folder(device, place) as folder:
        _push(device, bundle, folder)
        python = _environment(device, folder) if device.install else device.python
        options = ["--threads", str(threads), "--json"]
        selftest = _ask(device, folder, [python, "-m", "vitedge.device", "selftest", *options], "the self-test")
        bench = None
        if all(check["step"] != "files" or check["status"] == "pass" for check in selftest["checks"]):
            options += ["--seconds", str(seconds)]
            bench = _ask(device, folder, [python, "-m", "vitedge.device", "bench", *options], "the benchmark")
    return DeviceResult(device.name, selftest, bench)


def _probe(device: SshDevice, needed_bytes: int) -> str:
    """Checks Python and free space; the folder for temporary ones."""
    result = _run(device, [device.python, "-c", _PROBE])
    if result.returncode in _NO_COMMAND:
        raise DeviceError(
            f"{device.name}: found no {device.python} there; install Python 3.11 or newer, or name one with"
            " --device-python"
        )
    version, folder, free_bytes = _reply(device, result, "Python")
    if tuple(version) < _MINIMUM_PYTHON:
        raise DeviceError(
            f"{device.name}: expected Python 3.11 or newer, found {version[0]}.{version[1]}; name another with"
            " --device-python"
        )
    if free_bytes < needed_bytes:
        raise DeviceError(
            f"{device.name}: expected {needed_bytes / 1e6:.0f} MB of free space in {folder}, found"
            f" {free_bytes / 1e6:.0f} MB; make room there, bundle fewer artifacts, or pass --no-install"
        )
    return str(folder)


@contextmanager
def _private_folder(device: SshDevice, place: str) -> Iterator[str]:
    """A new folder on the device that only its user can enter, removed at the end. It is named here, so that no
    interrupt leaves one that nobody knows.
    """
    folder = f"{place.rstrip('/')}/vitedge-{secrets.token_hex(8)}"
    try:
        made = _run(device, [device.python, "-c", _MAKE, folder])
        if made.returncode:
            raise DeviceError(f"{device.name}: cannot make {folder} there: {_last_line(made)}")
        yield folder
    finally:
        try:
            removed = _run(device, [device.python, "-c", _REMOVE, folder])
        except DeviceError as error:
            raise DeviceError(f"{error}; {folder} is left there: remove it when the device is back") from error
        if removed.returncode:
            raise DeviceError(f"{device.name}: {folder} could not be removed ({_last_line(removed)}); remove it there")


def _push(device: SshDevice, bundle: Path, folder: str) -> None:
    """As a tar stream, unpacked while it arrives."""
    command = _command(device, [device.python, "-c", _UNPACK, folder])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # Where the pipe breaks, the other side says why.
        with suppress(BrokenPipeError), tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            archive.add(bundle, ".")
        with suppress(BrokenPipeError):  # closing sends what is left
            process.stdin.close()
        said = process.stderr.read().decode(errors="replace").strip().splitlines()
    if process.returncode:
        raise DeviceError(f"{device.name}: the bundle did not arrive: {said[-1] if said else 'no reason given'}")


def _environment(device: SshDevice, folder: str) -> str:
    """A virtual environment with what the bundle asks for; its Python."""
    python = f"{folder}/venv/bin/python"
    for what, words in (
        ("a virtual environment", [device.python, "-m", "venv", f"{folder}/venv"]),
        ("pip install", [python, "-m", "pip", "install", "--quiet", "--no-input", "-r", f"{folder}/requirements.txt"]),
    ):
        # pip leaves nothing in the user's cache.
        quiet = ("PIP_NO_CACHE_DIR=1", "PIP_DISABLE_PIP_VERSION_CHECK=1")
        result = _run(device, _guarded(device, ["env", f"TMPDIR={folder}", *quiet, *words]))
        if result.returncode:
            raise DeviceError(
                f"{device.name}: {what} failed there: {_last_line(result)}; without a network, install the packages of"
                " requirements.txt there and pass --no-install"
            )
    return python


def _ask(device: SshDevice, folder: str, words: Sequence[str], what: str) -> dict[str, Any]:
    """A command of the bundle's, in its folder; its document."""
    # What runtimes leave in the temporary folder goes with this one.
    result = _run(device, ["cd", folder], _guarded(device, ["env", f"TMPDIR={folder}", *words]))
    found = _reply(device, result, what, allowed=(0, 1))
    if not isinstance(found, dict):
        raise DeviceError(f"{device.name}: {what} printed no document; see what it says when run there")
    return found


def _reply(
    device: SshDevice, result: subprocess.CompletedProcess[str], what: str, allowed: Sequence[int] = (0,)
) -> Any:
    if result.returncode not in allowed:
        raise DeviceError(f"{device.name}: {what} failed there: {_last_line(result)}")
    try:
        return json.loads(result.stdout)
    except ValueError as error:
        raise DeviceError(f"{device.name}: {what} failed there: {_last_line(result)}") from error


def _run(device: SshDevice, *commands: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs words on the device, one command after the other as long as they succeed."""
    read, write = os.pipe()  # standard input that ends when this does: see _GUARD
    try:
        result = subprocess.run(
            _command(device, *commands),
            stdin=read,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError as error:
        raise DeviceError("ssh is not installed here: install OpenSSH's client (Debian: openssh-client)") from error
    finally:
        os.close(read)
        os.close(write)
    if result.returncode == _CONNECTION_LOST:
        raise DeviceError(f"{device.name}: {_why_not_connected(device, result.stderr)}")
    return result


def _guarded(device: SshDevice, words: Sequence[str]) -> list[str]:
    """Words that end with the connection."""
    return [device.python, "-c", _GUARD, *words]


def _command(device: SshDevice, *commands: Sequence[str]) -> list[str]:
    options = ["-T", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=10"]
    options += ["-oServerAliveInterval=15", "-oServerAliveCountMax=4"]  # a device that is gone is noticed in a minute
    options += ["-a", "-x", "-oClearAllForwardings=yes"]  # nothing of this host is lent to the device
    options += ["-F", str(device.config)] if device.config else []
    options += ["-l", device.user] if device.user else []
    options += ["-p", str(device.port)] if device.port else []
    return ["ssh", *options, "--", device.host, " && ".join(shlex.join(words) for words in commands)]


def _why_not_connected(device: SshDevice, said: str) -> str:
    where = f"-p {device.port} {device.host}" if device.port else device.host
    if "REMOTE HOST IDENTIFICATION HAS CHANGED" in said:
        return (
            "its host key is not the one that is known: another machine answers, or it was set up anew. If you know"
            f" that it was, ssh-keygen -R removes the old key, and ssh {where} shows the new one"
        )
    if "Host key verification failed" in said or "host key is known" in said:
        return f"its host key is not known here; connect once by hand and compare it: ssh {where}"
    if "Permission denied" in said:
        return f"it lets nobody in without a key: make ssh {where} work without a password first (ssh-copy-id)"
    reason = said.strip().splitlines()[-1] if said.strip() else "no reason given"
    return f"cannot be reached ({reason}); check the address, and that ssh {where} works"


def _last_line(result: subprocess.CompletedProcess[str]) -> str:
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return said[-1] if said else f"exit code {result.returncode}"
