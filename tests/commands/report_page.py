"""The page of a build, as tests look into it, and builds and results that were changed for it."""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.commands.conftest import Site


class Html(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split()).replace("±\u00a0", "± ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.words.append(data)

    def values(self, tag: str, name: str) -> list[str]:
        return [value for found, key, value in self.attributes if (found, key) == (tag, name)]


def page_of(site: Site, build: Path, folder: Path, *options: str | Path) -> Html:
    """The page of a build, which other tests look into, written elsewhere."""
    result = site.vitedge("report", build, "--out", folder / "page.html", *options)
    assert result.exit_code == 0, result.output
    return Html(folder / "page.html")


def changed(build: Path, folder: Path, change: Callable[[Any], None], file: str = "report.json") -> Path:
    """A copy of a build with one document changed."""
    copy = folder / "copy"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns("fp32", "*.bin", "*.onnx", "*.tflite"))
    document = json.loads((copy / file).read_text())
    change(document)
    (copy / file).write_text(json.dumps(document))
    return copy


def saved(document: Any, folder: Path) -> Path:
    path = folder / "device.json"
    path.write_text(json.dumps(document))
    return path
