"""What a measurement on a device gives, and how it fails, however the device is reached."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
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
    """

    device: str
    selftest: dict[str, Any] | None
    bench: dict[str, Any] | None

    @property
    def passed(self) -> bool:
        """Whether no self-test failed."""
        return self.selftest is None or bool(self.selftest["passed"])

    def lines(self) -> Iterator[str]:
        """As text: what was tested, and how fast each artifact is."""
        runs = self.bench["runs"] if self.bench else []
        machine = (self.selftest or runs[0])["machine"]
        yield f"{self.device}: {machine['cpu_model'] or machine['architecture']}, {machine['system']}"
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
        return {"format": "vitedge-device/1", "device": self.device, "selftest": self.selftest, "bench": self.bench}


def failed_before(name: str) -> str:
    """How the message of a clean-up that failed begins: with the error that led to it, or else with the device."""
    first = sys.exception()
    return f"{first}; and " if isinstance(first, VitedgeError) else f"{name}: "


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    """The last that a command said, or its exit code."""
    said = (result.stderr.strip() or result.stdout.strip()).splitlines()
    return said[-1] if said else f"exit code {result.returncode}"
