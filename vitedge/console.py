"""What a person sees while something long runs: steps, bars and warnings, on stderr; results go to stdout elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vitedge.runtimes.fields import printable


class PlainConsole(RichConsole):
    """A console whose terminal obeys nothing that is in a name, a label or what a device said."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


class Console:
    """Progress on stderr. Bars and spinners only where a person is watching (stderr is a terminal). Quiet leaves
    warnings: who reads no notes must still see those.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._rich = PlainConsole(stderr=True, quiet=quiet, highlight=False)
        self._warnings = PlainConsole(stderr=True, highlight=False)
        self._watched = self._rich.is_terminal and sys.stderr.isatty()

    def note(self, text: str) -> None:
        self._rich.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self._warnings.print(f"warning: {text}", style="yellow", markup=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Work of unknown length."""
        if not self._watched:
            self.note(text)
            yield
            return
        with self._rich.status(text):
            yield
        self.note(f"{text}: done")

    @contextmanager
    def bar(self, text: str, total: int | None = None, *, unit: str = "") -> Iterator[Callable[[int], None]]:
        """Work that advances: yields what to call with the number of things done; with a unit, their speed is shown."""
        if not self._watched:
            self.note(text)
            yield lambda _: None
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            *([_SpeedColumn(unit)] if unit else []),
        )
        with Progress(*columns, console=self._rich) as progress:
            task = progress.add_task(text, total=total)
            yield lambda count: progress.advance(task, count)


class _SpeedColumn(ProgressColumn):
    """Things per second, lately; in the end over all."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {self._unit}/s")


QUIET = Console(quiet=True)  # for those who call the functions behind the commands
