"""What a device prints of a bundle is read here first: it holds what is read from it later, or is refused."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.fields import many, mapping, text

T = TypeVar("T")
SELFTEST_FORMAT, BENCH_FORMAT = "vitedge-selftest/1", "vitedge-benches/2"


def check_document(document: Any, form: str) -> dict[str, Any]:
    """A document of that format, `SELFTEST_FORMAT` or `BENCH_FORMAT`.

    Raises:
        ArtifactError: It is none, or lacks something.
    """
    if not isinstance(document, dict) or document.get("format") != form:
        raise ArtifactError(f"expected a document of format {form}")
    try:
        if form == SELFTEST_FORMAT:
            _check_selftest(document)
        else:
            _check_bench(document)
    except KeyError as error:
        raise ArtifactError(f"expected {error} in a document of format {form}") from error
    return document


def _check_selftest(document: Mapping[str, Any]) -> None:
    if not isinstance(document["passed"], bool):
        raise ArtifactError(f"passed: expected true or false, found {document['passed']!r}")
    _check_machine(document["machine"])
    for check in many(document["checks"], mapping):
        for name in ("step", "status", "found"):
            text(check[name])
        for name in ("artifact", "cause"):
            _optional(check[name], text)
        mapping(check["numbers"])


def _check_bench(document: Mapping[str, Any]) -> None:
    if not many(document["runs"], mapping):
        raise ArtifactError("runs: expected at least one")
    for run in document["runs"]:
        _check_machine(run["machine"])
        many(run["flags"], text)
        for pair in mapping(run["pairs"]).values():
            text(mapping(pair)["verdict"])
            many(pair["flags"], text)
            _number(mapping(pair["artifact"])["latency_median_ms"])


def _check_machine(machine: Any) -> None:
    for name in ("cpu_model", "architecture", "system"):
        _optional(mapping(machine)[name], text)


def _optional(value: Any, parse: Callable[[Any], T]) -> T | None:
    return None if value is None else parse(value)


def _number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ArtifactError(f"expected a number, found {value!r}")
    return value
