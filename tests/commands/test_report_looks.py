"""The page of `vitedge report` fits a phone and a desktop, and prints on pages that cut nothing."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, needs_browser
from tests.commands.conftest import Site, report_of
from tests.commands.report_page import changed, page_of, saved

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(os.environ.get("CI") is None and CHROMIUM is None, reason="needs Debian's chromium")


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_fits_a_phone_and_a_desktop(site: Site, searched: Path, said: Any, tmp_path: Path, width: int) -> None:
    """In a frame of that width, as a window of Chromium cannot be as narrow as a phone."""
    long = "x" * 300  # in every place that a name may come from
    build = changed(searched, tmp_path, lambda document: document.update(names=[long] * 24), "report/images.json")
    report = report_of(build)
    report["source"]["source"] = long
    report["accuracy"]["onnx"] |= {"verdicts": [long], "notes": [long]}
    report["accuracy"]["onnx"]["outputs"]["last_hidden_state"]["worst_image"] = long
    report["search"]["onnx"]["sensitivity_db"][long] = {"static": 1.0}
    (build / "report.json").write_text(json.dumps(report))
    check = {"step": long, "artifact": long, "status": "fail", "found": long, "cause": long}
    runs = [run | {"pairs": {long: run["pairs"]["onnx"]}} for run in said["bench"]["runs"]]
    document = said | {
        "device": long,
        "selftest": said["selftest"] | {"artifacts": {}, "checks": [check]},
        "bench": said["bench"] | {"artifacts": {}, "runs": runs},
    }
    page_of(site, build, tmp_path, "--device", saved(document, tmp_path))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="page.html" style="width:{width}px;height:800px;border:0"></iframe><script>onload = () => {{'
        " const page = document.querySelector('iframe'), root = page.contentDocument.scrollingElement;"
        " document.title = `${page.contentWindow.innerWidth} ${root.scrollWidth} ${root.scrollHeight}`"
        " + ` ${page.contentDocument.images[0].naturalWidth}`; }</script>"
    )
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width + 100},900", frame.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    inner, scroll, height, picture = map(int, re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", shown).groups())  # type: ignore[union-attr]
    assert inner == width
    assert scroll <= inner
    assert height > 2000
    assert picture == 40  # the thumbnails of images of 40 pixels are allowed by the page's own policy


MARGIN = dict.fromkeys(("top", "right", "bottom", "left"), "0.4in")
PAPER = {"width": 718, "height": 1046}  # of A4 within these margins, in CSS pixels
HEIGHTS_OF_UNBROKEN = """
[...document.querySelectorAll("*")]
  .filter((element) => getComputedStyle(element).breakInside === "avoid")
  .map((element) => element.getBoundingClientRect().height)
"""
BROKEN_WORDS = """
[...document.querySelectorAll(".numbers dd, .status")].filter((element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  return range.getClientRects().length > 1;
}).map((element) => element.textContent)
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


@needs_browser
@pytest.mark.parametrize("build", ["built", "searched"])
def test_prints_on_pages_that_cut_nothing(
    build: str, site: Site, browser: Browser, said: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    page, paper = tmp_path / "page.html", tmp_path / "page.pdf"
    devices = ("--device", saved(said, tmp_path)) if build == "built" else ()
    page_of(site, request.getfixturevalue(build), tmp_path, *devices)
    browser.open(page.as_uri(), viewport=PAPER)
    browser.call("page", "emulateMedia", {"media": "print"})
    assert browser.evaluate("document.documentElement.scrollWidth") == PAPER["width"]
    heights = browser.evaluate(HEIGHTS_OF_UNBROKEN)
    assert len(heights) > 20
    assert max(heights) < PAPER["height"]  # else the end of a page would go through it
    assert browser.evaluate(BROKEN_WORDS) == []
    sheets = browser.evaluate("document.documentElement.scrollHeight") / PAPER["height"]
    browser.call("page", "pdf", {"path": str(paper), "format": "A4", "margin": MARGIN, "printBackground": True})
    pages = len(re.findall(rb"/Type /Page\b", paper.read_bytes()))
    assert sheets <= pages <= sheets + 3  # what does not fit a page leaves the rest of it white
    assert browser.call("log", "read")["requests"] == [page.as_uri()]
