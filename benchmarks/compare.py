"""What became slower, larger or less accurate between two results: of two releases, or on two devices.

A result is any document that vitedge prints or writes: `report.json` of a build, what `vitedge verify` and `vitedge
bench` print with `--json`, with `--device` or without, and what `python -m vitedge.device bench --json` prints. Only
what both hold is compared. A difference that lies within both intervals is called noise, whatever the limits.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vitedge.runtimes.errors import VitedgeError

Verdict = Literal["worse", "better", "same", "noise"]
_MAX_BYTES = 64 << 20


class ComparisonError(VitedgeError):
    """A result cannot be read, or two of them have nothing in common."""


@dataclass(frozen=True)
class Limits:
    """How much worse is still good: shares of time and of bytes, and decibels of SQNR."""

    slowdown: float = 0.05
    growth: float = 0.05
    loss_db: float = 0.5


@dataclass(frozen=True)
class Value:
    """A number, and its 95 % interval if it has one."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Result:
    """One document: what it says of each artifact, by name and quantity, and where it was measured."""

    path: Path
    machine: str | None
    artifacts: Mapping[str, Mapping[str, Value]]


@dataclass(frozen=True)
class Change:
    """One quantity of one artifact before and after; `change` is a quotient, or a difference of decibels."""

    artifact: str
    quantity: str
    before: Value
    after: Value
    change: float
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Quantity: whether more of it is better, and the limit that it has.
_QUANTITIES: Mapping[str, tuple[bool, str]] = {
    "latency ms": (False, "slowdown"),
    "load ms": (False, "slowdown"),
    "peak bytes": (False, "growth"),
    "file bytes": (False, "growth"),
    "SQNR dB": (True, "loss_db"),
    "SQNR dB of golden images": (True, "loss_db"),
}
# A single load, or a peak, has no interval; they are told, and fail nothing.
_TOLD = ("load ms", "peak bytes")


def read_result(path: Path) -> Result:
    """Reads a document.

    Raises:
        ComparisonError: There is none, or it is not one of vitedge's.
    """
    try:
        size_bytes = path.stat().st_size
        document = json.loads(path.read_text(encoding="utf-8")) if size_bytes <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ComparisonError(f"{path}: expected a JSON file of vitedge's ({error})") from error
    try:
        return _parse(path, document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ComparisonError(
            f"{path}: not a readable result ({type(error).__name__}: {error}); expected what a build wrote to"
            " report.json, or what verify --json and bench --json print"
        ) from error


def compare(before: Result, after: Result, limits: Limits) -> tuple[Change, ...]:
    """The changes of what both results hold.

    Raises:
        ComparisonError: They have no artifact, or no quantity, in common.
    """
    changes = tuple(_changes(before, after, limits))
    if not changes:
        raise ComparisonError(
            f"{before.path} and {after.path} have nothing in common: {', '.join(before.artifacts) or 'no artifact'}"
            f" there, {', '.join(after.artifacts) or 'no artifact'} here"
        )
    return changes


def failures(changes: tuple[Change, ...]) -> tuple[str, ...]:
    """What became worse than its limit, in words."""
    return tuple(
        f"{change.artifact}: {change.quantity} {change.before.value:.4g} → {change.after.value:.4g}"
        for change in changes
        if change.verdict == "worse" and change.quantity not in _TOLD
    )


def _changes(before: Result, after: Result, limits: Limits) -> Iterator[Change]:
    for artifact, values in before.artifacts.items():
        for quantity, (more_is_better, limit) in _QUANTITIES.items():
            one, other = values.get(quantity), after.artifacts.get(artifact, {}).get(quantity)
            if one is not None and other is not None:
                difference = "dB" in quantity
                change = other.value - one.value if difference else other.value / one.value
                worsening = -change if more_is_better else change - 1
                verdict = _verdict(one, other, worsening, getattr(limits, limit))
                yield Change(artifact, quantity, one, other, change, verdict)


def _verdict(before: Value, after: Value, worsening: float, limit: float) -> Verdict:
    if abs(worsening) <= limit:
        return "same"
    if before.interval and after.interval:
        (low, high), (other_low, other_high) = before.interval, after.interval
        if low <= other_high and other_low <= high:
            return "noise"
    return "worse" if worsening > 0 else "better"


def _parse(path: Path, document: Any) -> Result:
    form = document["format"]
    artifacts: dict[str, dict[str, Value]] = {}
    machine = None
    if form == "vitedge-device/1":
        if document["selftest"] is not None:  # over adb there is none
            _numbers_of_selftest(document["selftest"], artifacts)
            machine = _machine(document["selftest"]["machine"])
        runs = document["bench"]["runs"] if document["bench"] else []
    elif form == "vitedge-benches/2":
        runs = document["runs"]
    elif form in ("vitedge-report/1", "vitedge-verify/1"):
        for name, report in (document["accuracy"] or {}).items():
            last = report["outputs"]["last_hidden_state"]
            artifacts[name] = {"SQNR dB": _value(last["sqnr_db"], last["sqnr_db_interval"])}
        runs = [document["bench"]] if document.get("bench") else []
    else:
        raise ValueError(f"format {form}")
    for run in runs:
        machine = _machine(run["machine"])
        several = f", {run['threads']} threads" if len(runs) > 1 else ""
        for name, pair in run["pairs"].items():
            artifacts.setdefault(name + several, {}).update(_numbers_of_bench(pair["artifact"]))
    return Result(path, machine, artifacts)


def _numbers_of_bench(found: Mapping[str, Any]) -> dict[str, Value]:
    numbers = {"latency ms": _value(found["latency_median_ms"], found["latency_interval_ms"])}
    for quantity, key in (("load ms", "load_ms"), ("peak bytes", "peak_bytes"), ("file bytes", "size_bytes")):
        if found[key] is not None:
            numbers[quantity] = _value(found[key])
    return numbers


def _numbers_of_selftest(document: Mapping[str, Any], artifacts: dict[str, dict[str, Value]]) -> None:
    for check in document["checks"]:
        if "sqnr_db" in check["numbers"]:
            artifacts[check["artifact"]] = {"SQNR dB of golden images": _value(check["numbers"]["sqnr_db"])}


def _machine(machine: Mapping[str, Any]) -> str:
    return str(machine["cpu_model"] or machine["architecture"])


def _value(value: Any, interval: Any = None) -> Value:
    found = Value(float(value), None if interval is None else (float(interval[0]), float(interval[1])))
    if not math.isfinite(found.value) or found.value == 0:
        raise ValueError(f"expected a number, found {value}")
    return found
