"""Whether this machine can hold processes to AVX2 (`vitedge.benchmarks.avx2_only`)."""

import os
import shutil

import pytest

from vitedge.benchmarks.machine import AVX2_ONLY, describe_machine

_CAN_HOLD = "avx2" in describe_machine().isa_flags and shutil.which("gcc") and shutil.which("objdump")
needs_holding = pytest.mark.skipif(
    not _CAN_HOLD or AVX2_ONLY in os.environ, reason="needs AVX2, gcc and objdump, and not to be held already"
)
