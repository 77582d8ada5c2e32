"""Swift for Linux: Debian has it from its release 13 on. Its packages are unpacked into a folder (3 GB).

Its programs need a C library that is newer than this machine's may be, so that they run with that folder as root; a
project's folder is there too, below the same path. That takes a namespace of mounts, whose root is who calls.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.debian import unpack
from tests.unpacked import unpacked

_PACKAGES = ("swiftlang", "libc6-dev", "libstdc++-14-dev", "libssl3t64")
_TOOLS = "/usr/libexec/swift/bin"
_LIBRARIES = "/usr/libexec/swift/lib/swift/linux"
_OPENSSL = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3"
_NAMESPACE = ("unshare", "--map-root-user", "--mount")
# Arguments: the root, the project's folder, a command.
_ENTER = """
set -e
root=$1 project=$2
shift 2
mkdir -p "$root$project"
for path in /proc /dev "$project"; do mount --rbind "$path" "$root$path"; done
exec chroot "$root" "$@"
"""


def _can_run() -> bool:
    debian = Path("/etc/os-release").exists() and platform.freedesktop_os_release()["ID"] == "debian"
    if not (debian and platform.machine() == "x86_64" and shutil.which("unshare")):
        return False
    return subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


needs_swift = pytest.mark.skipif(
    os.environ.get("CI") is None and not _can_run(), reason="needs Debian on x86-64, and namespaces for users"
)


class Swift:
    """Debian's Swift, unpacked if nobody did."""

    def __init__(self) -> None:
        self._root = unpacked("swift", _make) / "root"

    @property
    def home(self) -> Path:
        """The home folder of its programs, and of the tests, which is new for each run."""
        return self._root / "home"

    def test(self, package: Path, project: Path, libraries: Path) -> subprocess.CompletedProcess[str]:
        """Runs `swift test`, which builds a package and what it depends on.

        Args:
            package: The folder of `Package.swift`, where its tests run.
            project: A folder that holds it, and the packages that it depends on by path.
            libraries: A folder in it of the shared libraries that they link.
        """
        shutil.rmtree(self.home, ignore_errors=True)
        self.home.mkdir()
        linked = [word for path in (f"-L{libraries}", _OPENSSL) for word in ("-Xlinker", path)]
        command = [f"{_TOOLS}/swift-test", "--package-path", str(package), "--disable-sandbox", *linked]
        environment = {
            "PATH": f"{_TOOLS}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": f"/{self.home.name}",
            "LD_LIBRARY_PATH": f"{_LIBRARIES}:{libraries}",
        }
        enter = [*_NAMESPACE, "sh", "-c", _ENTER, "sh", str(self._root), str(project)]
        return subprocess.run(
            [*enter, *command], env=environment, capture_output=True, text=True, check=False, timeout=900
        )


def _make(folder: Path) -> None:
    root = folder / "root"
    unpack(_PACKAGES, root, architecture="amd64", release="trixie")
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "tmp"):
        (root / name).mkdir()
