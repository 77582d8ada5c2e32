"""Reaches a device over ssh, where a bundle is tested and measured (`remote.py`).

The `ssh` of this machine does the talking, with its own configuration and keys. It never asks: host keys must be known,
and a key or an agent must open the door. Nothing is put into a shell unquoted: sshd hands the command line to the
user's shell, so that each word is quoted for it.
"""

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitedge.benchmarks.devices import DeviceError

_CONNECTION_LOST = 255  # ssh's own exit code
# Nothing that ssh could take for an option; names of hosts keep their case, as aliases of its configuration have one.
_URL = re.compile(
    r"ssh://((?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9_][\w.-]*|\[[0-9A-Fa-f:.]+\])(:(?P<port>\d{1,5}))?/?",
    re.ASCII,
)


@dataclass(frozen=True)
class SshDevice:
    """Where it is, and how to use it; a `Remote`.

    `python` is the interpreter there. Unless `install`, that one runs the bundle, with the packages that it has.
    `folder` is one there to work in, in place of that of temporary files. `config` is a file for `ssh -F` in place of
    the user's own.
    """

    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    install: bool = True
    folder: str | None = None
    config: Path | None = None

    get_program = "ssh is not installed here: install OpenSSH's client (Debian: openssh-client)"
    get_python = "install Python 3.11 or newer, or name one with --device-python"
    get_packages = "install the packages of the bundle's requirements.txt for it, or leave --no-install out"

    @property
    def name(self) -> str:
        user, port = self.user and f"{self.user}@", self.port and f":{self.port}"
        return f"ssh://{user or ''}{self.host}{port or ''}"

    def command(self, *commands: Sequence[str]) -> list[str]:
        options = ["-T", "-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oConnectTimeout=10"]
        options += [
            "-oServerAliveInterval=15",
            "-oServerAliveCountMax=4",
        ]  # a device that is gone is noticed in a minute
        options += ["-a", "-x", "-oClearAllForwardings=yes"]  # nothing of this host is lent to the device
        options += ["-F", str(self.config)] if self.config else []
        options += ["-l", self.user] if self.user else []
        options += ["-p", str(self.port)] if self.port else []
        return ["ssh", *options, "--", self.host, " && ".join(shlex.join(words) for words in commands)]

    def judge(self, result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        if result.returncode == _CONNECTION_LOST:
            raise DeviceError(f"{self.name}: {_why_not_connected(self, result.stderr)}")
        return result

    def wait(self) -> None:
        """Each command connects anew, and waits for that itself."""


def parse_ssh(text: str) -> SshDevice:
    """`ssh://user@host:port`; user and port may be left to ssh's configuration.

    Raises:
        DeviceError: It is not that.
    """
    found = _URL.fullmatch(text)
    if found is None or not 1 <= int(found["port"] or 22) <= 65535:
        raise DeviceError(f"--device: expected local, ssh://user@host:port or adb:SERIAL, found {text}")
    return SshDevice(found["host"].strip("[]"), found["user"], int(found["port"]) if found["port"] else None)


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
