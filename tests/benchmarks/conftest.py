"""A measuring process with a fake encoder in place of an artifact."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SERVE = """
import os, signal, sys, time
import numpy as np
from vitedge.benchmarks.worker import serve
from vitedge.runtimes.errors import RuntimeMissingError
from vitedge.runtimes.preprocess import Preprocessing

CONTRACT = Preprocessing(4, 6, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "{dtype}")

class Fake:
    calls = 0

    def __call__(self, pixel_values):
        assert pixel_values.shape == {shape} and pixel_values.dtype == "{dtype}"
        self.calls += 1
        {call}

def load():
    {load}
    return Fake(), CONTRACT

serve(load, batch=2, cpus={cpus})
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., list[str]]:
    def write(call: str = "pass", load: str = "pass", cpus: tuple[int, ...] = (), dtype: str = "float32") -> list[str]:
        path = tmp_path / f"worker{len(list(tmp_path.iterdir()))}.py"
        shape = (2, 4, 6, 3) if dtype == "uint8" else (2, 3, 4, 6)
        path.write_text(SERVE.format(call=call, load=load, cpus=cpus, dtype=dtype, shape=shape))
        return [sys.executable, "-P", str(path)]

    return write
