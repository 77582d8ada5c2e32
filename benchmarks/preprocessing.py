"""How long preprocessing takes, decoding excluded, for photographs of common sizes.

One thread: BLAS is told so before numpy is imported. Prints a table, and ends in one JSON document.

    python -m vitedge.benchmarks.preprocessing
"""

import os

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

# The environment comes first: BLAS reads it when numpy is imported.
import json
import sys
import time

import numpy as np

from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.preprocess import Preprocessing

SIZES = ((640, 480), (1920, 1080), (4000, 3000))  # width, height
CONTRACT = Preprocessing(224, 224, "bilinear", 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_RUNS = 30


def latencies_ms(width: int, height: int) -> list[float]:
    """Milliseconds of each of 30 runs, from decoded uint8 [height, width, 3] to float32 [3, 224, 224]."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    CONTRACT(image)  # the coefficients of a size are computed once
    found = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        CONTRACT(image)
        found.append((time.perf_counter() - start) * 1e3)
    return found


def main() -> None:
    """Measures and prints."""
    results = []
    sys.stdout.write(f"{'size':>10}  {'median ms':>9}  {'p90 ms':>9}\n")
    for width, height in SIZES:
        median, p90 = np.percentile(latencies_ms(width, height), (50, 90))
        sys.stdout.write(f"{width}×{height}".rjust(10) + f"  {median:9.2f}  {p90:9.2f}\n")
        results.append({"width": width, "height": height, "median_ms": float(median), "p90_ms": float(p90)})
    document = {"format": "vitedge-preprocessing/1", "machine": describe_machine().to_json(), "runs": results}
    sys.stdout.write(json.dumps(document) + "\n")


if __name__ == "__main__":
    main()
