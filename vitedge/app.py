"""What all commands share: the application, its errors and exit codes, and options that mean the same everywhere.

Exit codes: 0 fine, 1 a gate failed, 2 the input was wrong, 130 interrupted.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from vitedge import __version__
from vitedge.runtimes.errors import VitedgeError
from vitedge.runtimes.fields import printable

app = typer.Typer(
    name="vitedge",
    help="INT8 Vision Transformer encoders for phones and edge boxes, with proof.",
    epilog="Start with:  vitedge demo",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes; warnings stay.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(f"vitedge {__version__}")
        raise typer.Exit


@contextmanager
def errors() -> Iterator[None]:
    """Turns what went wrong into one message on stderr and an exit code."""
    try:
        yield
    except VitedgeError as error:
        typer.secho(printable(f"error: {error}"), fg="red", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        typer.secho("interrupted; what was there before is unchanged", fg="red", err=True)
        raise typer.Exit(130) from error
    except BrokenPipeError:
        raise  # who reads the output has enough of it; click ends quietly
    except OSError as error:  # a path that may not be entered or is too long, no room for temporary files
        typer.secho(printable(f"error: {error}"), fg="red", err=True)
        raise typer.Exit(2) from error
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("vitedge"):
            raise
        typer.secho(
            f"error: {error.name} is not installed; this command needs: pip install 'vitedge[convert]'",
            fg="red",
            err=True,
        )
        raise typer.Exit(2) from error


def print_json(document: Any) -> None:
    json.dump(document, sys.stdout, indent=1, allow_nan=False)
    sys.stdout.write("\n")


def counts(text: str, option: str, expected: str = "a number of at least 1") -> tuple[int, ...]:
    """Numbers of at least 1, such as `1,2`, that an option was given.

    Raises:
        VitedgeError: Not that.
    """
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise VitedgeError(f"{option}: expected {expected}, found {text}")
    return found
