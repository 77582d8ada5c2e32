"""That a process held to AVX2 has no newer kernels: what they compute, which registers they use, and what asked."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.held import needs_holding
from tests.tiny import planned, save_checkpoint
from vitedge.benchmarks.avx2_only import Hold, holding, main
from vitedge.benchmarks.cpuid_sites import cpuid_sites
from vitedge.benchmarks.machine import AVX2_ONLY, describe_machine
from vitedge.benchmarks.process import BenchmarkError
from vitedge.converters.checkpoint import load_checkpoint
from vitedge.converters.lower import RUNTIMES, lower

CHILD = Path(__file__).parents[1] / "held_process.py"
ROOT = Path(__file__).parents[2]
EXACT, SATURATED = 2 * 255 * 127, 32767
# The library that has each runtime's kernels.
KERNELS = {"onnx": "onnxruntime_pybind11_state", "openvino": "libopenvino_intel_cpu_plugin", "tflite": "litert"}
# A program whose library has one cpuid, after data among code, and the same bytes within another instruction.
PROGRAM = """
#include <signal.h>
#include <stdio.h>
#include <string.h>
static void returns(int number) { (void)number; }
int main(int count, char **words)
{
    unsigned a = 7, b, c = 0, d;
    if (count > 1 && !strcmp(words[1], "handler"))
        signal(SIGTRAP, returns);
    if (count > 1 && !strcmp(words[1], "trap"))
        __asm__ volatile("int3");
    int ask(unsigned *, unsigned *, unsigned *, unsigned *);
    int same = ask(&a, &b, &c, &d);
    printf("%x %x %x %x %x\\n", a, b, c, d, same);
}
"""
LIBRARY = """
int ask(unsigned *a, unsigned *b, unsigned *c, unsigned *d)
{
    int same;
    __asm__ volatile("movl $0x12a20f34, %0" : "=r"(same));
    __asm__ volatile("jmp 1f; .byte 0x0f, 0x38, 0xc7, 0x66, 0x90; 1: cpuid" : "+a"(*a), "=b"(*b), "+c"(*c), "=d"(*d));
    return same;
}
"""

pytestmark = needs_holding
needs_vnni = pytest.mark.skipif("avx512_vnni" not in describe_machine().isa_flags, reason="this CPU has no VNNI")


@pytest.fixture(scope="module")
def hold() -> Iterator[Hold]:
    with holding() as found:
        yield found


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """INT8 artifacts of a tiny encoder, and their FP32 twins, by runtime."""
    folder = tmp_path_factory.mktemp("artifacts")
    checkpoint = load_checkpoint(str(save_checkpoint(folder / "checkpoint")))
    plan, smoothed = planned(checkpoint)
    shared: dict[str, Any] = {"checkpoint": checkpoint, "plan": plan, "batch": 1, "calibration": {}}
    for runtime in RUNTIMES:
        lower(runtime, folder / "int8" / runtime, encoder=smoothed, linears=plan.linears(runtime), **shared)
        lower(runtime, folder / "fp32" / runtime, encoder=checkpoint.encoder, linears={}, **shared)
    return folder


def child(*arguments: str, environment: Any = None) -> int:
    command = [sys.executable, str(CHILD), *arguments]
    environment = {**(environment or os.environ), "PYTHONPATH": str(ROOT)}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@needs_vnni
def test_onnx_runtime_saturates_as_without_vnni(hold: Hold) -> None:
    assert child("product") == EXACT
    assert child("product", environment=hold.environment) == SATURATED
    assert [child("saturates"), child("saturates", environment=hold.environment)] == [0, 1]


@needs_vnni
@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_no_kernel_touches_avx512_registers(hold: Hold, artifacts: Path, runtime: str, precision: str) -> None:
    """GLIBC_TUNABLES alone in the process that is free: otherwise its registers could be memcpy's."""
    folder = str(artifacts / precision / runtime)
    tunables = {"GLIBC_TUNABLES": hold.environment["GLIBC_TUNABLES"]}
    assert child("registers", folder, environment={**os.environ, **tunables}) != 0
    before = hold.answers()
    assert child("registers", folder, environment=hold.environment) == 0
    asked = hold.answers() - before
    assert sum(count for library, count in asked.items() if KERNELS[runtime] in library) > 0


def test_torch_and_numpy_report_avx2(hold: Hold) -> None:
    code = (
        "import torch, numpy; print(torch.backends.cpu.get_cpu_capability(),"
        " [name for name, has in numpy._core._multiarray_umath.__cpu_features__.items() if has and 'AVX512' in name])"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=hold.environment)
    assert found.stdout == "AVX2 []\n"


def test_machine_is_told_as_held(monkeypatch: pytest.MonkeyPatch) -> None:
    free = describe_machine()
    monkeypatch.setenv(AVX2_ONLY, "somewhere")
    held = describe_machine()
    assert held.cpu_model == f"{free.cpu_model}, held to AVX2"
    assert "avx2" in held.isa_flags
    assert not [flag for flag in held.isa_flags if flag.startswith(("avx512", "avx_vnni", "amx"))]


def test_processes_that_it_starts_are_held(hold: Hold) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import numpy'], check=True)"
    before = hold.answers()
    subprocess.run([sys.executable, "-c", code], check=True, env=hold.environment)
    assert sum((hold.answers() - before).values()) > 0


def test_answer_lacks_what_is_newer_and_nothing_else(compiled: Path) -> None:
    """Leaf 7: AVX2 (EBX bit 5), BMI2 (8) stay; AVX512F (16), VNNI (ECX 11) go, and further subleaves (EAX)."""
    free = [int(word, 16) for word in run(compiled, {}).stdout.split()]
    held = [int(word, 16) for word in run(compiled, held_by(compiled)).stdout.split()]
    assert held[0] == 0
    assert held[1] == free[1] & ~0xDC23_0000
    assert held[2] == free[2] & ~0x5F42
    assert held[1] >> 5 & 1
    assert held[4] == free[4] == 0x12A20F34  # the bytes of cpuid within another instruction are left alone


def test_handler_that_swallows_the_trap_is_not_silent(compiled: Path) -> None:
    assert run(compiled, held_by(compiled), "handler").returncode == -signal.SIGSEGV


def test_trap_of_the_program_ends_it_as_ever(compiled: Path) -> None:
    assert run(compiled, {}, "trap").returncode == -signal.SIGTRAP
    assert run(compiled, held_by(compiled), "trap").returncode == -signal.SIGTRAP


def test_library_that_changed_is_refused(compiled: Path) -> None:
    environment = held_by(compiled)
    sites = compiled / "sites"
    address, library = sites.read_text().split(" ", 1)
    sites.write_text(f"{int(address, 16) + 1:x} {library}")
    found = run(compiled, environment)
    assert found.returncode == 127
    assert "libask.so: has changed since its cpuid instructions were listed" in found.stderr


@pytest.fixture
def compiled(hold: Hold, tmp_path: Path) -> Path:
    """A folder with a program and its library, and a list of the `cpuid` of that."""
    for name, source in (("program", PROGRAM), ("libask", LIBRARY)):
        (tmp_path / f"{name}.c").write_text(source)
    gcc = ["gcc", "-O1", "-o"]
    library, auditor = tmp_path / "libask.so", hold.environment["LD_AUDIT"]
    subprocess.run([*gcc, str(library), "-shared", "-fPIC", str(tmp_path / "libask.c")], check=True)
    program = [str(tmp_path / "program"), str(tmp_path / "program.c"), str(library)]
    subprocess.run([*gcc, *program, f"-Wl,-rpath,{tmp_path}"], check=True)
    (site,) = cpuid_sites(library)
    (tmp_path / "sites").write_text(f"{site:x} {library.resolve()}\n")
    (tmp_path / "answers").write_bytes(bytes(8))
    shutil.copy(auditor, tmp_path / "auditor.so")
    return tmp_path


def held_by(folder: Path) -> dict[str, str]:
    return {AVX2_ONLY: str(folder), "LD_AUDIT": str(folder / "auditor.so")}


def run(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(folder / "program"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_no_library_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("INPUT(libother.so)")
    assert cpuid_sites(tmp_path / "text.so") == []


def test_command_passes_its_exit_code_on_and_tells_who_asked(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--", "python", "-c", "import numpy, sys; print('hello'); sys.exit(5)"]) == 5
    output, errors = capfd.readouterr()
    assert output == "hello\n"
    assert errors.startswith("held to AVX2; answers to cpuid: ")
    assert "_multiarray_umath" in errors


def test_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such-command"]) == 2
    assert capsys.readouterr().err == "no-such-command: cannot be run: No such file or directory\n"


def test_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match="objdump is missing; install Debian's binutils"), holding():
        pass
