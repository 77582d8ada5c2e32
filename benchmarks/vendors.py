"""The vendors' own quantizers and vitedge's builds, on the same checkpoint and the same images, in one table.

    python -m vitedge.benchmarks.vendors CHECKPOINT --calibration DIR --eval DIR [--build DIR]... [--json FILE]

What each recipe is and what it starts from stands in `vendor_recipes.py`, how rows are made and measured in
`vendor_rows.py`. The reference of all accuracy is transformers' FP32 model. Latency is of one image on one thread, all
models of a runtime in interleaved rounds, each in a process of its own; `× FP32` is the latency of the vendor's FP32
model divided by the row's, so above 1 is faster. 1-NN is the share of images whose nearest other image is the same in
INT8 as in FP32, @10 the share of the nearest ten that is.

Exit codes: 0 every recipe ran, 1 one failed (its error is in its row), 2 the input was wrong.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.table import Table

from vitedge.benchmarks.arguments import positive
from vitedge.benchmarks.machine import describe_machine
from vitedge.benchmarks.vendor_rows import Row, build_rows, judged, measured, vendor_rows
from vitedge.calibration.images import ImageSet, refuse_overlap, scan, too_few_warning
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint, load_checkpoint
from vitedge.converters.lower import RUNTIMES
from vitedge.runtimes.encoder import installed_version
from vitedge.runtimes.errors import RuntimeMissingError, VitedgeError
from vitedge.runtimes.manifest import load_manifest

FORMAT = "vitedge-vendors/1"
_TOOLS = ("torch", "onnxscript", "onnxruntime", "nncf", "openvino", "litert-torch", "ai-edge-quantizer")
_WIDTH = 160


def compare(
    checkpoint: Checkpoint,
    calibration: ImageSet,
    evaluation: ImageSet,
    builds: Sequence[Path],
    console: Console,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    bench_seconds: float,
    threads: int,
) -> list[Row]:
    """Runs every recipe, and judges and measures the results beside finished builds.

    Args:
        checkpoint: What to quantize, and what the builds were built from.
        calibration: Images for static recipes.
        evaluation: Images to judge on; none of them may be a calibration image.
        builds: Folders of vitedge builds.
        console: Shows progress.
        runtimes: Which runtimes to look at.
        bench_seconds: Time for the latency of each runtime; 0 leaves it out.
        threads: Of the runtimes while accuracy is measured; latency always takes one.

    Raises:
        VitedgeError: The input was wrong. Whatever a recipe raises is in its row instead.
    """
    check_tools()
    refuse_overlap(calibration, evaluation)
    built = [row for build in builds for row in build_rows(build, checkpoint, runtimes)]
    for row in built:
        if load_manifest(row.folder).calibration.get("digest") != calibration.digest:
            console.warn(f"{row.folder} was calibrated on other images than the vendors are here")
    # Vendors' tools print progress; the standard output is for the table.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        rows = vendor_rows(checkpoint, calibration, Path(folder), console, runtimes=runtimes)
        rows = sorted([*rows, *built], key=lambda row: runtimes.index(row.runtime))  # stable: vendors, then builds
        rows = judged(rows, checkpoint, evaluation, console, threads=threads)
        return measured(rows, console, seconds=bench_seconds) if bench_seconds else rows


def check_tools() -> None:
    """Raises RuntimeMissingError where a vendor's tool is not installed."""
    missing = [name for name in _TOOLS if installed_version(name) is None]
    if missing:
        raise RuntimeMissingError(f"{', '.join(missing)}: not installed; install with: pip install 'vitedge[vendors]'")


def table(rows: Sequence[Row], title: str) -> RenderableType:
    """The rows, a section for each runtime; below them the machine, which decides the latencies and whether U8×S8
    saturates, and the errors in full.
    """
    most = max((row.accuracy.images for row in rows if row.accuracy), default=0)
    found = Table(title=title, title_justify="left", header_style="bold")
    found.add_column("recipe", overflow="fold")
    for heading in ("runtime", "SQNR dB", "CLS mean", "1st pct", "worst", "1-NN", "@10", "MB", "ms", "× FP32"):
        found.add_column(heading, justify="right", no_wrap=True)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        if row.error is not None:
            found.add_row(f"{row.name}: failed, see below", row.runtime)
        else:
            found.add_row(*_cells(row, most))
        if following and following.runtime != row.runtime:
            found.add_section()
    machine = describe_machine()
    here = f"{machine.cpu_model or machine.architecture}; instruction sets: {', '.join(machine.isa_flags) or 'unknown'}"
    return Group(found, here, *(f"{row.runtime}, {row.name}: {row.error}" for row in rows if row.error))


def _cells(row: Row, most: int) -> tuple[str, ...]:
    exact = f" (within {row.export_max_abs_error:.0e} of PyTorch)" if row.export_max_abs_error is not None else ""
    accuracy: tuple[str, ...] = ("",) * 6
    name = row.name + exact
    if row.accuracy:
        hidden = row.accuracy.outputs["last_hidden_state"]
        retrieval = row.accuracy.retrieval
        name += f" ({row.accuracy.images} images)" if row.accuracy.images < most else ""
        accuracy = (
            f"{hidden.sqnr_db:.1f}",
            *(f"{value:.4f}" for value in (hidden.cosine_mean, hidden.cosine_p01, hidden.cosine_worst)),
            f"{retrieval.agreement_at_1.mean:.1%}" if retrieval else "?",
            f"{retrieval.overlap_at_10.mean:.1%}" if retrieval else "?",
        )
    return (
        name,
        row.runtime,
        *accuracy,
        f"{row.size_bytes / 1e6:.1f}" if row.size_bytes is not None else "",
        f"{row.latency_median_ms:.1f}" if row.latency_median_ms is not None else "",
        f"{row.speedup.median:.2f}" if row.speedup else "",
    )


def _show(found: RenderableType) -> None:
    console = RichConsole(highlight=False, markup=False)
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = _WIDTH
    console.print(found)


def document(
    rows: Sequence[Row], checkpoint: Checkpoint, calibration: ImageSet, evaluation: ImageSet, seconds: float
) -> dict[str, Any]:
    """The same for machines, with the machine, the versions and the images that the numbers belong to."""
    return {
        "format": FORMAT,
        "source": asdict(checkpoint.origin),
        "calibration": {"digest": calibration.digest, "images": len(calibration.paths)},
        "evaluation": {"digest": evaluation.digest, "images": len(evaluation.paths)},
        "machine": describe_machine().to_json(),
        "tools": {name: installed_version(name) for name in _TOOLS},
        "seconds": round(seconds, 1),
        "rows": [row.to_json() for row in rows],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Compares what the command line names, prints the table, and returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json: {options.json.parent}: no such folder")
    console = Console()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    try:
        checkpoint = load_checkpoint(options.checkpoint)
        with console.bar("Reading images") as advance:
            calibration = scan(options.calibration, options.calibration_images, advance)
            evaluation = scan(options.eval, options.eval_images, advance)
        if warning := too_few_warning(calibration):
            console.warn(warning)
        rows = compare(
            checkpoint,
            calibration,
            evaluation,
            options.build,
            console,
            runtimes=options.runtime,
            bench_seconds=options.bench_seconds,
            threads=options.threads,
        )
    except VitedgeError as error:
        console.warn(str(error))
        return error.exit_code
    judged_on = f"calibrated on {len(calibration.paths)} images, judged on {len(evaluation.paths)}"
    _show(table(rows, f"{Path(options.checkpoint).name}: {judged_on}; latency on 1 thread, batch 1"))
    if options.json:
        found = document(rows, checkpoint, calibration, evaluation, time.perf_counter() - start)
        options.json.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 1 if any(row.error for row in rows) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitedge.benchmarks.vendors", description="Vendors' own INT8 recipes beside vitedge's builds."
    )
    parser.add_argument("checkpoint", help="folder or hub id of a ViT checkpoint")
    parser.add_argument("--calibration", type=Path, required=True, metavar="DIR")
    parser.add_argument("--eval", type=Path, required=True, metavar="DIR")
    parser.add_argument("--build", type=Path, action="append", default=[], metavar="DIR", help="a finished build")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the same for machines")
    parser.add_argument("--calibration-images", type=positive, metavar="N", help="this many, evenly; default all")
    parser.add_argument("--eval-images", type=positive, metavar="N", help="this many, evenly; default all")
    parser.add_argument("--runtime", type=_runtimes, default=RUNTIMES, metavar="LIST", help=",".join(RUNTIMES))
    parser.add_argument("--threads", type=positive, default=os.cpu_count(), help="for accuracy; latency takes one")
    parser.add_argument("--bench-seconds", type=float, default=60.0, help="per runtime; 0 leaves latency out")
    return parser


def _runtimes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(RUNTIMES):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(RUNTIMES)}, found {text}")
    return names


if __name__ == "__main__":
    sys.exit(main())
