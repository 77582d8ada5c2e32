"""A home folder in which it shows if a runtime reports to its vendor: it leaves an identifier there first."""

import os
from pathlib import Path

import pytest

# So that what a process would report gets nowhere.
_NO_WAY_OUT = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"), "http://127.0.0.1:9")
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG")  # runtimes ask for the names of a dozen services that run tests


def watch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder the home of processes that the test starts, which hear of nothing else that is set here."""
    home.mkdir()
    for name in set(os.environ) - set(_KEPT):
        monkeypatch.delenv(name)
    for name, value in {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **_NO_WAY_OUT}.items():
        monkeypatch.setenv(name, value)


def left_behind(home: Path) -> set[str]:
    """Names of the files in it."""
    return {path.name for path in home.rglob("*") if path.is_file()}
