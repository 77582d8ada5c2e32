"""Python on a device, however the device is reached: run for what it does or answers, and gone with the connection.

What runs there ends with the connection: it is watched by a process that ends it when its standard input does. No
process caches what it imports, so that nothing of it stays beside the device's own packages.
"""

import json
import os
import subprocess
from collections.abc import Sequence
from typing import IO, Any, Protocol

from vitedge.benchmarks.devices import DeviceError, last_line
from vitedge.runtimes.fields import parse_json

_ANSWER_SECONDS = 120.0
# Takes variables of the environment as JSON, then the words: Android's `env` would load Termux's libraries, and fail.
# Packages that the user installed for himself are found whatever HOME is then.
_GUARD = (
    "import json, os, signal, site, subprocess, sys, threading\n"
    "environment = {**os.environ, 'PYTHONUSERBASE': site.getuserbase(), **json.loads(sys.argv[1])}\n"
    "child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True, env=environment)\n"
    "def watch():\n os.read(0, 1)\n os.killpg(child.pid, signal.SIGKILL)\n"
    "threading.Thread(target=watch, daemon=True).start()\n"
    "code = child.wait(); sys.stdout.flush(); os._exit(code if code >= 0 else 128 - code)"
)


class Remote(Protocol):
    """A device and the way to it.

    `python` is the interpreter there. Unless `install`, that one runs the bundle, with the packages that it has.
    `folder` is one there to work in; None takes that of temporary files. `get_python` and `get_packages` tell a user
    whose device lacks them what to do; `get_program` is about the program of this machine that reaches devices.
    """

    @property
    def name(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def install(self) -> bool: ...
    @property
    def folder(self) -> str | None: ...
    @property
    def get_program(self) -> str: ...
    @property
    def get_python(self) -> str: ...
    @property
    def get_packages(self) -> str: ...

    def command(self, *commands: Sequence[str]) -> list[str]:
        """What to run here, so that words run there, one command after the other as long as they succeed; its standard
        streams are theirs.
        """
        ...

    def judge(self, result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        """What the words did, of what `command` did.

        Raises:
            DeviceError: The words did not run, or the connection was lost.
        """
        ...

    def wait(self) -> None:
        """Gives a connection that was lost some time to come back."""
        ...


def program(remote: Remote, text: str, *arguments: str) -> list[str]:
    """The words of a program of a few lines for the device's Python."""
    return [remote.python, "-B", "-c", text, *arguments]


def guarded(remote: Remote, words: Sequence[str], **environment: str) -> list[str]:
    """Words that end with the connection, with some variables of their environment."""
    return program(remote, _GUARD, json.dumps({"PYTHONDONTWRITEBYTECODE": "1", **environment}), *words)


def run(
    remote: Remote, *commands: Sequence[str], stdin: IO[bytes] | None = None, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs words on the device, one command after the other as long as they succeed, for at most so many seconds.

    Raises:
        DeviceError: There is no way to the device, or no answer.
    """
    seconds = seconds or _ANSWER_SECONDS
    read, write = os.pipe()  # standard input that ends when this does: see _GUARD
    try:
        result = subprocess.run(
            remote.command(*commands),
            stdin=read if stdin is None else stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=seconds,
        )
    except FileNotFoundError as error:
        raise DeviceError(remote.get_program) from error
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"{remote.name}: no answer within {seconds:.0f} s; is the device awake?") from error
    finally:
        os.close(read)
        os.close(write)
    return remote.judge(result)


def reply(remote: Remote, result: subprocess.CompletedProcess[str], what: str, allowed: Sequence[int] = (0,)) -> Any:
    """The JSON that a command printed.

    Raises:
        DeviceError: It failed, or printed none.
    """
    if result.returncode not in allowed:
        raise DeviceError(f"{remote.name}: {what} failed there: {last_line(result)}")
    try:
        return parse_json(result.stdout)
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"{remote.name}: {what} failed there: {last_line(result)}") from error
