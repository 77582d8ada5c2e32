"""A `.npz` file written a few rows at a time, so that it may be larger than memory; `np.load` reads it as any other."""

import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from vitedge.runtimes.errors import OutputError
from vitedge.runtimes.files import replacing_file

_COPY_BYTES = 1 << 20
_NAMES_AT_ONCE = 4096


class NpzWriter:
    """Collects rows of arrays and puts them into an archive at once, or leaves no trace.

    A member of an archive is written in one piece, after a header that says how many rows it has. So rows wait in files
    beside the target that have no name, and are gone whatever happens to this process: twice the room is needed.

    Args:
        path: The archive; replaced by `finish`, untouched before.
        names: The arrays that `append` will be given.

    Raises:
        OutputError: Here, in `append` and in `finish`: it cannot be written.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        if path.is_dir():
            raise OutputError(f"{path}: expected the name of a file to write, found a folder")
        self._path = path
        self._stack = ExitStack()
        self._first: Mapping[str, NDArray[Any]] = {}
        self._rows = 0
        with self._errors():
            self._files = {
                # Without a buffer, so that a full disk is told where it is met and not again where a file is closed.
                name: self._stack.enter_context(tempfile.TemporaryFile(dir=path.parent, buffering=0))  # noqa: SIM115
                for name in names
            }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def append(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Adds rows: [rows, …] of each array, of the same type and shape every time but for the number of rows."""
        self._first = self._first or {name: array[:1].copy() for name, array in arrays.items()}
        self._rows += len(next(iter(arrays.values())))
        with self._errors():
            for name, file in self._files.items():
                left = np.ascontiguousarray(arrays[name]).data.cast("B")
                while left:
                    left = left[file.write(left) :]

    def finish(self, **texts: Sequence[str]) -> None:
        """Writes the archive: arrays of texts, as many as there are rows, before those that were appended."""
        with replacing_file(self._path) as new, zipfile.ZipFile(new, "w") as archive:
            for name, values in texts.items():
                dtype = np.dtype(f"U{max(map(len, values))}")
                with _member(archive, name, dtype, (len(values),)) as member:
                    for start in range(0, len(values), _NAMES_AT_ONCE):
                        member.write(np.array(values[start : start + _NAMES_AT_ONCE], dtype).tobytes())
            for name, rows in self._files.items():
                first = self._first[name]
                with _member(archive, name, first.dtype, (self._rows, *first.shape[1:])) as member:
                    rows.seek(0)
                    while chunk := rows.read(_COPY_BYTES):
                        member.write(chunk)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{self._path}: cannot be written ({error.strerror}); what was there before is unchanged"
            ) from error


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[IO[bytes]]:
    """One array of an archive, its header written."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)
        yield member
