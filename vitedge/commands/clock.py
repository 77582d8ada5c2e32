"""How long the steps of a command took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds by named step; a step that comes again adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:  # a search that finds nothing took its time, too
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 2)
