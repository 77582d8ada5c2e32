"""Fields of JSON documents that nobody vouches for: each is what it must be, or refused."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from vitedge.runtimes.errors import ArtifactError

T = TypeVar("T")


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
    """A whole number of at least 0.

    Raises:
        ArtifactError: Not one.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ArtifactError(f"expected a number of at least 0, found {value!r}")
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
