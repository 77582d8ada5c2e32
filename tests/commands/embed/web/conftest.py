"""Sites of a tiny encoder, built as their README says, and a browser to open them in."""

import base64
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.browser import Browser
from tests.commands.conftest import Site

RUNTIMES = ("onnx", "tflite")
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def npm(app: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["npm", *words], cwd=app, capture_output=True, text=True, check=False)


def make_site(app: Path) -> None:
    result = npm(app, "run", "build")
    assert result.returncode == 0, result.stdout + result.stderr


def ready(browser: Browser) -> None:
    """Until the page has done what it was asked for."""
    browser.wait("body[data-busy=false]")


def choose(browser: Browser, *files: Path) -> None:
    browser.call("page", "setInputFiles", "#file", [str(file) for file in files])
    ready(browser)


def selftest(browser: Browser) -> dict[str, tuple[bool, str]]:
    """Runs the self-test: whether each step passed, and what it found."""
    browser.call("page", "click", "#selftest")
    ready(browser)
    found = browser.evaluate(
        "[...document.querySelectorAll('#steps li')].map((step) =>"
        " [step.querySelector('b').textContent.split(' ')[0],"
        " [step.dataset.passed === 'true', step.querySelector('span').textContent]])"
    )
    return {name: (passed, text) for name, (passed, text) in found}


def decoded(path: Path) -> str:
    """JavaScript of a promise of an image file's pixels, as the site's own module decodes it."""
    data = base64.b64encode(path.read_bytes()).decode()
    blob = f"new Blob([Uint8Array.from(atob('{data}'), (character) => character.charCodeAt(0))])"
    return f"import('./decode.js').then((decode) => decode.decodeImage({blob}, '{path.name}'))"


def pixels_of(browser: Browser, path: Path) -> np.ndarray:
    found = browser.evaluate(f"{decoded(path)}.then(({{data, height, width}}) => [height, width, [...data]])")
    height, width, data = found
    return np.array(data, np.uint8).reshape(height, width, 3)


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


@pytest.fixture(scope="package")
def apps(site: Site, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The folder that embed wrote, by runtime, with its site built."""
    found = {}
    for runtime in RUNTIMES:
        app = found[runtime] = tmp_path_factory.mktemp("web") / runtime
        result = site.vitedge("embed", built / runtime, "--platform", "web", "--out", app)
        assert result.exit_code == 0, result.output
        installed = npm(app, "install", "--no-audit", "--no-fund")
        assert installed.returncode == 0, installed.stderr
        make_site(app)
    return found


@pytest.fixture
def app(request: pytest.FixtureRequest, apps: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage; `request.param` is the runtime, ONNX if there is none."""
    copy = tmp_path / "app"
    shutil.copytree(apps[getattr(request, "param", "onnx")], copy, symlinks=True)
    return copy
