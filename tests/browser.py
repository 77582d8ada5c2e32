"""A page in headless Chromium, driven from Python by way of Node, and static servers for it."""

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.npm import npm_package

PLAYWRIGHT = ("playwright-core", "1.65.1")
needs_browser = pytest.mark.skipif(
    os.environ.get("CI") is None and not (shutil.which("node") and shutil.which("npm") and shutil.which("chromium")),
    reason="needs node, npm and chromium",
)


class BrowserError(Exception):
    """What Playwright said."""


class Browser:
    """Chromium with one page at a time; `open` begins anew."""

    def __init__(self) -> None:
        chromium = shutil.which("chromium")
        assert chromium, "CI installs chromium"
        script = Path(__file__).with_name("browser.mjs")
        self._process = subprocess.Popen(
            ["node", str(script), str(npm_package(*PLAYWRIGHT)), chromium],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def call(self, on: str, method: str, *args: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"on": on, "method": method, "args": args}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise BrowserError(answer["error"])
        return answer.get("value")

    def open(self, url: str, **options: Any) -> None:
        """A page that no earlier one has left anything to."""
        self.call("browser", "open", options)
        self.call("page", "goto", url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page; a promise is awaited."""
        return self.call("page", "evaluate", expression)

    def wait(self, selector: str) -> None:
        """Until there is such an element, visible or not."""
        self.call("page", "waitForSelector", selector, {"state": "attached"})

    def text(self, selector: str) -> str:
        return str(self.call("page", "textContent", selector))

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(60) == 0


@contextmanager
def served(folder: Path, headers: Mapping[str, str] | None = None) -> Iterator[str]:
    """The URL of a folder behind Python's own static server, with more headers if need be."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
