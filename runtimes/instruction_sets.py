"""The kinds of CPU that INT8 kernels tell apart. A manifest names those on which its artifact is exact, golden vectors
have a tolerance for each, and a device finds its own by its flags.

x86-vnni        adds products of bytes in 32 bits (AVX-VNNI, AVX-512 VNNI, AMX)
x86             adds pairs of them in 16 bits, which can saturate (`saturation.py`)
arm64-dotprod   adds four of them in 32 bits
arm64           widens each product before it is added

Of a CPU that does not tell its flags, as on other systems than Linux, nothing is known: its kind is `any`.
"""

from collections.abc import Collection

from vitedge.runtimes.saturation import Saturation

X86_VNNI, X86, ARM64_DOTPROD, ARM64 = "x86-vnni", "x86", "arm64-dotprod", "arm64"
ANY = "any"
KINDS = (X86_VNNI, X86, ARM64_DOTPROD, ARM64)
# By Linux's names; the first that a CPU has one of.
_FLAGS = (
    (X86_VNNI, frozenset(("avx512_vnni", "avx_vnni", "amx_int8"))),
    (X86, frozenset(("ssse3", "sse4_1", "avx", "avx2"))),
    (ARM64_DOTPROD, frozenset(("asimddp", "i8mm"))),
    (ARM64, frozenset(("asimd",))),
)


def kind_of(isa_flags: Collection[str]) -> str:
    """The kind of a CPU with these flags, in Linux's spelling; `any` if none of them tells."""
    return next((kind for kind, flags in _FLAGS if flags & set(isa_flags)), ANY)


def exact_kinds(saturation: Saturation) -> tuple[str, ...]:
    """The kinds on which an artifact's integer sums are those of unlimited integers: all but `x86`, where that can
    saturate. Of `any` nothing is known, so it is not among them.
    """
    return tuple(kind for kind in KINDS if kind != X86 or not saturation.unsafe)
