"""The command line that carries artifacts to devices and into apps, and shows results: bundle, embed, report, compare.

Each command is a thin face of a plain function in `commands/`, which it imports when it is called.
"""

import math
from pathlib import Path
from typing import Annotated

import typer

from vitedge.app import Json, Quiet, errors, print_json
from vitedge.console import Console

# Merged into the one application by `cli.py`.
deploy = typer.Typer()


@deploy.command()
def bundle(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts such as OUT/onnx, or OUT for all of them.")],
    out: Annotated[Path, typer.Option(help="A folder, or a file that ends in .zip.")],
    with_fp32: Annotated[
        bool, typer.Option("--with-fp32", help="FP32 twins too, so that the device can say how much faster INT8 is.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A folder to copy to a device: artifacts, golden vectors, and a self-test for Python, numpy and one runtime.

    Example: `vitedge bundle out --out device.zip`, and there: `python -m vitedge.device selftest`
    """
    with errors():
        from vitedge.commands.bundle import bundle as run_bundle

        result = run_bundle(artifacts, out, with_fp32=with_fp32, console=Console(quiet=quiet))
        if as_json:
            document = {"out": str(result.out), "artifacts": result.artifacts, "size_bytes": result.size_bytes}
            print_json({"format": "vitedge-bundled/1", **document})
        else:
            typer.echo(f"{result.out}: {', '.join(result.artifacts)}, {result.size_bytes / 1e6:.1f} MB")
            typer.echo("copy it to the device, and there, in it: python -m vitedge.device selftest")


@deploy.command()
def embed(
    artifact: Annotated[Path, typer.Argument(help="An artifact such as OUT/onnx.")],
    platform: Annotated[
        str,
        typer.Option(
            help="android, ios, web, cpp; mediapipe (with metadata for its tasks), ort (ONNX Runtime's format)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="A folder to make.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Source code that runs an artifact in an app, with preprocessing, and a test against golden vectors.

    Example: `vitedge embed out/onnx --platform cpp --out app`
    """
    with errors():
        from vitedge.commands.embed import embed as run_embed

        result = run_embed(artifact, platform, out, console=Console(quiet=quiet))
        if as_json:
            document = {"out": str(out), "platform": platform, "runtime": result.runtime, "files": list(result.files)}
            print_json({"format": "vitedge-embedded/1", **document})
        else:
            typer.echo(f"{out}: {result.runtime} for {platform}; {out / 'README.md'} says how to go on")


@deploy.command()
def report(
    build: Annotated[Path, typer.Argument(help="The OUT of a build.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: report.html in the build's folder.")
    ] = None,
    device: Annotated[
        list[Path] | None,
        typer.Option(help="What vitedge bench --device … --json printed; may be repeated.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """One HTML page of everything measured: verdicts, plots, the worst images, sensitivity, devices. Needs no network.

    Example: `vitedge report out --device pi.json`
    """
    with errors():
        from vitedge.commands.report import report as write_report

        path = build / "report.html" if out is None else out
        size_bytes = write_report(build, path, device or ())
        if as_json:
            print_json({"format": "vitedge-page/1", "out": str(path), "size_bytes": size_bytes})
        else:
            typer.echo(f"{path}: {size_bytes / 1e3:.0f} kB; open it in a browser")


@deploy.command()
def compare(
    before: Annotated[
        Path,
        typer.Argument(help="A result: report.json of a build, or what verify, bench or a self-test printed."),
    ],
    after: Annotated[Path, typer.Argument(help="Another, of a later release or of another device.")],
    max_slowdown: Annotated[str, typer.Option(help="Largest slowdown, such as 5%.")] = "5%",
    max_growth: Annotated[str, typer.Option(help="Largest growth of files, such as 5%.")] = "5%",
    max_loss_db: Annotated[float, typer.Option(min=0, help="Largest loss of SQNR in dB.")] = 0.5,
    max_loss_cosine: Annotated[
        float, typer.Option(min=0, help="Largest loss of the mean cosine of class tokens.")
    ] = 0.001,
    as_json: Json = False,
) -> None:
    """What became slower, larger or less accurate between two results; exit code 1 if something did.

    What made one of two measurements doubtful is told with the verdict, and changes no exit code.

    Example: `vitedge compare old/report.json new/report.json --max-slowdown 3%`
    """
    with errors():
        from vitedge import tables
        from vitedge.benchmarks.compare import Limits, compare, failures, missing, read_result
        from vitedge.quantization.gates import parse_fraction
        from vitedge.runtimes.errors import GateFailedError

        limits = Limits(
            parse_fraction(max_slowdown, "--max-slowdown", most=math.inf),
            parse_fraction(max_growth, "--max-growth", most=math.inf),
            max_loss_db,
            max_loss_cosine,
        )
        one, other = read_result(before), read_result(after)
        changes = compare(one, other, limits)
        absent = missing(one, other)
        worse = failures(changes) + tuple(f"{name}: in {before}, not in {after}" for name in absent)
        if as_json:
            rows = [change.to_json() for change in changes]
            print_json({"format": "vitedge-comparison/1", "changes": rows, "failures": list(worse)})
        else:
            tables.show(tables.comparison_table(one, other, changes))
        if worse:
            raise GateFailedError("\n".join(worse))
