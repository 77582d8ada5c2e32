"""Files that are replaced whole or not at all: written beside their place first, then renamed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitedge.runtimes.errors import OutputError


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yields the name to write to; that file becomes `path` if the block ends without an exception, else it vanishes.

    Raises:
        OutputError: The system refused a write, in the block or afterwards; what was there before is unchanged.
    """
    new = path.with_name(f".{path.name}.new-{secrets.token_hex(4)}")  # not the process: in containers, numbers repeat
    try:
        yield new
        with new.open("rb+") as file:
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written ({error.strerror or error}); what was there before is unchanged"
        ) from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
