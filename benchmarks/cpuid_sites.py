"""Where a library has `cpuid` instructions: `avx2_only.py` replaces them while a program runs.

The bytes 0F A2 are `cpuid` only where an instruction starts; they also occur within others. So each place is
disassembled from a few hundred bytes before it. A disassembler that starts within an instruction falls into step with
the code after a few of them, so that no whole library need be disassembled: in ONNX Runtime and LiteRT both ways find
the same.
"""

import mmap
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vitedge.benchmarks.process import BenchmarkError

_CPUID = b"\x0f\xa2"
_LEAD_BYTES = 256
# Between two places: no instruction that starts before it (15 bytes at most) reaches over it.
_GAP = b"\x90" * 16
_PROGBITS, _EXECUTABLE = 1, 4  # a section's type SHT_PROGBITS, and its flag SHF_EXECINSTR


def cpuid_sites(library: Path) -> list[int]:
    """Addresses of the `cpuid` instructions of a library for 64-bit x86, relative to where it is loaded.

    Args:
        library: An ELF file; of another format or CPU it has none.

    Raises:
        BenchmarkError: objdump is missing, or cannot disassemble.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # ELF, 64 bits, little-endian; machine 62 is x86-64 (System V ABI, figure 4-3).
        if content[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", content, 18) != (62,):
            return []
        found = list(_candidates(content))
        places, code = [], bytearray()
        for offset, _ in found:
            before = content[max(offset - _LEAD_BYTES, 0) : offset]
            code += before
            places.append(len(code))
            code += _CPUID + _GAP
    if not found:
        return []
    instructions = _disassembled(bytes(code))
    return [address for place, (_, address) in zip(places, found, strict=True) if place in instructions]


def _candidates(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where the bytes occur in sections of code: offset in the file, and address when loaded.

    Executable segments may hold more than code: those of PyTorch hold its symbols.
    """
    (table,) = struct.unpack_from("<Q", content, 40)
    size, count = struct.unpack_from("<HH", content, 58)
    for index in range(count):
        kind, flags, address, offset, length = struct.unpack_from("<IQQQQ", content, table + index * size + 4)
        if kind != _PROGBITS or not flags & _EXECUTABLE:
            continue
        place = content.find(_CPUID, offset, offset + length)
        while place >= 0:
            yield place, address + place - offset
            place = content.find(_CPUID, place + 1, offset + length)


def _disassembled(code: bytes) -> set[int]:
    """Offsets of the `cpuid` instructions in code."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        command = ["objdump", "--disassemble-all", "--target=binary", "--architecture=i386:x86-64", file.name]
        try:
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except FileNotFoundError as error:
            raise BenchmarkError("objdump is missing; install Debian's binutils") from error
        except subprocess.CalledProcessError as error:
            raise BenchmarkError(f"objdump: {error.stderr.strip()}") from error
    # "   1f:	0f a2                	cpuid"
    return {int(line.split(":")[0], 16) for line in output.splitlines() if line.split("\t")[-1].strip() == "cpuid"}
