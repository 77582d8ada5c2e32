"""What a measurement on a device gives, and how it fails, however the device is reached."""

import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vitedge.runtimes.errors import VitedgeError


class DeviceError(VitedgeError):
    """A device cannot be reached, refuses, lacks something, or fails in a step."""


@dataclass(frozen=True)
class DeviceResult:
    """What a device said.

    `selftest` is the document of `python -m vitedge.device selftest --json`; None where no Python ran, as with
    `benchmark_model`.
    `bench` is that of `bench --json`, or of `measure_over_adb`; None if the files did not arrive whole.
    `left` says what could not be removed there, and how to; None if the device is as it was.
    `not_installed` says of packages, by name, why they could not be installed there; their artifacts were skipped.
    """

    device: str
    selftest: dict[str, Any] | None
    bench: dict[str, Any] | None
    left: str | None = None
    not_installed: Mapping[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no self-test failed."""
        return self.selftest is None or bool(self.selftest["passed"])

    def lines(self) -> Iterator[str]:
        """As text: what was tested, and how fast each artifact is."""
        runs = self.bench["runs"] if self.bench else []
        machine = (self.selftest or runs[0])["machine"]
        yield f"{self.device}: {machine['cpu_model'] or machine['architecture']}, {machine['system']}"
        for package, why in self.not_installed.items():
            yield f"not installed: {package}: {why}"
        for check in self.selftest["checks"] if self.selftest else ():
            yield f"{check['status'].upper():4}  {check['step']} {check['artifact'] or ''}  {check['found']}"
            if check["cause"]:
                yield f"      likely cause: {check['cause']}"
        for run in runs:
            for name, pair in run["pairs"].items():
                yield f"{name}: INT8 {pair['artifact']['latency_median_ms']:.2f} ms; {pair['verdict']}"
                yield from (f"doubt: {name}: {flag}" for flag in pair["flags"])
            yield from (f"doubt: {flag}" for flag in run["flags"])

    def to_json(self) -> dict[str, Any]:
        return {"format": "vitedge-device/1", **asdict(self)}


def cleaned_up(
    name: str, folder: str, work: Callable[[], DeviceResult], clean_up: Callable[[], str | None]
) -> DeviceResult:
    """What `work` gave. A clean-up that fails after it, or is interrupted because it waits for a device that is gone,
    costs no measurement; after an error it is told with that.

    Args:
        name: Of the device.
        folder: Where it works there.
        work: Measures there.
        clean_up: Removes what that left there, also after an interrupt; says what is still there, or None.

    Raises:
        DeviceError: As `work` does; or, after an error or interrupt, something could not be removed.
    """

    def still_there() -> str | None:
        try:
            return clean_up()
        except KeyboardInterrupt:
            return f"{folder} perhaps: its removal was interrupted; look there, and remove it"

    try:
        result = work()
    except BaseException as error:
        if left := still_there():
            first = f"{error}; and " if isinstance(error, VitedgeError) else f"{name}: "
            raise DeviceError(f"{first}{left}") from error
        raise
    return replace(result, left=still_there())


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last that a command said, or its exit code."""
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return said[-1] if said else f"exit code {result.returncode}"
