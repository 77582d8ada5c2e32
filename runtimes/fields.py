"""JSON documents that nobody vouches for, and their fields: each is what it must be, or refused."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vitedge.runtimes.errors import ArtifactError

T = TypeVar("T")
_MAX_COUNT = 1 << 53  # what JSON's numbers hold exactly everywhere
# Control characters but the line break, which terminals obey; and halves of surrogate pairs, which cannot be encoded.
_UNPRINTABLE = dict.fromkeys((*range(10), *range(11, 32), *range(127, 160), *range(0xD800, 0xE000)), "\ufffd")


def parse_json(document: str) -> Any:
    """What a JSON text holds. Its numbers are finite: vitedge writes no others, and few tools read them.

    Raises:
        ValueError: It is no JSON, or holds NaN, an infinity, or a number as large as one.
        RecursionError: It is nested too deeply.
    """

    def finite(digits: str) -> float:
        if not math.isfinite(value := float(digits)):
            raise ValueError(f"expected a finite number, found {digits}")
        return value

    def whole(digits: str) -> int:
        finite(digits)
        return int(digits)

    return json.loads(document, parse_float=finite, parse_int=whole, parse_constant=finite)


def printable(words: str) -> str:
    """Text that a terminal shows and does not obey: names and labels may hold escape sequences."""
    return words.translate(_UNPRINTABLE)


def many(value: Any, parse: Callable[[Any], T]) -> tuple[T, ...]:
    """A list, each item parsed.

    Raises:
        ArtifactError: Not a list.
    """
    if not isinstance(value, list):
        raise ArtifactError(f"expected a list, found {type(value).__name__}")
    return tuple(parse(item) for item in value)


def mapping(value: Any) -> Mapping[str, Any]:
    """An object.

    Raises:
        ArtifactError: Not an object.
    """
    if not isinstance(value, dict):
        raise ArtifactError(f"expected an object, found {value!r}")
    return value


def text(value: Any) -> str:
    """A string.

    Raises:
        ArtifactError: Not a string.
    """
    if not isinstance(value, str):
        raise ArtifactError(f"expected a string, found {value!r}")
    return value


def count(value: Any) -> int:
    """A whole number of at least 0, and at most 2^53.

    Raises:
        ArtifactError: Not one.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_COUNT:
        raise ArtifactError(f"expected a number of at least 0, found {value!r}")
    return value


def integer(value: Any) -> int:
    """A whole number.

    Raises:
        TypeError: Not one.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def plain_path(value: Any) -> str:
    """A relative path of plain names, such as `images/0.png`, that cannot leave the folder it is taken from.

    Raises:
        ArtifactError: Not one.
    """
    path = text(value)
    if any(part in ("", ".", "..") for part in path.split("/")) or set(path) & set("\\:\0"):
        raise ArtifactError(f"path {path!r}: expected plain names inside the folder")
    return path
