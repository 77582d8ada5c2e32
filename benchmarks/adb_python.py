"""A bundle tested and measured by a Python that is on an Android device: Termux's, or one that was put there.

Termux is an app, and its files are the app's own: only `run-as` lets the user of `adb shell` in, and that only into
debug builds, such as Termux's from GitHub; those of F-Droid and of the Play Store are none. What Termux's login shell
sets is set here; it unsets LD_LIBRARY_PATH, which would give Termux's libraries to Android's own programs. No wheels
exist for Android, so that nothing is installed: Termux has packages of its own. Sources: TermuxShellEnvironment.java
of termux/termux-app, TERMUX_IS_DEBUGGABLE_BUILD of `termux-info`, and packages/onnxruntime in termux/termux-packages.
"""

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitedge.benchmarks import adb
from vitedge.benchmarks.adb import AdbDevice, check_ready
from vitedge.benchmarks.android import (
    Android,
    AndroidState,
    identify,
    read_state,
    state_after,
    state_flags,
)
from vitedge.benchmarks.devices import DeviceError, DeviceResult
from vitedge.benchmarks.remote import measure_bundle

TERMUX_PYTHON = "/data/data/com.termux/files/usr/bin/python3"
_APP = re.compile(r"/data/(?:data|user/0)/([A-Za-z][\w.]*)/")
_SHELL_PLACE = "/data/local/tmp"
_APP_ENVIRONMENT = (
    "export HOME={files}/home PREFIX={files}/usr TMPDIR={files}/usr/tmp PATH={files}/usr/bin:$PATH;"
    " unset LD_LIBRARY_PATH"
)
_BY_SSH = (
    "pkg install openssh, sshd; here adb forward tcp:8022 tcp:8022, and --device ssh://127.0.0.1:8022 --no-install"
)
_OR_TOOL = "or measure the TFLite model alone, with --benchmark-model"
# What Python reads from /proc is as good, or is what it was compiled for.
_PYTHON_KNOWS = ("isa_flags", "architecture", "kernel")


@dataclass(frozen=True)
class PythonDevice(AdbDevice):
    """Which device, which Python there, and a folder there to work in, in place of that of temporary files; a `Remote`.
    A Python among an app's own files runs as that app.
    """

    python: str = TERMUX_PYTHON
    folder: str | None = None

    install = False
    get_program = adb.NO_ADB
    get_python = f"in Termux: pkg install python; or name another with --device-python, {_OR_TOOL}"
    get_packages = (
        "in Termux: pkg install python-numpy python-onnxruntime, which is what Termux has: OpenVINO and LiteRT are no"
        f" packages of it; {_OR_TOOL}"
    )

    def __post_init__(self) -> None:
        if not self.python.startswith("/"):
            raise DeviceError(f"--device-python: expected an absolute path on the device, found {self.python}")

    def command(self, *commands: Sequence[str]) -> list[str]:
        script = f"{self._environment} && {' && '.join(shlex.join(words) for words in commands)}"
        if self._app is not None:
            script = f"run-as {self._app} sh -c {shlex.quote(script)}"
        return adb.shell_command(self, script)

    def judge(self, result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
        ended = adb.judge(self, result)
        refused = re.search(r"^.*\brun-as: (.*)$", ended.stderr, re.MULTILINE)
        if ended.returncode and self._app is not None and refused is not None:
            raise DeviceError(f"{self.name}: {_why_not_entered(self._app, refused[1].strip())}; {_OR_TOOL}")
        return ended

    def wait(self) -> None:
        adb.wait(self)

    @property
    def _app(self) -> str | None:
        """The app whose files hold Python; None where `adb shell` may run it."""
        found = _APP.match(self.python)
        return None if found is None else found[1]

    @property
    def _environment(self) -> str:
        if self._app is None:
            return f"export HOME={_SHELL_PLACE} TMPDIR={_SHELL_PLACE}"
        return _APP_ENVIRONMENT.format(files=f"/data/data/{self._app}/files")


def measure_python_over_adb(device: PythonDevice, bundle: Path, *, threads: int, seconds: float) -> DeviceResult:
    """As `measure_bundle`, with what Android says of the device, which its apps cannot read.

    Args:
        device: Where, and by which Python.
        bundle: A bundle's folder.
        threads: Of the runtimes.
        seconds: For each artifact.

    Raises:
        DeviceError: adb is missing, the device unknown, unauthorized or offline, or as in `measure_bundle`.
    """
    check_ready(device)
    android, before = identify(device), read_state(device)
    result = measure_bundle(device, bundle, threads=threads, seconds=seconds)
    after, doubts = state_after(device)
    return _with_android(result, android, before, after, doubts)


def _with_android(
    result: DeviceResult, android: Android, before: AndroidState, after: AndroidState, doubts: Sequence[str]
) -> DeviceResult:
    told = {name: value for name, value in android.to_json().items() if value is not None and name not in _PYTHON_KNOWS}
    states = {"before": before.to_json(), "after": after.to_json()}
    flags = [*state_flags(android, before, after), *doubts]
    selftest, bench = result.selftest, result.bench
    if selftest is not None:
        selftest = {**selftest, "machine": {**selftest["machine"], **told}}
    if bench is not None:
        runs: list[dict[str, Any]] = [
            {**run, **states, "machine": {**run["machine"], **told}, "flags": [*run["flags"], *flags]}
            for run in bench["runs"]
        ]
        bench = {**bench, "runs": runs}
    return replace(result, selftest=selftest, bench=bench)


def _why_not_entered(app: str, said: str) -> str:
    if "unknown" in said:
        return (
            f"{app} is not installed there ({said}); install Termux, a debug build from"
            " github.com/termux/termux-app/releases, and in it: pkg install python python-onnxruntime"
        )
    if "debuggable" in said:
        return (
            f"run-as lets nobody into {app}, as it is no debug build ({said}); install the one from"
            f" github.com/termux/termux-app/releases, or reach this one by ssh: in Termux {_BY_SSH}"
        )
    return f"run-as does not let adb into {app} ({said}); reach it by ssh: in Termux {_BY_SSH}"
