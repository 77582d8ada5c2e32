"""A real sshd on loopback, which plays a device that is reached over ssh."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import Result

if TYPE_CHECKING:  # it has this server among its fixtures
    from tests.commands.conftest import Site

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
needs_sshd = pytest.mark.skipif(
    os.environ.get("CI") is None and not (Path(SSHD).exists() and os.geteuid() == 0),
    reason="needs Debian's openssh-server, and root: sshd wants /run/sshd, and a full disk is a mount",
)


@dataclass(frozen=True)
class Host:
    """A running sshd, the client's configuration, and the folder in which it makes temporary ones."""

    port: int
    config: Path
    known_hosts: Path
    temporary: Path

    @property
    def url(self) -> str:
        return f"ssh://127.0.0.1:{self.port}"

    def left(self) -> list[str]:
        return [path.name for path in self.temporary.iterdir()]


def key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Host]:
    """Runs one for the length of a block."""
    host_key, user_key, port = key(root / "host"), key(root / "user"), free_port()
    temporary = root / "tmp"
    temporary.mkdir()
    shutil.copy(root / "user.pub", root / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd's own, where it separates privileges
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": host_key,
        "AuthorizedKeysFile": root / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "SetEnv": f"TMPDIR={temporary}",
    }
    (root / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    known = root / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(root / 'host.pub').read_text()}")
    config = root / "config"
    config.write_text(f"IdentityFile {user_key}\nIdentitiesOnly yes\nUserKnownHostsFile {known}\n")
    with subprocess.Popen([SSHD, "-D", "-e", "-f", root / "sshd_config"], stderr=subprocess.DEVNULL) as process:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield Host(port, config, known, temporary)
        process.terminate()


def bench(site: "Site", build: Path, server: Host, *options: str | Path, url: str | None = None) -> Result:
    arguments = ("--device", url or server.url, "--ssh-config", server.config, "--seconds", "0.1")
    return site.vitedge("bench", build, *arguments, *options)
