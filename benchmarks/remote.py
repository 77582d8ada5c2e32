"""Tests and measures a bundle on a device that has Python, however it is reached, and leaves the device as it was.

    probe Python and free space ─► a private folder ─► the bundle ─► a virtual environment ─► selftest, bench ─► remove

Only Python is needed there, and all steps are Python. What runs there ends with the connection: it is watched by a
process that ends it when its standard input does.
"""

import json
import os
import secrets
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from vitedge.benchmarks.devices import DeviceError, DeviceResult, cleaned_up, last_line
from vitedge.runtimes.bundle import load_bundle
from vitedge.runtimes.encoder import DISTRIBUTIONS
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import count, many, parse_json, text

_MINIMUM_PYTHON = (3, 11)
_NO_COMMAND = (126, 127)  # a shell's
# How long a device may take: to answer, and for what loads, copies or installs, on top of what it is asked to measure.
_ANSWER_SECONDS, _WORK_SECONDS = 120.0, 3600.0
_SPACE_FACTOR, _ENVIRONMENT_BYTES = 1.5, 700 << 20  # unpacked while the archive arrives; numpy and three runtimes
_PROBE = (
    "import json, shutil, sys, tempfile\n"
    "def has(name):\n"
    " try: return bool(importlib.metadata.version(name))\n"
    " except importlib.metadata.PackageNotFoundError: return False\n"
    "folder, found = tempfile.gettempdir(), []\n"
    "if sys.version_info >= (3, 8):\n"
    " import importlib.metadata\n"
    " found = [name for name in sys.argv[1:] if has(name)]\n"
    "print(json.dumps([list(sys.version_info[:2]), folder, shutil.disk_usage(folder).free, found]))"
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
    `get_python` and `get_packages` tell a user whose device lacks them what to do; `get_program` is about the program
    of this machine that reaches devices.
    """

    @property
    def name(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def install(self) -> bool: ...
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


def measure_bundle(remote: Remote, bundle: Path, *, threads: int, seconds: float) -> DeviceResult:
    """Pushes a bundle, tests and measures it there, and removes it, also after an error or an interrupt.

    Args:
        remote: Where.
        bundle: A bundle's folder.
        threads: Of the runtimes.
        seconds: For each artifact.

    Raises:
        DeviceError: The device cannot be reached, has no Python 3.11, too little space or not the packages that are
            needed, or a step failed there.
    """
    size_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    runtimes = [DISTRIBUTIONS[name] for name in load_bundle(bundle).artifacts]
    place = _probe(remote, int(size_bytes * _SPACE_FACTOR) + (_ENVIRONMENT_BYTES if remote.install else 0), runtimes)

    def work(folder: str) -> DeviceResult:
        _push(remote, bundle, folder)
        python = _environment(remote, folder) if remote.install else remote.python
        options = ["--threads", str(threads), "--json"]
        selftest = _ask(remote, folder, [python, "-m", "vitedge.device", "selftest", *options], "vitedge-selftest/1")
        bench = None
        if not any(_is_broken(check) for check in selftest["checks"]):
            options += ["--seconds", str(seconds)]
            words = [python, "-m", "vitedge.device", "bench", *options]
            bench = _ask(remote, folder, words, "vitedge-benches/2", seconds * len(runtimes))
        return DeviceResult(remote.name, selftest, bench)

    return _in_private_folder(remote, place, work)


def _is_broken(check: Mapping[str, Any]) -> bool:
    """Whether something failed that cannot be measured then: files are damaged, or an artifact gave no numbers."""
    return check["status"] == "fail" and (
        check["step"] == "files" or (check["step"] == "inference" and not check["numbers"])
    )


def _probe(remote: Remote, needed_bytes: int, runtimes: Sequence[str]) -> str:
    """Checks Python, free space and, unless they are installed, packages; the folder for temporary ones."""
    result = _run(remote, [remote.python, "-c", _PROBE, "numpy", *runtimes])
    if result.returncode in _NO_COMMAND:
        raise DeviceError(f"{remote.name}: found no {remote.python} there; {remote.get_python}")
    version, folder, free_bytes, packages = _probed(remote, _reply(remote, result, "Python"))
    if version < _MINIMUM_PYTHON:
        raise DeviceError(
            f"{remote.name}: expected Python 3.11 or newer, found {version[0]}.{version[1]}; {remote.get_python}"
        )
    if not remote.install and ("numpy" not in packages or len(packages) == 1):
        missing = ["numpy"] if "numpy" not in packages else []
        missing += [] if set(packages) - {"numpy"} else [" or ".join(runtimes)]
        raise DeviceError(f"{remote.name}: {remote.python} has no {' and no '.join(missing)}; {remote.get_packages}")
    if free_bytes < needed_bytes:
        less = ", bundle fewer artifacts, or pass --no-install" if remote.install else ", or bundle fewer artifacts"
        raise DeviceError(
            f"{remote.name}: expected {needed_bytes / 1e6:.0f} MB of free space in {folder}, found"
            f" {free_bytes / 1e6:.0f} MB; make room there{less}"
        )
    return folder


def _probed(remote: Remote, reply: Any) -> tuple[tuple[int, ...], str, int, tuple[str, ...]]:
    """What `_PROBE` printed: version, folder, bytes that are free in it, packages."""
    try:
        version, folder, free_bytes, packages = many(reply, lambda value: value)
        found = many(version, count), text(folder), count(free_bytes), many(packages, text)
    except (ArtifactError, ValueError) as error:
        raise DeviceError(f"{remote.name}: {remote.python} does not answer as Python does ({error})") from error
    if not found[1].startswith("/") or len(found[0]) != len(_MINIMUM_PYTHON):
        raise DeviceError(f"{remote.name}: {remote.python} does not answer as Python does: {reply}")
    return found


def _in_private_folder(remote: Remote, place: str, work: Callable[[str], DeviceResult]) -> DeviceResult:
    """Works in a new folder on the device that only its user can enter, and removes it. It is named here, so that no
    interrupt leaves one that nobody knows.
    """
    folder = f"{place.rstrip('/')}/vitedge-{secrets.token_hex(8)}"

    def in_new_folder() -> DeviceResult:
        made = _run(remote, [remote.python, "-c", _MAKE, folder])
        if made.returncode:
            raise DeviceError(f"{remote.name}: cannot make {folder} there: {last_line(made)}")
        return work(folder)

    def clean_up() -> str | None:
        try:
            removed = _remove(remote, folder)
        except DeviceError as error:
            return f"{error}; {folder} is left there: remove it when the device is back"
        return f"{folder} could not be removed ({last_line(removed)}); remove it there" if removed.returncode else None

    return cleaned_up(remote.name, folder, in_new_folder, clean_up)


def _remove(remote: Remote, folder: str) -> subprocess.CompletedProcess[str]:
    words = [remote.python, "-c", _REMOVE, folder]
    try:
        return _run(remote, words)
    except DeviceError:
        remote.wait()
        return _run(remote, words)


def _push(remote: Remote, bundle: Path, folder: str) -> None:
    """As a tar stream, unpacked while it arrives."""
    with tempfile.TemporaryFile() as stream:
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            archive.add(bundle, ".")
        stream.seek(0)
        result = _run(remote, [remote.python, "-c", _UNPACK, folder], stdin=stream, seconds=_WORK_SECONDS)
    if result.returncode:
        raise DeviceError(f"{remote.name}: the bundle did not arrive: {last_line(result)}")


def _environment(remote: Remote, folder: str) -> str:
    """A virtual environment with what the bundle asks for; its Python."""
    python = f"{folder}/venv/bin/python"
    for what, words in (
        ("a virtual environment", [remote.python, "-m", "venv", f"{folder}/venv"]),
        ("pip install", [python, "-m", "pip", "install", "--quiet", "--no-input", "-r", f"{folder}/requirements.txt"]),
    ):
        # pip leaves nothing in the user's cache.
        quiet = {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        result = _run(remote, _guarded(remote, words, TMPDIR=folder, **quiet), seconds=_WORK_SECONDS)
        if result.returncode:
            raise DeviceError(
                f"{remote.name}: {what} failed there: {last_line(result)}; without a network, install the packages of"
                " requirements.txt there and pass --no-install"
            )
    return python


def _ask(remote: Remote, folder: str, words: Sequence[str], form: str, seconds: float = 0.0) -> dict[str, Any]:
    """A command of the bundle's, in its folder, that measures for so many seconds; its document, of format `form`."""
    # What runtimes leave in temporary folders and at home (identifiers, usage counts) goes with this one; and Python
    # caches nothing beside its packages.
    quiet = {"TMPDIR": folder, "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    what = " ".join(words[1:4])
    result = _run(remote, ["cd", folder], _guarded(remote, words, **quiet), seconds=_WORK_SECONDS + seconds)
    found = _reply(remote, result, what, allowed=(0, 1))
    if not isinstance(found, dict) or found.get("format") != form:
        raise DeviceError(f"{remote.name}: {what} printed no document; see what it says when run there")
    return found


def _reply(remote: Remote, result: subprocess.CompletedProcess[str], what: str, allowed: Sequence[int] = (0,)) -> Any:
    if result.returncode not in allowed:
        raise DeviceError(f"{remote.name}: {what} failed there: {last_line(result)}")
    try:
        return parse_json(result.stdout)
    except (ValueError, RecursionError) as error:
        raise DeviceError(f"{remote.name}: {what} failed there: {last_line(result)}") from error


def _run(
    remote: Remote, *commands: Sequence[str], stdin: IO[bytes] | None = None, seconds: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs words on the device, one command after the other as long as they succeed, for at most so many seconds."""
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


def _guarded(remote: Remote, words: Sequence[str], **environment: str) -> list[str]:
    """Words that end with the connection, with some variables of their environment."""
    return [remote.python, "-c", _GUARD, json.dumps(environment), *words]
