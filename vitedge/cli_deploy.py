"""The command line that carries artifacts to devices and into apps: bundle.

Each command is a thin face of a plain function in `commands/`, which it imports when it is called.
"""

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
