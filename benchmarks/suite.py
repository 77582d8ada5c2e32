"""`make bench`: speed, memory and accuracy of all three runtimes in one table, with what they are compared to.

    python -m vitedge.benchmarks.suite [--model CHECKPOINT --images DIR --eval DIR] [--seconds 6] [--target avx2]

Two encoders are built by `vitedge build`: ViT-B/16 at full size with random weights, whose accuracy means nothing, and
a real one, judged on photographs. Then `vitedge bench` runs all models of a runtime in turns, each in a process of its
own: INT8, FP32, the vendor's default recipes and PyTorch eager FP32 with one thread; then INT8 and FP32 with two, and
INT8 with one beside them.

In the tables × is the latency of the other divided by that of INT8, with its 95 % interval; "2 threads" how many times
as fast as one thread two are; memory the peak of INT8 over that of FP32, each above its bare runtime; load that of INT8
and FP32; the cosine of class tokens is the mean and the worst. Ends in one JSON document.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console as RichConsole
from rich.table import Table

FORMAT = "vitedge-suite/1"
SHARED = Path(__file__).parents[2] / "shared"
PRESET, RANDOM = "vit-base-patch16-224", "ViT-B/16, random"
_WIDTH = 140


@dataclass(frozen=True)
class Row:
    """One runtime of one encoder. Speedups are the medians and 95 % intervals of latencies divided by INT8's."""

    encoder: str
    runtime: str
    int8_ms: float
    fp32_ms: float
    over_fp32: Mapping[str, float]
    over_rivals: Mapping[str, Mapping[str, float]]
    over_one_thread: Mapping[str, float]
    memory_ratio: float | None
    load_ms: tuple[float, float]
    sqnr_db: float | None
    cosine: tuple[float, float] | None


def vitedge(*arguments: str) -> Any:
    """Runs a command of vitedge, whose progress goes where ours does, and reads the JSON that it prints."""
    command = [sys.executable, "-m", "vitedge", *arguments, "--json"]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def rows_of(encoder: str, report: Mapping[str, Any], one: Mapping[str, Any], two: Mapping[str, Any]) -> list[Row]:
    """The rows of an encoder: a build's report, and its benchmarks with one thread and with two."""
    return [
        _row(encoder, runtime, report["accuracy"].get(runtime), pair, two["pairs"][runtime])
        for runtime, pair in one["pairs"].items()
    ]


def _row(encoder: str, runtime: str, accuracy: Any, one: Mapping[str, Any], two: Mapping[str, Any]) -> Row:
    int8, fp32 = one["artifact"], one["fp32"]
    hidden = None if accuracy is None else accuracy["outputs"]["last_hidden_state"]
    return Row(
        encoder=encoder,
        runtime=runtime,
        int8_ms=int8["latency_median_ms"],
        fp32_ms=fp32["latency_median_ms"],
        over_fp32=one["speedup"],
        over_rivals={rival["name"]: rival["speedup"] for rival in one["rivals"]},
        over_one_thread=next(rival["speedup"] for rival in two["rivals"] if rival["own"]),
        memory_ratio=_memory_ratio(int8, fp32),
        load_ms=(int8["load_ms"], fp32["load_ms"]),
        sqnr_db=None if hidden is None else hidden["sqnr_db"],
        cosine=None if hidden is None else (hidden["cosine_mean"], hidden["cosine_worst"]),
    )


def _memory_ratio(int8: Mapping[str, Any], fp32: Mapping[str, Any]) -> float | None:
    """Peak memory of INT8 over that of FP32, each above its bare runtime; None where the system does not say."""
    if None in (int8["peak_bytes"], fp32["peak_bytes"]):
        return None
    above = [result["peak_bytes"] - result["bare_bytes"] for result in (int8, fp32)]
    return float(above[0] / above[1])


def tables_of(rows: Sequence[Row]) -> tuple[Table, Table]:
    """The rows for a person: each runtime, and what its INT8 artifact is compared to."""
    ours, others = Table(header_style="bold"), Table(header_style="bold")
    headings = ("INT8 ms", "FP32 ms", "× FP32 [95 %]", "2 threads", "memory", "load ms", "SQNR dB", "CLS cosine")
    for heading in ("", "", *headings):
        ours.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for heading in ("", "", "another's", "× [95 %]"):
        others.add_column(heading)
    for row in rows:
        ours.add_row(
            row.encoder,
            row.runtime,
            f"{row.int8_ms:.1f}",
            f"{row.fp32_ms:.1f}",
            _words(row.over_fp32),
            f"{row.over_one_thread['median']:.2f}×",
            "" if row.memory_ratio is None else f"{row.memory_ratio:.2f}",
            f"{row.load_ms[0]:.0f}/{row.load_ms[1]:.0f}",
            "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}",
            "random" if row.cosine is None else f"{row.cosine[0]:.4f}/{row.cosine[1]:.4f}",
        )
        for name, ratio in row.over_rivals.items():
            others.add_row(row.encoder, row.runtime, name, _words(ratio))
    return ours, others


def _words(speedup: Mapping[str, float]) -> str:
    return f"{speedup['median']:.2f}× [{speedup['low']:.2f}, {speedup['high']:.2f}]"


def main(argv: list[str] | None = None) -> int:
    """Runs the command; 0, or the exit code of the command of vitedge that failed, which has said why."""
    parser = argparse.ArgumentParser(prog="python -m vitedge.benchmarks.suite", description=__doc__)
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "vit-s14-real", help="the real encoder")
    parser.add_argument("--images", type=Path, default=SHARED / "images" / "calibration")
    parser.add_argument("--eval", type=Path, default=SHARED / "images" / "evaluation")
    parser.add_argument("--seconds", default="6", help="for each pair of INT8 and FP32")
    parser.add_argument("--target", default="avx2", choices=("avx2", "vnni", "arm64"))
    options = parser.parse_args(argv)
    for folder in (options.images, options.eval):
        if not folder.is_dir():  # told before minutes of building
            parser.error(f"{folder}: no such folder; pass --model, --images and --eval, an encoder and images of yours")
    start, rows, runs = time.perf_counter(), [], {}
    real = (str(options.model), "--images", str(options.images), "--eval", str(options.eval))
    with tempfile.TemporaryDirectory() as folder:
        # Random weights have a speed but no accuracy: the fewest images will do.
        random = ("--random-weights", PRESET, "--calibration-images", "32")
        for name, source in ((RANDOM, random), (options.model.name, real)):
            out = str(Path(folder) / name)
            how = ("--target", options.target, "--keep-fp32", "--bench-seconds", "0", "--out", out)
            bench = ("bench", out, "--seconds", options.seconds)
            try:
                report = vitedge("build", *source, *how)
                (one,) = vitedge(*bench, "--torch", "--vendors", "--images", str(options.images))["runs"]
                _, two = vitedge(*bench, "--threads", "1,2")["runs"]
            except subprocess.CalledProcessError as error:
                return int(error.returncode)
            rows += rows_of(name, report, one, two)
            runs[name] = {"one_thread": one, "two_threads": two, "build_seconds": report["seconds"]}
    RichConsole(width=_WIDTH).print(*tables_of(rows), sep="\n")
    document = {
        "format": FORMAT,
        "target": options.target,
        "seconds": round(time.perf_counter() - start),
        "rows": [asdict(row) for row in rows],
        "runs": runs,
    }
    sys.stdout.write(json.dumps(document) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
