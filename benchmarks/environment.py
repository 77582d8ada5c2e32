"""A virtual environment on a device, with the packages that a bundle asks for.

Each runtime is installed alone: one that has no wheel for the device costs the others nothing. The self-test skips it.
"""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitedge.benchmarks.devices import DeviceError, last_line
from vitedge.benchmarks.remote_python import Remote, guarded, run
from vitedge.runtimes.encoder import DISTRIBUTIONS

_REQUIREMENTS_FILE = "requirements.txt"
_INSTALL_SECONDS = 3600.0
# What an environment with numpy, and each runtime with what it depends on, take on x86-64, as of 2026, with what pip
# downloads and unpacks meanwhile; and a fifth more.
_BASE_BYTES = 160 << 20
_RUNTIME_BYTES = {"onnxruntime": 120 << 20, "openvino": 270 << 20, "ai-edge-litert": 120 << 20}
_QUIET = {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # pip leaves nothing in the user's cache
_OFFLINE = "without a network, install the packages of requirements.txt there and pass --no-install"


@dataclass(frozen=True)
class Environment:
    """The Python that runs a bundle on a device, and why packages of runtimes are not installed for it, by name."""

    python: str
    not_installed: Mapping[str, str] = field(default_factory=dict)


def environment_bytes(runtimes: Sequence[str]) -> int:
    """The free space that an environment with these packages of runtimes needs."""
    return _BASE_BYTES + sum(_RUNTIME_BYTES[name] for name in runtimes)


def make_environment(remote: Remote, folder: str, bundle: Path) -> Environment:
    """Makes one in a folder there.

    Args:
        remote: Where.
        folder: The bundle's folder there.
        bundle: The same here.

    Raises:
        DeviceError: It cannot be made, or none of the runtimes can be installed.
    """
    made = _install(remote, folder, [remote.python, "-m", "venv", f"{folder}/venv"])
    if made.returncode:
        raise DeviceError(f"{remote.name}: {_why_no_environment(made)}")
    python = f"{folder}/venv/bin/python"
    common, runtimes = _requirements(bundle)
    failed = {}
    for name, requirement in runtimes.items():
        words = [python, "-m", "pip", "install", "--quiet", "--no-input", *common, requirement]
        result = _install(remote, folder, words)
        if result.returncode:
            failed[name] = last_line(result)
    if len(failed) == len(runtimes):
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise DeviceError(f"{remote.name}: pip install failed there ({reasons}); {_OFFLINE}")
    return Environment(python, failed)


def _install(remote: Remote, folder: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return run(remote, guarded(remote, words, TMPDIR=folder, **_QUIET), seconds=_INSTALL_SECONDS)


def _requirements(bundle: Path) -> tuple[list[str], dict[str, str]]:
    """Lines of the bundle's requirements: what each runtime needs, and runtimes by name."""
    common, runtimes = [], {}
    for line in (bundle / _REQUIREMENTS_FILE).read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        name = requirement.partition(">=")[0]
        if name in DISTRIBUTIONS.values():
            runtimes[name] = requirement
        elif requirement:
            common.append(requirement)
    return common, runtimes


def _why_no_environment(result: subprocess.CompletedProcess[str]) -> str:
    """Debian splits what makes environments from Python, and says so on standard output, some lines before the end."""
    said = result.stdout + result.stderr
    if "ensurepip" in said or "No module named venv" in said:
        return (
            "its Python cannot make virtual environments: install python3-venv there (Debian: sudo apt install"
            " python3-venv); or install the packages of requirements.txt, and pass --no-install"
        )
    return f"a virtual environment could not be made there: {last_line(result)}"
