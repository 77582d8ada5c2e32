"""What became slower, larger or less accurate between two results: of two releases, or on two devices.

A result is any document that vitedge prints or writes: `report.json` of a build, what `vitedge verify` and `vitedge
bench` print with `--json`, with `--device` or without, and what a bundle's self-test and benchmark print with it. Both
must be of one checkpoint, as far as they say, and latencies are compared for equal threads and batch sizes. An artifact
or a quantity that only the first result has is a failure: a model that no longer runs is not as good as
before. A difference that lies within both intervals is called noise, whatever the limits. What made one of two
measurements doubtful makes their comparison doubtful: it is told with the verdict, which it does not change.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitedge.runtimes.errors import VitedgeError
from vitedge.runtimes.fields import parse_json

Verdict = Literal["worse", "better", "same", "noise"]
_MAX_BYTES = 64 << 20


class ComparisonError(VitedgeError):
    """A result cannot be read, or two of them have nothing in common."""


@dataclass(frozen=True)
class Limits:
    """How much worse is still good: shares of time and of bytes, decibels of SQNR, mean cosine of class tokens."""

    slowdown: float = 0.05
    growth: float = 0.05
    loss_db: float = 0.5
    loss_cosine: float = 0.001


@dataclass(frozen=True)
class Value:
    """A number, its 95 % interval if it has one, and in words what to doubt about it."""

    value: float
    interval: tuple[float, float] | None = None
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """One document: what it says of each artifact, by name and quantity, and where it was measured.

    `source_digest` is that of the checkpoint, None where the document does not say.
    """

    path: Path
    machine: str | None
    artifacts: Mapping[str, Mapping[str, Value]]
    source_digest: str | None = None


@dataclass(frozen=True)
class Change:
    """One quantity of one artifact before and after; `change` is a factor, or a difference where more is better."""

    artifact: str
    quantity: str
    before: Value
    after: Value
    change: float
    is_factor: bool
    verdict: Verdict

    @property
    def doubts(self) -> tuple[str, ...]:
        """What to doubt about either number."""
        sides = (("before", self.before), ("after", self.after))
        return tuple(f"{side}: {flag}" for side, value in sides for flag in value.flags)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# Quantity: whether more of it is better, and the limit that it has; differences count for the former, else quotients.
_QUANTITIES: Mapping[str, tuple[bool, Callable[[Limits], float]]] = {
    "latency ms": (False, lambda limits: limits.slowdown),
    "load ms": (False, lambda limits: limits.slowdown),
    "peak bytes": (False, lambda limits: limits.growth),
    "file bytes": (False, lambda limits: limits.growth),
    "SQNR dB": (True, lambda limits: limits.loss_db),
    "CLS cosine mean": (True, lambda limits: limits.loss_cosine),
    "SQNR dB of golden images": (True, lambda limits: limits.loss_db),
    "self-test": (True, lambda _: 0.0),  # 1 if it passed; no limit lets it fail
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
        document = parse_json(path.read_text(encoding="utf-8")) if size_bytes <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ComparisonError(f"{path}: expected a JSON file of vitedge's ({error})") from error
    if size_bytes > _MAX_BYTES:
        raise ComparisonError(f"{path}: expected at most {_MAX_BYTES} bytes, found {size_bytes}; no result is so long")
    try:
        return _parse(path, document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        raise ComparisonError(
            f"{path}: not a readable result ({type(error).__name__}: {error}); expected what a build of this version"
            " wrote to report.json, or what its verify --json and bench --json print"
        ) from error


def compare(before: Result, after: Result, limits: Limits) -> tuple[Change, ...]:
    """The changes of what both results hold.

    Raises:
        ComparisonError: They are of different checkpoints, or have no artifact, or no quantity, in common.
    """
    if None not in (before.source_digest, after.source_digest) and before.source_digest != after.source_digest:
        raise ComparisonError(
            f"{before.path} and {after.path} are of different checkpoints ({str(before.source_digest)[:12]}… and"
            f" {str(after.source_digest)[:12]}…); compare results of one"
        )
    changes = tuple(_changes(before, after, limits))
    if not changes:
        raise ComparisonError(
            f"{before.path} and {after.path} have nothing in common: {', '.join(before.artifacts) or 'no artifact'}"
            f" there, {', '.join(after.artifacts) or 'no artifact'} here"
        )
    return changes


def missing(before: Result, after: Result) -> tuple[str, ...]:
    """What the first result has and the second does not, in words: artifacts, or quantities that have a limit."""
    found = []
    for artifact, values in before.artifacts.items():
        if artifact not in after.artifacts:
            found.append(artifact)
        else:
            gone = [quantity for quantity in values if quantity not in after.artifacts[artifact]]
            found += [f"{artifact}: {quantity}" for quantity in gone if _kind(quantity) not in _TOLD]
    return tuple(found)


def failures(changes: tuple[Change, ...]) -> tuple[str, ...]:
    """What became worse than its limit, in words, with what to doubt about it."""
    return tuple(
        f"{change.artifact}: {change.quantity} {change.before.value:.5g} → {change.after.value:.5g}"
        + (f" (doubtful: {'; '.join(change.doubts)})" if change.doubts else "")
        for change in changes
        if change.verdict == "worse" and _kind(change.quantity) not in _TOLD
    )


def _changes(before: Result, after: Result, limits: Limits) -> Iterator[Change]:
    for artifact, values in before.artifacts.items():
        for quantity, one in values.items():
            more_is_better, limit = _QUANTITIES[_kind(quantity)]
            other = after.artifacts.get(artifact, {}).get(quantity)
            if other is not None:
                change = other.value - one.value if more_is_better else other.value / one.value
                worsening = -change if more_is_better else change - 1
                verdict = _verdict(one, other, worsening, limit(limits))
                yield Change(artifact, quantity, one, other, change, not more_is_better, verdict)


def _kind(quantity: str) -> str:
    """Without threads and batch size."""
    return quantity.partition(",")[0]


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
    digest, machine = document.get("source_digest"), None
    runs: Sequence[Mapping[str, Any]] = ()
    if form in ("vitedge-device/1", "vitedge-selftest/1"):
        halves: tuple[Any, Any] = (document, None)
        if form == "vitedge-device/1":
            halves = (document["selftest"], document["bench"])
        selftest, bench = halves
        digest = (selftest or bench)["source_digest"]
        _numbers_of_selftest(selftest, artifacts)  # of `benchmark_model` there is none
        machine = _machine(selftest["machine"]) if selftest else None
        runs = bench["runs"] if bench else []
    elif form == "vitedge-benches/2":
        runs = document["runs"]
    elif form in ("vitedge-report/1", "vitedge-verify/1"):
        if form == "vitedge-report/1":
            digest = document["source"]["digest"]
        _numbers_of_accuracy(document["accuracy"] or {}, artifacts)
        runs = [document["bench"]] if document.get("bench") else []
    else:
        raise ValueError(f"format {form}")
    for run in runs:
        machine = _machine(run["machine"])
        for name, pair in run["pairs"].items():
            artifacts.setdefault(name, {}).update(_numbers_of_bench(run, pair))
    return Result(path, machine, artifacts, None if digest is None else str(digest))


def _numbers_of_accuracy(accuracy: Mapping[str, Any], artifacts: dict[str, dict[str, Value]]) -> None:
    for name, report in accuracy.items():
        last = report["outputs"]["last_hidden_state"]
        artifacts[name] = {
            "SQNR dB": _value(last["sqnr_db"], last["sqnr_db_interval"], positive=False),
            "CLS cosine mean": _value(last["cosine_mean"], last["cosine_mean_interval"], positive=False),
        }


def _numbers_of_bench(run: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Value]:
    found, threads, batch = pair["artifact"], run["threads"], run["batch"]
    delegate = str(run.get("delegate", "none"))  # another processor, not a slower or faster one
    how = "" if (threads, batch) == (1, 1) else f", {threads} threads, batch {batch}"
    how += "" if delegate == "none" else f", delegate {delegate}"
    flags = tuple(str(flag) for flag in (*run["flags"], *pair["flags"]))
    latency = _value(found["latency_median_ms"], found["latency_interval_ms"])
    numbers = {f"latency ms{how}": replace(latency, flags=flags)}
    for quantity, key, doubts in (
        (f"load ms{how}", "load_ms", flags),
        (f"peak bytes{how}", "peak_bytes", ()),
        ("file bytes", "size_bytes", ()),
    ):
        if found[key] is not None:
            numbers[quantity] = replace(_value(found[key]), flags=doubts)
    return numbers


def _numbers_of_selftest(document: Mapping[str, Any] | None, artifacts: dict[str, dict[str, Value]]) -> None:
    for check in document["checks"] if document else ():
        if check["step"] == "inference" and check["status"] != "skip":
            numbers = {"self-test": Value(float(check["status"] == "pass"))}
            if "sqnr_db" in check["numbers"]:
                numbers["SQNR dB of golden images"] = _value(check["numbers"]["sqnr_db"], positive=False)
            artifacts[check["artifact"]] = numbers


def _machine(machine: Mapping[str, Any]) -> str:
    return str(machine["cpu_model"] or machine["architecture"])


def _value(value: Any, interval: Any = None, *, positive: bool = True) -> Value:
    """A number; what is compared by quotients must be positive."""
    ends = None if interval is None else (float(interval[0]), float(interval[1]))
    found = Value(float(value), ends)
    if not all(math.isfinite(number) and (number > 0 or not positive) for number in (found.value, *(ends or ()))):
        raise ValueError(f"expected {'positive' if positive else 'finite'} numbers, found {value} within {interval}")
    return found
