"""JSON documents that a page is made of: each is what it must be, or refused."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vitedge.runtimes.errors import VitedgeError
from vitedge.runtimes.fields import parse_json

T = TypeVar("T")
_MAX_BYTES = 64 << 20


class ReportError(VitedgeError):
    """A page cannot be made: a document is missing or damaged, or is about something else."""


def read_document(path: Path, formats: Collection[str], advice: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """Reads a document and makes something of it.

    Args:
        path: A JSON file.
        formats: What its `format` may be.
        advice: What to do if it is not that.
        parse: Makes something of it; any field that is missing or of the wrong type is an error of the document.

    Raises:
        ReportError: There is none, it is too large, no JSON, of another format, or does not hold what is read from it.
    """
    try:
        size_bytes = path.stat().st_size
        document = parse_json(path.read_text(encoding="utf-8")) if size_bytes <= _MAX_BYTES else None
    except FileNotFoundError as error:
        raise ReportError(f"{path}: no such file; {advice}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ReportError(f"{path}: expected a JSON file ({error}); {advice}") from error
    if size_bytes > _MAX_BYTES:
        raise ReportError(f"{path}: expected at most {_MAX_BYTES} bytes, found {size_bytes}; {advice}")
    found = document.get("format") if isinstance(document, dict) else type(document).__name__
    if not isinstance(document, dict) or found not in formats:
        raise ReportError(f"{path}: expected format {' or '.join(formats)}, found {found}; {advice}")
    try:
        return parse(document)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, OSError) as error:
        raise ReportError(f"{path}: not readable ({type(error).__name__}: {error}); {advice}") from error
