"""Kotlin and Java on this machine: compilers old and new, and ONNX Runtime's Android library for the JVM here.

The Android library has no build for glibc. But its JNI half is a hundred kilobytes of C between the JVM and ONNX
Runtime's C API, and takes ten functions from Android's libc that glibc has too. So it runs here, on the ONNX Runtime
of the Python package, once its symbol versions are dropped and the names of its libraries resolve.
"""

import os
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.npm import ONNX_RUNTIME, npm_package

_TOOLS = ("kotlinc", "javac", "java", "gcc")
_JUNIT = (Path("/usr/share/java/junit4.jar"), Path("/usr/share/java/hamcrest-all.jar"))
_DEBIAN_KOTLIN = Path("/usr/share/kotlin/kotlinc/lib")
_NPM_KOTLIN = ("kotlin-compiler", "2.4.20")
_QUICK = ("-J-Xmx1g", "-J-XX:TieredStopAtLevel=1")  # a compiler that runs once is not worth optimizing: half the time

needs_kotlin = pytest.mark.skipif(
    os.environ.get("CI") is None and not (all(map(shutil.which, _TOOLS)) and all(map(Path.exists, _JUNIT))),
    reason="needs Debian's kotlin, junit4, a JDK and gcc",
)

_LOAD, _DYNAMIC = 1, 2  # segments
_VERSION_TAGS = (0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF)  # VERSYM, VERNEED, VERNEEDNUM of /usr/include/elf.h


@dataclass(frozen=True)
class Jvm:
    """Where classes come from, where native libraries are, if a program needs some, and properties for all programs."""

    classpath: tuple[Path, ...]
    native: Path | None = None
    properties: tuple[tuple[str, str], ...] = ()

    def run(self, folder: Path, main: str, *words: str, **properties: str) -> subprocess.CompletedProcess[str]:
        """Runs a class in a folder."""
        settings = [f"-D{name}={value}" for name, value in (*self.properties, *properties.items())]
        environment = dict(os.environ)
        if self.native is not None:
            environment["LD_LIBRARY_PATH"] = str(self.native)
        command = ["java", *settings, "-cp", _joined((*self.classpath, *_JUNIT)), main, *words]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class Kotlin:
    """A compiler and its standard library."""

    command: tuple[str, ...]
    library: tuple[Path, ...]

    def compile(self, sources: Sequence[Path], jvm: Jvm, out: Path) -> Jvm:
        """Adds a jar of Kotlin sources, with warnings as errors, and what it needs to run."""
        libraries = _joined((*jvm.classpath, *_JUNIT, *self.library))
        _checked([*self.command, *_QUICK, "-Werror", "-cp", libraries, "-d", str(out), *map(str, sources)])
        return replace(jvm, classpath=(out, *jvm.classpath, *self.library))


def old_kotlin() -> Kotlin:
    """Debian's 1.3, whose own default is Java 6."""
    library = tuple(_DEBIAN_KOTLIN / name for name in ("kotlin-stdlib.jar", "kotlin-stdlib-jdk7.jar"))
    return Kotlin(("kotlinc", "-jvm-target", "1.8"), library)


def new_kotlin() -> Kotlin:
    """JetBrains' compiler, as the npm registry has it."""
    package = npm_package(*_NPM_KOTLIN)
    return Kotlin(("bash", str(package / "bin" / "kotlinc")), (package / "lib" / "kotlin-stdlib.jar",))


def javac(folder: Path, out: Path) -> Path:
    """Compiles all Java below a folder."""
    _checked(["javac", "-Xlint:all", "-Werror", "-d", str(out), *map(str, sorted(folder.rglob("*.java")))])
    return out


def onnxruntime_android(package: Path, folder: Path) -> Jvm:
    """ONNX Runtime's Android library on this machine.

    Args:
        package: The Python package of ONNX Runtime, whose library is called.
        folder: Where to put what is made.
    """
    native = folder / "native"
    native.mkdir(parents=True)
    with _aar() as aar:
        classes = Path(aar.extract("classes.jar", folder))
        bridge = aar.read("jni/x86_64/libonnxruntime4j_jni.so")
    (native / "libonnxruntime4j_jni.so").write_bytes(_without_symbol_versions(bridge))
    (library,) = (package / "capi").glob("libonnxruntime.so.*")
    (native / "libonnxruntime.so").symlink_to(library)
    for name, ours in (("libc.so", "libc.so.6"), ("libm.so", "libm.so.6")):
        found = _checked(["gcc", f"-print-file-name={ours}"]).strip()
        (native / name).symlink_to(Path(found).resolve())
    # Android's NNAPI is not here; a function that is never called stands for it, in a library that is asked for anyway.
    absent = folder / "absent.c"
    absent.write_text("void OrtSessionOptionsAppendExecutionProvider_Nnapi(void) { __builtin_trap(); }\n")
    _checked(["gcc", "-shared", "-fPIC", "-o", str(native / "libdl.so"), str(absent)])
    return Jvm((classes,), native, (("onnxruntime.native.path", str(native)),))


def page_alignments(architecture: str) -> dict[str, set[int]]:
    """Alignment of what is loaded into memory, by native library of ONNX Runtime's Android library."""
    with _aar() as aar:
        names = [name for name in aar.namelist() if name.startswith(f"jni/{architecture}/") and name.endswith(".so")]
        return {
            Path(name).name: {alignment for kind, *_, alignment in _segments(aar.read(name)) if kind == _LOAD}
            for name in names
        }


def _aar() -> zipfile.ZipFile:
    (archive,) = npm_package(*ONNX_RUNTIME).rglob("*.aar")
    return zipfile.ZipFile(archive)


def _joined(paths: tuple[Path, ...]) -> str:
    return ":".join(map(str, paths))


def _checked(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _without_symbol_versions(library: bytes) -> bytes:
    """A little-endian ELF64 library that takes symbols by name alone."""
    data = bytearray(library)
    for kind, start, size, _ in _segments(library):
        if kind == _DYNAMIC:
            entries = list(struct.iter_unpack("<QQ", data[start : start + size]))
            kept = [entry for entry in entries if entry[0] not in _VERSION_TAGS]
            kept += [(0, 0)] * (len(entries) - len(kept))
            data[start : start + size] = b"".join(struct.pack("<QQ", *entry) for entry in kept)
    return bytes(data)


def _segments(library: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Type, offset, size and alignment of the segments of a little-endian ELF64 file."""
    assert library[:6] == b"\x7fELF\x02\x01"
    (headers,) = struct.unpack_from("<Q", library, 32)
    header_size, count = struct.unpack_from("<HH", library, 54)
    for index in range(count):
        kind, _, start, _, _, size, _, alignment = struct.unpack_from(
            "<IIQQQQQQ", library, headers + index * header_size
        )
        yield kind, start, size, alignment
