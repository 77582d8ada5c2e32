"""`vitedge bench --device ssh://…` against a real sshd on loopback: what it measures, refuses and leaves behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.commands.conftest import Site
from vitedge.benchmarks.devices import DeviceError
from vitedge.benchmarks.remote import measure_bundle
from vitedge.benchmarks.ssh import SshDevice, parse_ssh
from vitedge.runtimes.manifest import sha256_of

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
pytestmark = pytest.mark.skipif(
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    root = tmp_path_factory.mktemp("sshd")
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
        "SetEnv": f"TMPDIR={temporary} PYTHONDONTWRITEBYTECODE=1",
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


def bench(site: Site, build: Path, server: Host, *options: str | Path, url: str | None = None) -> object:
    arguments = ("--device", url or server.url, "--ssh-config", server.config, "--seconds", "0.1")
    return site.vitedge("bench", build, *arguments, *options)


@pytest.fixture
def here() -> tuple[str, ...]:
    """This environment's Python plays the device's."""
    return ("--no-install", "--device-python", sys.executable)


def test_tests_and_measures_there(site: Site, built: Path, server: Host, here: tuple[str, ...]) -> None:
    result = bench(site, built, server, *here, "--json")
    assert result.exit_code == 0, result.stderr  # type: ignore[attr-defined]
    document = json.loads(result.stdout)  # type: ignore[attr-defined]
    assert (document["format"], document["device"]) == ("vitedge-device/1", server.url)
    assert document["selftest"]["passed"] is True
    run = document["bench"]["runs"][0]
    assert run["pairs"].keys() == {"onnx", "openvino", "tflite"}
    assert all(pair["speedup"] is not None for pair in run["pairs"].values())
    assert document["bench"]["machine"] if "machine" in document["bench"] else run["machine"]["isa_flags"]
    assert document["bench"]["artifacts"]["onnx"]["sha256"]["model.onnx"]
    assert server.left() == []


def test_installs_into_an_environment_of_its_own(site: Site, built: Path, server: Host) -> None:
    result = bench(site, built / "onnx", server, "--device-python", sys.executable)
    assert result.exit_code == 0, result.stderr  # type: ignore[attr-defined]
    assert "PASS  inference onnx" in result.stdout  # type: ignore[attr-defined]
    assert "onnx: INT8" in result.stdout  # type: ignore[attr-defined]
    assert server.left() == []


def test_unreachable_host(site: Site, built: Path, server: Host) -> None:
    result = bench(site, built, server, url=f"ssh://127.0.0.1:{free_port()}")
    assert result.exit_code == 2  # type: ignore[attr-defined]
    assert "cannot be reached (" in result.stderr  # type: ignore[attr-defined]


def test_unknown_and_changed_host_keys(
    site: Site, built: Path, server: Host, here: tuple[str, ...], tmp_path: Path
) -> None:
    whole = server.known_hosts.read_text()
    try:
        server.known_hosts.write_text("")
        unknown = bench(site, built, server, *here)
        key(tmp_path / "other")
        server.known_hosts.write_text(f"[127.0.0.1]:{server.port} {(tmp_path / 'other.pub').read_text()}")
        changed = bench(site, built, server, *here)
        assert server.known_hosts.read_text().count("\n") == 1  # nothing was accepted
    finally:
        server.known_hosts.write_text(whole)
    assert (unknown.exit_code, changed.exit_code) == (2, 2)  # type: ignore[attr-defined]
    assert "host key is not known here; connect once by hand" in unknown.stderr  # type: ignore[attr-defined]
    assert "host key is not the one that is known" in changed.stderr  # type: ignore[attr-defined]
    assert server.left() == []


def test_a_user_without_a_key(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"IdentityFile {key(tmp_path / 'stranger')}\nIdentitiesOnly yes\nUserKnownHostsFile {server.known_hosts}\n"
    )
    result = site.vitedge("bench", built, "--device", server.url, "--ssh-config", config)
    assert result.exit_code == 2
    assert "it lets nobody in without a key" in result.stderr


def test_device_without_python_and_with_an_old_one(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    none = bench(site, built, server, "--device-python", "/nowhere/python3")
    assert none.exit_code == 2  # type: ignore[attr-defined]
    assert "found no /nowhere/python3 there" in none.stderr  # type: ignore[attr-defined]
    old = tmp_path / "python3.9"
    old.write_text("#!/bin/sh\necho '[[3, 9], \"/tmp\", 100000000000, []]'\n")
    old.chmod(0o755)
    result = bench(site, built, server, "--device-python", str(old))
    assert result.exit_code == 2  # type: ignore[attr-defined]
    assert "expected Python 3.11 or newer, found 3.9" in result.stderr  # type: ignore[attr-defined]
    assert server.left() == []


def test_device_without_space(site: Site, built: Path, server: Host, here: tuple[str, ...], tmp_path: Path) -> None:
    """A Python whose temporary folder is on a full disk: two megabytes of memory."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], check=True)
    try:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nTMPDIR={small} exec {sys.executable} "$@"\n')
        python.chmod(0o755)
        result = bench(site, built, server, "--no-install", "--device-python", str(python))
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
    assert result.exit_code == 2  # type: ignore[attr-defined]
    assert f"MB of free space in {small}, found 2 MB; make room" in result.stderr  # type: ignore[attr-defined]


def test_artifact_changed_in_transit(
    site: Site, built: Path, server: Host, here: tuple[str, ...], tmp_path: Path
) -> None:
    """The bundle that arrives is not the one that was made."""
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built / "onnx", "--out", bundle).exit_code == 0
    model = bundle / "artifacts" / "onnx" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    device = SshDevice("127.0.0.1", None, server.port, sys.executable, install=False, config=server.config)
    result = measure_bundle(device, bundle, threads=1, seconds=0.1)
    assert result.bench is None
    assert result.selftest["passed"] is False
    assert "model.onnx: expected SHA-256" in "\n".join(result.lines())
    assert server.left() == []


def processes_in(folder: Path) -> list[str]:
    """Command lines of processes that work in or below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((process / "cwd").readlink()).startswith(str(folder)):
                found.append((process / "cmdline").read_text())
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt_leaves_nothing(sent: signal.Signals, built: Path, server: Host, here: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "vitedge", "bench", str(built), "--device", server.url, "--ssh-config"]
    command += [str(server.config), *here, "--seconds", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):
            if processes_in(server.temporary):
                break
            time.sleep(0.05)
        process.send_signal(sent)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert server.left() == []
    assert processes_in(server.temporary) == []


def test_a_lost_connection_says_what_is_left(built: Path, site: Site, server: Host, tmp_path: Path) -> None:
    """The device kills the connection in the middle, and is then unreachable."""
    python = tmp_path / "python"
    calls = tmp_path / "calls"
    # The nearest sshd above is the one of this connection.
    python.write_text(
        f"#!/bin/sh\necho x >> {calls}\nif [ $(wc -l < {calls}) -gt 3 ]; then p=$$\n"
        "until [ $(cat /proc/$p/comm) = sshd ]; do p=$(awk '/^PPid/ {print $2}' /proc/$p/status); done\n"
        f'kill -9 $p; exit 1; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built / "onnx", "--out", bundle).exit_code == 0
    device = SshDevice("127.0.0.1", None, server.port, str(python), install=False, config=server.config)
    with pytest.raises(DeviceError, match=r"vitedge-\w+ is left there: remove it when the device is back"):
        measure_bundle(device, bundle, threads=1, seconds=0.1)
    (left,) = server.left()
    shutil.rmtree(server.temporary / left)


def test_a_folder_that_cannot_be_removed_costs_no_measurement(
    site: Site, built: Path, server: Host, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *rmtree*) echo "denied" >&2; exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    result = bench(site, built / "onnx", server, "--device-python", str(python), "--no-install", "--json")
    assert result.exit_code == 0, result.stderr  # type: ignore[attr-defined]
    (left,) = server.left()
    said = f"{server.temporary / left} could not be removed (denied); remove it there"
    assert f"warning: left behind: {said}" in result.stderr  # type: ignore[attr-defined]
    document = json.loads(result.stdout)  # type: ignore[attr-defined]
    assert document["left"] == said
    assert document["bench"]["runs"][0]["pairs"]["onnx"]["artifact"]["latency_median_ms"] > 0
    shutil.rmtree(server.temporary / left)


def test_what_does_not_load_there_costs_no_self_test(built: Path, site: Site, server: Host, tmp_path: Path) -> None:
    """A runtime that is too old for the artifact: the self-test says so, and nothing is measured."""
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built / "onnx", "--out", bundle).exit_code == 0
    manifest = bundle / "artifacts" / "onnx" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"minimum_runtime": "99"}))
    index = json.loads((bundle / "bundle.json").read_text())
    index["files"]["artifacts/onnx/manifest.json"] = {
        "sha256": sha256_of(manifest),
        "size_bytes": manifest.stat().st_size,
    }
    (bundle / "bundle.json").write_text(json.dumps(index))
    device = SshDevice("127.0.0.1", None, server.port, sys.executable, install=False, config=server.config)
    result = measure_bundle(device, bundle, threads=1, seconds=0.1)
    assert result.bench is None
    (failed,) = (check for check in result.selftest["checks"] if check["status"] == "fail")
    assert (failed["step"], failed["artifact"]) == ("inference", "onnx")
    assert failed["cause"] == "an old runtime: pip install -U onnxruntime"
    assert server.left() == []


def test_what_a_device_says_need_not_be_text(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nprintf 'k\\374hl\\n' >&2\nexit 3\n")
    python.chmod(0o755)
    result = bench(site, built, server, "--device-python", str(python))
    assert result.exit_code == 2  # type: ignore[attr-defined]
    assert "Python failed there: k\ufffdhl" in result.stderr  # type: ignore[attr-defined]


def test_a_push_that_breaks_off_says_why(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *tarfile*) echo "No space left" >&2; exit 1;; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built, "--out", bundle).exit_code == 0
    (bundle / "large").write_bytes(bytes(8 << 20))
    device = SshDevice("127.0.0.1", None, server.port, str(python), install=False, config=server.config)
    with pytest.raises(DeviceError, match="the bundle did not arrive: No space left"):
        measure_bundle(device, bundle, threads=1, seconds=0.1)
    assert server.left() == []


def test_without_ssh(site: Site, built: Path, server: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = bench(site, built / "onnx", server)
    assert result.exit_code == 2  # type: ignore[attr-defined]
    assert "ssh is not installed here" in result.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text",
    ["ssh://", "ssh://-oProxyCommand=touch", "ssh://-l@host", "ssh://host/path", "ssh://user:secret@host", "ssh://h:x",
     "ssh://h:0", "ssh://h:65536",
     "http://host", "host", "ssh://a b", "ssh://$(touch x)", "ssh://host;ls"],
)  # fmt: skip
def test_what_is_no_device(text: str) -> None:
    with pytest.raises(DeviceError, match="expected local, ssh://user@host:port or adb:SERIAL"):
        parse_ssh(text)


def test_what_is_one() -> None:
    found = parse_ssh("ssh://pi@board.local:2222")
    assert (found.user, found.host, found.port, found.name) == ("pi", "board.local", 2222, "ssh://pi@board.local:2222")
    assert parse_ssh("ssh://Board") == SshDevice("Board")  # an alias of ssh's configuration has a case
    assert parse_ssh("ssh://[fe80::1]:22/") == SshDevice("fe80::1", None, 22)


def test_words_for_the_device_are_quoted(site: Site, built: Path, server: Host, tmp_path: Path) -> None:
    """A path that a shell would run is a path."""
    trap = tmp_path / "python; touch trapped; $(touch trapped)"
    trap.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    trap.chmod(0o755)
    bundle = tmp_path / "bundle"
    assert site.vitedge("bundle", built / "onnx", "--out", bundle).exit_code == 0
    device = SshDevice("127.0.0.1", None, server.port, str(trap), install=False, config=server.config)
    assert measure_bundle(device, bundle, threads=1, seconds=0.1).selftest["passed"] is True
    assert server.left() == []
    assert not (Path.home() / "trapped").exists()
