"""A home folder in which it shows if a runtime reports to its vendor: it leaves an identifier there first."""

from pathlib import Path

import pytest

# So that a process which would report cannot: no certificates, no way out.
_NO_WAY_OUT = {"SSL_CERT_FILE": "/nonexistent", "HTTPS_PROXY": "http://127.0.0.1:9"}
_SWITCHES = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY")  # that runtimes ask for


def watch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a folder the home of processes that the test starts, which hear of no switch that is set here."""
    home.mkdir()
    for name in _SWITCHES:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **_NO_WAY_OUT}.items():
        monkeypatch.setenv(name, value)


def left_behind(home: Path) -> set[str]:
    """Names of the files in it."""
    return {path.name for path in home.rglob("*") if path.is_file()}
