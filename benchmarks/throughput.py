"""Images per second from files to features: streamed, so that reading overlaps with running, or one after the other.

Both ways encode the same folder with the same loaded artifact, in turns; which goes first alternates, so that a machine
that slows down slows both. Prints a table, and ends in one JSON document.

    python -m vitedge.benchmarks.throughput ARTIFACT FOLDER --threads 1
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitedge.benchmarks.arguments import positive
from vitedge.benchmarks.machine import describe_machine
from vitedge.runtimes.encoder import BATCH, READERS, RuntimeEncoder
from vitedge.runtimes.errors import VitedgeError
from vitedge.runtimes.image import read_image
from vitedge.runtimes.image_folder import list_images
from vitedge.runtimes.load import load_encoder


def one_after_the_other(encoder: RuntimeEncoder, paths: Sequence[Path], batch: int) -> tuple[float, float]:
    """Reads and preprocesses a batch, then runs it; returns the seconds of the one and of the other over all."""
    preparing = running = 0.0
    for start in range(0, len(paths), batch):
        begun = time.perf_counter()
        pixel_values = encoder.manifest.preprocessing.batch([read_image(p) for p in paths[start : start + batch]])
        prepared = time.perf_counter()
        encoder(pixel_values)
        preparing += prepared - begun
        running += time.perf_counter() - prepared
    return preparing, running


def streamed(encoder: RuntimeEncoder, paths: Sequence[Path], batch: int) -> float:
    """The seconds that `RuntimeEncoder.stream` takes."""
    begun = time.perf_counter()
    for _ in encoder.stream(paths, batch=batch):
        pass
    return time.perf_counter() - begun


def measure(encoder: RuntimeEncoder, paths: Sequence[Path], *, batch: int, rounds: int) -> dict[str, Any]:
    """Images per second both ways, and the parts of the slow one in milliseconds per image; medians over the rounds.

    `speedup` is of each round, streamed over one after the other: median, smallest and largest. `limit` is what it
    would be if the runtime and each reading thread had a core to itself, and one part hid the other whole.
    """
    parts: list[tuple[float, float]] = []
    overlapped: list[float] = []
    ways: list[Callable[[], None]] = [
        lambda: parts.append(one_after_the_other(encoder, paths, batch)),
        lambda: overlapped.append(streamed(encoder, paths, batch)),
    ]
    streamed(encoder, paths[: 2 * batch], batch)  # kernels, coefficients and the first files are warm
    for number in range(rounds):
        for way in ways if number % 2 else reversed(ways):
            way()
    preparing, running = np.array(parts).T
    alone = preparing + running
    return {
        "images": len(paths),
        "sequential_per_second": float(np.median(len(paths) / alone)),
        "streamed_per_second": float(np.median(len(paths) / np.array(overlapped))),
        "speedup": np.percentile(alone / np.array(overlapped), (50, 0, 100)).tolist(),
        "limit": float(np.median(alone / np.maximum(preparing / READERS, running))),
        "preparing_ms": float(np.median(preparing) / len(paths) * 1e3),
        "running_ms": float(np.median(running) / len(paths) * 1e3),
    }


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0, or 2 if the input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m vitedge.benchmarks.throughput", description="Images per second.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=positive, default=1, help="of the runtime")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, BATCH])
    parser.add_argument("--rounds", type=positive, default=7)
    options = parser.parse_args(argv)
    try:
        encoder, paths = load_encoder(options.artifact, threads=options.threads), list_images(options.folder)
    except VitedgeError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    machine, runs = describe_machine(), []
    sys.stdout.write(
        f"{'batch':>5}  {'read ms':>7}  {'run ms':>7}  {'one by one/s':>12}  {'streamed/s':>10}  {'faster':>6}"
        f"  {'of rounds':>14}  {'limit':>6}\n"
    )
    for batch in options.batch:
        found = measure(encoder, paths, batch=batch, rounds=options.rounds)
        median, low, high = found["speedup"]
        sys.stdout.write(
            f"{batch:5}  {found['preparing_ms']:7.2f}  {found['running_ms']:7.2f}"
            f"  {found['sequential_per_second']:12.1f}  {found['streamed_per_second']:10.1f}  {median:5.2f}×"
            f"  {f'{low:.2f} to {high:.2f}':>14}  {found['limit']:5.2f}×\n"
        )
        runs.append({"batch": batch, **found})
    document = {
        "format": "vitedge-throughput/1",
        "artifact": encoder.manifest.runtime,
        "threads": options.threads,
        "rounds": options.rounds,
        "machine": machine.to_json(),
        "runs": runs,
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
