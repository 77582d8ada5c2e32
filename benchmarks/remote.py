"""Tests and measures a bundle on a device that has Python, however it is reached, and leaves the device as it was.

    probe Python and free space ─► a private folder ─► the bundle ─► a virtual environment ─► selftest, bench ─► remove

Only Python is needed there, and all steps are Python (`remote_python.py`).
"""

import secrets
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitedge.benchmarks.device_documents import BENCH_FORMAT, SELFTEST_FORMAT, check_document
from vitedge.benchmarks.devices import DeviceError, DeviceResult, cleaned_up, last_line
from vitedge.benchmarks.environment import Environment, environment_bytes, make_environment
from vitedge.benchmarks.remote_python import Remote, guarded, program, reply, run
from vitedge.runtimes.bundle import load_bundle
from vitedge.runtimes.encoder import DISTRIBUTIONS
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import count, many, text

_MINIMUM_PYTHON = (3, 11)
_NO_COMMAND = (126, 127)  # a shell's
_WORK_SECONDS = 3600.0  # for what loads or copies, on top of what the device is asked to measure
_SPACE_FACTOR = 1.5  # unpacked while the archive arrives
# Prints null for the free space of a folder that cannot be worked in.
_PROBE = (
    "import json, os, shutil, sys, tempfile\n"
    "def has(name):\n"
    " try: return bool(importlib.metadata.version(name))\n"
    " except importlib.metadata.PackageNotFoundError: return False\n"
    "folder, found = sys.argv[1] or tempfile.gettempdir(), []\n"
    "if sys.version_info >= (3, 8):\n"
    " import importlib.metadata\n"
    " found = [name for name in sys.argv[2:] if has(name)]\n"
    "usable = os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)\n"
    "free = shutil.disk_usage(folder).free if usable else None\n"
    "print(json.dumps([list(sys.version_info[:2]), folder, free, found]))"
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
    artifacts = load_bundle(bundle).artifacts
    runtimes = [DISTRIBUTIONS[name] for name in artifacts]
    installed_bytes = environment_bytes(runtimes) if remote.install else 0
    place = _probe(remote, int(size_bytes * _SPACE_FACTOR) + installed_bytes, runtimes)

    def work(folder: str) -> DeviceResult:
        _push(remote, bundle, folder)
        made = make_environment(remote, folder, bundle) if remote.install else Environment(remote.python)
        command, options = [made.python, "-m", "vitedge.device"], ["--threads", str(threads), "--json"]
        selftest = _ask(remote, folder, [*command, "selftest", *options], SELFTEST_FORMAT)
        # What gave numbers can be measured, also if they are not near enough to FP32.
        judged = [
            check["artifact"] for check in selftest["checks"] if check["step"] == "inference" and check["numbers"]
        ]
        ran, bench = [name for name in artifacts if name in judged], None
        if ran:
            options += ["--seconds", str(seconds), *(word for name in ran for word in ("--artifact", name))]
            bench = _ask(remote, folder, [*command, "bench", *options], BENCH_FORMAT, seconds * len(ran))
        return DeviceResult(remote.name, selftest, bench, not_installed=made.not_installed)

    return _in_private_folder(remote, place, work)


def _probe(remote: Remote, needed_bytes: int, runtimes: Sequence[str]) -> str:
    """Checks Python, free space and, unless they are installed, packages; the folder to make one in."""
    result = run(remote, program(remote, _PROBE, remote.folder or "", "numpy", *runtimes))
    if result.returncode in _NO_COMMAND:
        raise DeviceError(f"{remote.name}: found no {remote.python} there; {remote.get_python}")
    version, folder, free_bytes, packages = _probed(remote, reply(remote, result, "Python"))
    if version < _MINIMUM_PYTHON:
        raise DeviceError(
            f"{remote.name}: expected Python 3.11 or newer, found {version[0]}.{version[1]}; {remote.get_python}"
        )
    if not remote.install and ("numpy" not in packages or len(packages) == 1):
        missing = ["numpy"] if "numpy" not in packages else []
        missing += [] if set(packages) - {"numpy"} else [" or ".join(runtimes)]
        raise DeviceError(f"{remote.name}: {remote.python} has no {' and no '.join(missing)}; {remote.get_packages}")
    if free_bytes is None:
        raise DeviceError(f"{remote.name}: expected a folder there that can be written to, found none at {folder}")
    if free_bytes < needed_bytes:
        less = ", name another --device-folder, or measure fewer artifacts"
        less += ", or pass --no-install" if remote.install else ""
        raise DeviceError(
            f"{remote.name}: expected {needed_bytes / 1e6:.0f} MB of free space in {folder}, found"
            f" {free_bytes / 1e6:.0f} MB; make room there{less}"
        )
    return folder


def _probed(remote: Remote, said: Any) -> tuple[tuple[int, ...], str, int | None, tuple[str, ...]]:
    """What `_PROBE` printed: version, folder, bytes that are free in it, packages."""
    try:
        version, folder, free_bytes, packages = many(said, lambda value: value)
        free_bytes = None if free_bytes is None else count(free_bytes)
        found = many(version, count), text(folder), free_bytes, many(packages, text)
    except (ArtifactError, ValueError) as error:
        raise DeviceError(f"{remote.name}: {remote.python} does not answer as Python does ({error})") from error
    if not found[1].startswith("/") or len(found[0]) != len(_MINIMUM_PYTHON):
        raise DeviceError(f"{remote.name}: {remote.python} does not answer as Python does: {said}")
    return found


def _in_private_folder(remote: Remote, place: str, work: Callable[[str], DeviceResult]) -> DeviceResult:
    """Works in a new folder on the device that only its user can enter, and removes it. It is named here, so that no
    interrupt leaves one that nobody knows.
    """
    folder = f"{place.rstrip('/')}/vitedge-{secrets.token_hex(8)}"

    def in_new_folder() -> DeviceResult:
        made = run(remote, program(remote, _MAKE, folder))
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
    words = program(remote, _REMOVE, folder)
    try:
        return run(remote, words)
    except DeviceError:
        remote.wait()
        return run(remote, words)


def _push(remote: Remote, bundle: Path, folder: str) -> None:
    """As a tar stream, unpacked while it arrives."""
    with tempfile.TemporaryFile() as stream:
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            archive.add(bundle, ".")
        stream.seek(0)
        result = run(remote, program(remote, _UNPACK, folder), stdin=stream, seconds=_WORK_SECONDS)
    if result.returncode:
        raise DeviceError(f"{remote.name}: the bundle did not arrive: {last_line(result)}")


def _ask(remote: Remote, folder: str, words: Sequence[str], form: str, seconds: float = 0.0) -> dict[str, Any]:
    """A command of the bundle's, in its folder, that measures for so many seconds; its document, of format `form`."""
    # What runtimes leave in temporary folders and at home (identifiers, usage counts) goes with this one.
    work = guarded(remote, words, TMPDIR=folder, HOME=folder)
    what = " ".join(words[1:4])
    result = run(remote, ["cd", folder], work, seconds=_WORK_SECONDS + seconds)
    found = reply(remote, result, what, allowed=(0, 1))
    try:
        return check_document(found, form)
    except ArtifactError as error:
        raise DeviceError(
            f"{remote.name}: {what} printed no result ({error}); see what it says when run there"
        ) from error
