"""What devices said of a build's artifacts.

That is what `vitedge bench --json` prints, with `--device` or without, and `python -m vitedge.device … --json`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitedge.names import RUNTIME_NAMES
from vitedge.report.documents import ReportError, read_document
from vitedge.runtimes.manifest import Manifest

_FORMATS = ("vitedge-device/1", "vitedge-selftest/1", "vitedge-benches/2")
_ADVICE = "pass what vitedge bench --device … --json printed, or python -m vitedge.device selftest or bench --json"


@dataclass(frozen=True)
class Step:
    """One step of a self-test."""

    status: str
    name: str
    found: str
    cause: str | None


@dataclass(frozen=True)
class Speed:
    """One artifact's speed, as text; empty where it was not measured."""

    runtime: str
    int8: str
    fp32: str
    speedup: str
    peak: str
    how: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Device:
    """A device, whether its self-test passed (None without one), its steps, speeds, what to doubt of all, why packages
    could not be installed there, by name, and what could not be removed (None if nothing).
    """

    name: str
    machine: str
    passed: bool | None
    steps: tuple[Step, ...]
    speeds: tuple[Speed, ...]
    doubts: tuple[str, ...]
    not_installed: Mapping[str, str]
    left: str | None


def read_device(path: Path, source_digest: str, manifests: Mapping[str, Manifest]) -> Device:
    """Reads a document about this build's artifacts.

    Args:
        path: Of the document.
        source_digest: Of the build's checkpoint.
        manifests: Of the build's artifacts, by runtime.

    Raises:
        ReportError: It is no such document, or is about another checkpoint or other files.
    """

    def parse(document: Mapping[str, Any]) -> Device:
        halves = _halves(document)
        for half in halves:
            _refuse_others(path, half, source_digest, manifests)
        return _device(path, document, *halves)

    return read_document(path, _FORMATS, _ADVICE, parse)


def _halves(document: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """A self-test and a benchmark; empty where the document has none."""
    if document["format"] == "vitedge-device/1":
        selftest, bench = document["selftest"], document["bench"]
        return {} if selftest is None else selftest, {} if bench is None else bench
    return (document, {}) if document["format"] == "vitedge-selftest/1" else ({}, document)


def _refuse_others(path: Path, half: Mapping[str, Any], source_digest: str, manifests: Mapping[str, Manifest]) -> None:
    """A device whose files arrived damaged names no checkpoint and no artifact; its self-test says why."""
    found = half.get("source_digest")
    if found is not None and found != source_digest:
        raise ReportError(
            f"{path}: about checkpoint {str(found)[:12]}…, but this build is of {source_digest[:12]}…; measure this one"
        )
    # Every benchmark says of which files it is; a self-test names none if they arrived damaged.
    for name, identity in (half["artifacts"] if "runs" in half else half.get("artifacts", {})).items():
        if name not in manifests or identity["sha256"] != {file.name: file.sha256 for file in manifests[name].files}:
            raise ReportError(
                f"{path}: {name} there has other files than this build's; bundle and measure this build again"
            )


def _device(path: Path, document: Mapping[str, Any], selftest: Mapping[str, Any], bench: Mapping[str, Any]) -> Device:
    runs = bench["runs"] if bench else []
    machine = selftest["machine"] if selftest else runs[0]["machine"]
    return Device(
        name=str(document.get("device", path.stem)),
        machine=f"{machine['cpu_model'] or machine['architecture']}, {machine['system']}",
        passed=bool(selftest["passed"]) if selftest else None,
        steps=tuple(
            Step(str(check["status"]), f"{check['step']} {_name(check['artifact'])}", check["found"], check["cause"])
            for check in selftest.get("checks", ())
        ),
        speeds=tuple(speed for run in runs for speed in _speeds(run)),
        doubts=tuple(str(flag) for run in runs for flag in run["flags"]),
        not_installed={str(name): str(why) for name, why in document.get("not_installed", {}).items()},
        left=document.get("left"),
    )


def _speeds(run: Mapping[str, Any]) -> Iterable[Speed]:
    delegate = run.get("delegate", "none")  # over adb only
    for runtime, pair in run["pairs"].items():
        ratio, peak = pair["speedup"], pair["artifact"]["peak_bytes"]
        yield Speed(
            runtime=_name(runtime),
            int8=f"{pair['artifact']['latency_median_ms']:.2f}",
            fp32=f"{pair['fp32']['latency_median_ms']:.2f}" if pair["fp32"] else "",
            speedup=f"{ratio['median']:.2f}× [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "",
            peak="" if peak is None else f"{peak / 1e6:.0f}",
            how=f"{run['threads']} × {run['batch']}" + (f", {delegate}" if delegate != "none" else ""),
            flags=tuple(map(str, pair["flags"])),
        )


def _name(runtime: str | None) -> str:
    return RUNTIME_NAMES.get(runtime, runtime) if runtime else ""
