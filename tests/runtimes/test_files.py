"""Files that are replaced whole or not at all."""

from pathlib import Path

import pytest

from vitedge.runtimes.errors import OutputError
from vitedge.runtimes.files import replacing_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "found.json"
    path.write_text("before")
    return path


def check_unchanged(file: Path) -> None:
    assert file.read_text() == "before"
    assert list(file.parent.iterdir()) == [file]


def test_what_is_written_takes_the_place_at_the_end(file: Path) -> None:
    with replacing_file(file) as new:
        new.write_text("after")
        assert file.read_text() == "before"
    assert file.read_text() == "after"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(file: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), replacing_file(file) as new:
        new.write_text("half")
        raise error
    check_unchanged(file)


def test_a_refused_write_is_told_and_leaves_what_was_there(file: Path) -> None:
    message = r"found\.json: cannot be written \(No space.*what was there before"
    with pytest.raises(OutputError, match=message), replacing_file(file) as new:
        new.write_text("half")
        raise OSError(28, "No space left on device")
    check_unchanged(file)


def test_a_folder_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"), replacing_file(tmp_path / "no" / "file") as new:
        new.write_text("after")


def test_two_at_once_do_not_meet(file: Path) -> None:
    with replacing_file(file) as first, replacing_file(file) as second:
        first.write_text("first")
        second.write_text("second")
    assert file.read_text() == "first"
