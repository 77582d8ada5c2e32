"""An Android device for the real `adb`: speaks its protocol on a TCP port of loopback, and keeps files in a folder.

The protocol is that of Android's packages/modules/adb (protocol.txt, SYNC.TXT, shell_protocol.h), as far as `adb
connect`, `push` and `shell` need it. Commands run in this machine's own `sh`, which sees the folder for the device's
root, so that quoting and exit codes are real; programs that only Android has are small scripts that print files of
`answers`. What is pushed as `benchmark_model` runs there, too, and this machine's Python plays that of Termux.

As adbd does, it passes on what adb reads, and where the connection breaks it closes the pipes and hangs up the shell
alone (shell_service.cpp): what the shell started goes on.
"""

import contextlib
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

_VERSION, _MAX_DATA = 0x01000001, 256 << 10
_BANNER = b"device::ro.product.name=test;ro.product.model=test;ro.product.device=test;features=shell_v2,cmd"
_TOKEN, _PUBLIC_KEY = 1, 3  # of AUTH: sign this; ask the user about this key
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = 0, 1, 2, 3, 4  # of the shell protocol
_ROOTED = ("/data/local/tmp", "/data/data/com.termux", "/sys/devices/system/cpu", "/sys/class/thermal", "/proc/cpuinfo")
_PROGRAMS = {
    "getprop": 'cat "$ROOT/answers/$1"',
    "dumpsys": 'cat "$ROOT/answers/dumpsys.$1"',
    "settings": 'cat "$ROOT/answers/settings.$3"',
    "df": 'cat "$ROOT/answers/df"',
    "uname": "echo 5.15.104-android13",
    "run-as": '[ -d "$ROOT/data/data/$1" ] || { echo "run-as: unknown package: $1" >&2; exit 1; }; shift; exec "$@"',
}
_ANSWERS = {
    "ro.soc.model": "SM8550",
    "ro.soc.manufacturer": "QTI",
    "ro.product.model": "Phone 1",
    "ro.build.version.release": "14",
    "ro.product.cpu.abi": "arm64-v8a",
    "df": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/block/dm-5 9000000 1 8000000 1% /data",
    "settings.low_power": "0",
    "dumpsys.battery": "Current Battery Service state:\n  AC powered: false\n  USB powered: true\n  status: 2\n"
    "  level: 85\n  scale: 100\n  temperature: 303",
    "dumpsys.thermalservice": "Thermal Status: 0\nCached temperatures:\n"
    "\tTemperature{mValue=99.0, mType=0, mName=stale, mStatus=0}\nCurrent temperatures from HAL:\n"
    "\tTemperature{mValue=41.5, mType=0, mName=CPU0, mStatus=0}\n"
    "\tTemperature{mValue=33.0, mType=3, mName=skin, mStatus=0}\nCurrent cooling devices from HAL:\n",
}
_CPUINFO = "".join(
    f"processor\t: {core}\nFeatures\t: fp asimd asimddp i8mm bf16\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
    for core, part in enumerate(("0xd80", "0xd80", "0xd4d", "0xd4e"))
)


@dataclass
class AdbDevice:
    """The device; what can go wrong is told by attributes, at any time.

    Attributes:
        root: Its file system.
        authorized: Whether it lets this computer in.
        silent: Whether it never answers a connection.
        corrupts: Whether it changes a byte of each file that arrives.
        drops_on: A word; a command that holds it finds the connection closed, `drops` times.
        drops: How often; after the last the device is back, unless that is more often than anybody tries.
    """

    root: Path
    authorized: bool = True
    silent: bool = False
    corrupts: bool = False
    drops_on: str | None = None
    drops: int = 1
    port: int = 0
    _server: socket.socket = field(default_factory=socket.socket)
    _connections: list[socket.socket] = field(default_factory=list)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def place(self) -> Path:
        return self.root / "data/local/tmp"

    @property
    def termux(self) -> Path:
        return self.root / "data/data/com.termux/files"

    def install_termux(self, python: str = f'exec {sys.executable} "$@"') -> None:
        """Puts Termux there, with a script for its Python; `run-as` lets it be entered."""
        for folder in ("home", "usr/bin", "usr/tmp"):
            (self.termux / folder).mkdir(parents=True, exist_ok=True)
        path = self.termux / "usr/bin/python3"
        path.write_text(f"#!/bin/sh\n{python}\n")
        path.chmod(0o755)

    def left(self) -> list[str]:
        """What lies in the folder that everybody may write to."""
        return [path.name for path in self.place.iterdir()]

    def answer(self, name: str, text: str | None) -> None:
        """Sets what a program prints; None is a program that fails."""
        path = self.root / "answers" / name
        if text is None:
            path.unlink()
        else:
            path.write_text(text + "\n")

    def program(self, name: str, script: str) -> Path:
        """Puts a program into the device's PATH."""
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def kernel_file(self, path: str, text: str) -> None:
        """Sets the contents of a file below /sys or /proc."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    def start(self) -> None:
        for folder in (self.place, self.root / "answers"):
            folder.mkdir(parents=True)
        for name, text in _ANSWERS.items():
            self.answer(name, text)
        for name, script in _PROGRAMS.items():
            self.program(name, script)
        self.kernel_file("proc/cpuinfo", _CPUINFO)
        for core, most in ((0, 2000000), (3, 3187200)):
            for name, value in (
                ("scaling_cur_freq", most), ("scaling_max_freq", most), ("cpuinfo_max_freq", most),
                ("scaling_governor", "walt"),
            ):  # fmt: skip
                self.kernel_file(f"sys/devices/system/cpu/cpu{core}/cpufreq/{name}", str(value))
        for zone, name, value in ((0, "cpu-1-0", 42000), (1, "battery", 30300), (2, "cpu-absent", -274000)):
            self.kernel_file(f"sys/class/thermal/thermal_zone{zone}/type", name)
            self.kernel_file(f"sys/class/thermal/thermal_zone{zone}/temp", str(value))
        self._server.bind(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._server.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.disconnect()

    def disconnect(self) -> None:
        """Closes all connections, as a pulled cable does."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def drops_now(self, command: str) -> bool:
        if self.drops_on is None or self.drops_on not in command or self.drops == 0:
            return False
        self.drops -= 1
        if self.drops:
            self.stop()
        self.disconnect()
        return True

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                threading.Thread(target=_Connection(self, connection).serve, daemon=True).start()


def _state_of(device: AdbDevice) -> str | None:
    said = subprocess.run(["adb", "devices"], check=True, capture_output=True, text=True).stdout
    return dict(line.split("\t") for line in said.splitlines() if "\t" in line).get(device.serial)


@contextlib.contextmanager
def connected(device: AdbDevice, state: str = "device") -> Iterator[AdbDevice]:
    """Starts a device and has the real adb connect to it."""
    device.start()
    connecting = subprocess.Popen(["adb", "connect", device.serial], stdout=subprocess.DEVNULL)
    try:
        for _ in range(400):
            if _state_of(device) == state:
                break
            time.sleep(0.05)
        assert _state_of(device) == state
        yield device
    finally:
        connecting.kill()
        connecting.wait()
        device.stop()
        subprocess.run(["adb", "disconnect", device.serial], check=False, capture_output=True)


class _Connection:
    """One connection of an adb server: messages of 24 bytes and a payload, for several streams at a time."""

    def __init__(self, device: AdbDevice, connection: socket.socket) -> None:
        self._device, self._socket = device, connection
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def serve(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<4s5I", self._exactly(24))
                self._handle(command, first, second, self._exactly(size))
        except OSError:
            for stream in self._streams.values():
                stream.close()
            self._socket.close()

    def send(self, command: bytes, first: int, second: int, payload: bytes = b"") -> None:
        magic = struct.unpack("<I", command)[0] ^ 0xFFFFFFFF
        checksum = sum(payload) & 0xFFFFFFFF
        with self._lock:
            self._socket.sendall(struct.pack("<4s5I", command, first, second, len(payload), checksum, magic) + payload)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ConnectionError
            data += chunk
        return data

    def _handle(self, command: bytes, first: int, second: int, payload: bytes) -> None:
        if command in (b"CNXN", b"AUTH"):
            if self._device.silent or (command == b"AUTH" and first == _PUBLIC_KEY):  # asks its user, who is away
                return
            if self._device.authorized:
                self.send(b"CNXN", _VERSION, _MAX_DATA, _BANNER)
            else:
                self.send(b"AUTH", _TOKEN, 0, bytes(20))
        elif command == b"OPEN":
            stream = _Stream(self, self._device, mine=first, theirs=first, service=payload.rstrip(b"\0").decode())
            self._streams[first] = stream
            threading.Thread(target=stream.run, daemon=True).start()
        elif second in self._streams:
            stream = self._streams[second]
            if command == b"WRTE":
                stream.received.put(payload)
                self.send(b"OKAY", stream.mine, stream.theirs)
            elif command == b"OKAY":
                stream.ready.release()
            elif command == b"CLSE":
                del self._streams[second]
                stream.close()


class _Stream:
    """One service that adb opened: a shell, or the transfer of files. `received` ends with an empty chunk."""

    def __init__(self, connection: _Connection, device: AdbDevice, *, mine: int, theirs: int, service: str) -> None:
        self._connection, self._device, self._service = connection, device, service
        self.mine, self.theirs = mine, theirs
        self.received: queue.Queue[bytes] = queue.Queue()
        self.ready = threading.Semaphore(0)
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def run(self) -> None:
        with contextlib.suppress(OSError):
            name, _, command = self._service.partition(":")
            if self._device.drops_now(self._service):
                return
            self._connection.send(b"OKAY", self.mine, self.theirs)
            if name.startswith("shell"):
                self._shell(command, "v2" in name)
            elif name == "sync":
                self._sync()
            self._connection.send(b"CLSE", self.mine, self.theirs)

    def close(self) -> None:
        self.received.put(b"")
        self.ready.release()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGHUP)

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _MAX_DATA):
            self._connection.send(b"WRTE", self.mine, self.theirs, data[start : start + _MAX_DATA])
            self.ready.acquire()

    def _shell(self, command: str, has_exit_code: bool) -> None:
        for path in _ROOTED:
            command = command.replace(path, f"{self._device.root}{path}")
        environment = {"ROOT": str(self._device.root), "PATH": f"{self._device.root / 'bin'}:/usr/bin:/bin"}
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        threading.Thread(target=self._feed, args=(self._process.stdin,), daemon=True).start()
        self._process.stdin = None  # the thread's
        printed = self._process.communicate()
        root = str(self._device.root).encode()
        for kind, data in zip((_STDOUT, _STDERR), printed, strict=True):
            said = data.replace(root, b"")
            if said:
                self._write(struct.pack("<BI", kind, len(said)) + said if has_exit_code else said)
        if has_exit_code:
            self._write(struct.pack("<BIB", _EXIT, 1, self._process.returncode & 0xFF))

    def _feed(self, stdin: IO[bytes]) -> None:
        """Passes on what adb reads, until that or the connection ends."""
        with contextlib.suppress(OSError), stdin:
            while True:
                kind, size = struct.unpack("<BI", self._take(5))
                data = self._take(size)
                if kind == _CLOSE_STDIN:
                    return
                assert kind == _STDIN
                stdin.write(data)
                stdin.flush()

    def _sync(self) -> None:
        while True:
            request, size = struct.unpack("<4sI", self._take(8))
            if request == b"QUIT":
                return
            argument = self._take(size).decode()
            if request == b"STAT":
                path = self._path(argument)
                found = path.stat() if path.exists() else None
                values = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
                self._write(struct.pack("<4s3I", b"STAT", *values))
            elif request == b"SEND":
                self._receive(self._path(argument.rpartition(",")[0]))
            else:
                raise AssertionError(f"adb asked for {request!r}, which no test needed so far")

    def _receive(self, path: Path) -> None:
        data = bytearray()
        while True:
            kind, size = struct.unpack("<4sI", self._take(8))
            if kind == b"DONE":  # the number is a time
                break
            data += self._take(size)
        if self._device.corrupts:
            data[-1] ^= 1
        path.write_bytes(data)
        self._write(struct.pack("<4sI", b"OKAY", 0))

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            chunk = self.received.get()
            if not chunk:
                raise ConnectionError
            self._buffer += chunk
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _path(self, path: str) -> Path:
        return self._device.root / path.removeprefix("/")
