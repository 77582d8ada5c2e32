"""How long preprocessing takes, decoding excluded, for photographs of common sizes; beside it Pillow's resize, in C.

One thread: BLAS is told so before numpy is imported. The two run in turns, and give the same pixels. Prints a table and
ends in one JSON document.

    python -m vitedge.benchmarks.preprocessing
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

# The environment comes first: BLAS reads it when numpy is imported.
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.preprocess import Preprocessing

SIZES = ((640, 480), (1920, 1080), (4000, 3000))  # width, height
CONTRACT = Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_RUNS = 30


@dataclass(frozen=True)
class Run:
    """Milliseconds from decoded uint8 [height, width, 3] to float32 [3, 224, 224], and of Pillow's resize alone."""

    width: int
    height: int
    median_ms: float
    p90_ms: float
    pillow_median_ms: float


def measure(width: int, height: int) -> Run:
    """30 runs of each, in turns."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    photograph = Image.fromarray(image)
    CONTRACT(image)  # the coefficients of a size are computed once
    ours, pillows = [], []
    for _ in range(_RUNS):
        ours.append(_milliseconds(lambda: CONTRACT(image)))
        pillows.append(_milliseconds(lambda: photograph.resize((224, 224), Image.Resampling.BILINEAR)))
    median, p90 = (float(value) for value in np.percentile(ours, (50, 90)))
    return Run(width, height, median, p90, float(np.median(pillows)))


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measures and prints."""
    runs = []
    sys.stdout.write(f"{'size':>10}  {'median ms':>9}  {'p90 ms':>9}  {'Pillow ms':>9}\n")
    for width, height in SIZES:
        run = measure(width, height)
        name = f"{width}×{height}"
        sys.stdout.write(f"{name:>10}  {run.median_ms:9.2f}  {run.p90_ms:9.2f}  {run.pillow_median_ms:9.2f}\n")
        runs.append(asdict(run))
    document = {"format": "vitedge-preprocessing/2", "machine": describe_machine().to_json(), "runs": runs}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
