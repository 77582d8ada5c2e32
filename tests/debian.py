"""Packages of Debian, of any release and architecture, unpacked into a folder: nothing is installed on this machine.

apt downloads with a state of its own, so that neither its lists nor what is installed here matter.
"""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def unpack(packages: Sequence[str], root: Path, *, architecture: str, release: str) -> None:
    """Unpacks packages and what they depend on below a folder that is made; no script of theirs runs.

    Args:
        packages: Names of packages.
        root: The folder that becomes `/` of them.
        architecture: Debian's name of it, as `arm64`.
        release: Debian's name of it, as `bookworm`.
    """
    apt = root.with_name(f"{root.name}-apt")
    shutil.rmtree(apt, ignore_errors=True)
    for folder in (apt / "state/lists/partial", apt / "cache/archives/partial", root):
        folder.mkdir(parents=True)
    (apt / "state/status").touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "state/status",
        "Dir::Cache": apt / "cache",
    }
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    run([*command, "update"])
    # Where this machine finds Debian, another release is beside its own.
    sites = run([*command, "indextargets", "--format=$(SITE)", "Origin: Debian", "Label: Debian"]).split()
    assert sites, "expected Debian among the sources of this machine's apt"
    (apt / "sources.list").write_text(f"deb [signed-by={_KEYS}] {sites[0]} {release} main\n")
    command += [f"-oDir::Etc::SourceList={apt / 'sources.list'}", "-oDir::Etc::SourceParts=/dev/null"]
    run([*command, "update"])
    run([*command, "install", "--download-only", "--yes", "--no-install-recommends", *packages])
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        run(["dpkg-deb", "--extract", str(package), str(root)])
    shutil.rmtree(apt)


def run(command: Sequence[str]) -> str:
    """What a command says that has to succeed."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command[:4])} …: {result.stdout[-2000:]}{result.stderr[-2000:]}"
    return result.stdout
