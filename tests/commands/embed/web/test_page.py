"""The page of `vitedge embed --platform web`, in headless Chromium."""

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.browser import Browser, needs_browser, served
from tests.commands.conftest import CLASSES, Site
from tests.commands.embed.web.conftest import ISOLATED, RUNTIMES, choose, ready, selftest
from vitedge.runtimes.load import load_encoder

pytestmark = needs_browser
each = pytest.mark.parametrize("runtime", RUNTIMES)
DRAWN_FEATURES = "document.getElementById('features').toDataURL()"


@pytest.fixture
def image(site: Site) -> Path:
    return sorted(site.evaluation.rglob("*.png"))[5]


@contextmanager
def served_by_npm(app: Path) -> Iterator[str]:
    """What `npm run serve` starts, without npm between: it would not pass the signal on."""
    server = subprocess.Popen(["node", "serve.js", "0"], cwd=app, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


def wait_for_offline(browser: Browser) -> str:
    """What the page says once the service worker is installed, or cannot be."""
    deadline = time.monotonic() + 60
    while not (said := browser.text("#offline")) and time.monotonic() < deadline:
        time.sleep(0.05)
    return said


@each
def test_one_thread_on_any_static_server(
    runtime: str, apps: Mapping[str, Path], browser: Browser, image: Path, built: Path
) -> None:
    with served(apps[runtime] / "site") as url:
        browser.open(url)
        ready(browser)
        assert "1 thread · model checked" in browser.text("#about")
        assert browser.call("threads", "count") == 1  # the encoder's own, so that the page stays responsive
        choose(browser, image)
        steps = selftest(browser)
        assert {name: passed for name, (passed, _) in steps.items()} == {
            "Decoding": True,
            "Preprocessing": True,
            "Inference": True,
        }
        assert steps["Decoding"][1] == "0 decoded values differ"
        assert steps["Preprocessing"][1] == "0 resized values differ; largest error after normalization 0.0e+0"
        assert "on 1 thread." in browser.text("#latency")
        assert browser.text("#error") == ""
        logits = load_encoder(built / runtime).encode([image])["logits"][0]
        labels = (apps[runtime] / "model" / "labels.txt").read_text().splitlines()
        assert len(labels) == CLASSES
        assert browser.text("#classes li:first-child span") == labels[int(logits.argmax())]
        probability = 100 / np.exp(logits - logits.max()).sum()
        shown = float(browser.text("#classes li:first-child span:nth-child(2)").removesuffix(" %"))
        assert abs(shown - probability) < 1
        log = browser.call("log", "read")
        assert [request for request in log["requests"] if not request.startswith((url, "blob:" + url))] == []
        assert [error for error in log["errors"] if not error.startswith(("INFO", "WARNING"))] == []  # LiteRT's


@each
def test_threads_where_the_page_is_isolated(runtime: str, apps: Mapping[str, Path], browser: Browser) -> None:
    with served_by_npm(apps[runtime]) as url:
        browser.open(f"{url}?threads=2")
        ready(browser)
        assert "2 threads · model checked" in browser.text("#about")
        assert browser.call("threads", "count") >= 2
        assert all(passed for passed, _ in selftest(browser).values())
        assert "on 2 threads." in browser.text("#latency")
        browser.open(f"{url}nothing")
        assert browser.text("body") == "/nothing: no such file\n"


def test_threads_that_cannot_be_had_are_refused(apps: Mapping[str, Path], browser: Browser) -> None:
    with served(apps["onnx"] / "site") as url:
        for asked, said in (
            ("2", "threads: found 2, but this page may have one"),
            ("0", "threads: expected 1 or more, found 0"),
            ("two", "threads: expected 1 or more, found NaN"),
        ):
            browser.open(f"{url}?threads={asked}")
            ready(browser)
            assert said in browser.text("#error")
            assert browser.text("#status") == "Loading the model: failed"


@each
def test_on_plain_http_it_says_what_is_missing(runtime: str, apps: Mapping[str, Path], browser: Browser) -> None:
    with served(apps[runtime] / "site") as url:
        browser.open(url.replace("localhost", "insecure.test"))
        ready(browser)
        assert "1 thread · model not checked: that needs https or localhost" in browser.text("#about")
        assert wait_for_offline(browser) == "To work offline, this page needs https or localhost."
        assert all(passed for passed, _ in selftest(browser).values())


@each
def test_offline_once_loaded(runtime: str, apps: Mapping[str, Path], browser: Browser, image: Path) -> None:
    for headers in ({}, ISOLATED):
        with served(apps[runtime] / "site", headers) as url:
            browser.open(url)
            ready(browser)
            assert wait_for_offline(browser) == "This page works offline."
        browser.call("page", "reload")  # the server is gone
        ready(browser)
        choose(browser, image)
        assert browser.text("#error") == ""
        assert browser.text("#times").startswith("Inference")
        assert all(passed for passed, _ in selftest(browser).values())
        assert browser.evaluate("crossOriginIsolated") == bool(headers)


@each
def test_what_is_no_image_says_so(
    runtime: str, apps: Mapping[str, Path], browser: Browser, image: Path, tmp_path: Path
) -> None:
    wrong = {"note.txt": b"not an image", "empty.png": b"", "cut.png": image.read_bytes()[:-40]}
    wrong["cut.jpg"] = cv2.imencode(".jpg", cv2.imread(str(image)))[1].tobytes()[:-20]
    with served(apps[runtime] / "site") as url:
        browser.open(url)
        ready(browser)
        for name, data in wrong.items():
            (tmp_path / name).write_bytes(data)
            choose(browser, tmp_path / name)
            assert browser.text("#error") == (
                f"{name}: expected an image, found {len(data)} bytes that this browser cannot decode;"
                " choose another file"
            )
            assert browser.text("#status") == f"Encoding {name}: failed"
        browser.evaluate(
            "document.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer(), cancelable: true}))"
        )
        ready(browser)
        assert browser.text("#error") == "expected an image file, found something else"
        cv2.imwrite(str(tmp_path / "glass.png"), np.full((40, 40, 4), 100, np.uint8))
        choose(browser, tmp_path / "glass.png")
        assert browser.evaluate("document.getElementById('error').hidden")
        assert "The image has transparent pixels" in browser.text("#facts")
        choose(browser, image)
        assert "transparent" not in browser.text("#facts")
        assert browser.text("#status") == "Ready"


def test_dropped_and_golden_images_are_encoded(apps: Mapping[str, Path], browser: Browser) -> None:
    with served(apps["onnx"] / "site") as url:
        browser.open(url)
        ready(browser)
        browser.evaluate(
            "fetch('golden/images/0.png').then((response) => response.blob()).then((blob) => {"
            " const dataTransfer = new DataTransfer();"
            " dataTransfer.items.add(new File([blob], 'dropped.png'));"
            " document.dispatchEvent(new DragEvent('drop', {dataTransfer, cancelable: true})); })"
        )
        ready(browser)
        assert "features of the class token; norm" in browser.text("#facts")
        dropped = browser.evaluate(DRAWN_FEATURES)  # behind a LayerNorm norms may agree in every digit shown
        browser.call("page", "click", "summary")
        browser.call("page", "click", "#samples button:nth-child(2)")
        ready(browser)
        assert browser.evaluate(DRAWN_FEATURES) != dropped
        browser.call("page", "click", "#samples button:nth-child(1)")
        ready(browser)
        assert browser.evaluate(DRAWN_FEATURES) == dropped


def test_outputs_are_saved(apps: Mapping[str, Path], browser: Browser, image: Path, built: Path) -> None:
    with served(apps["onnx"] / "site") as url:
        browser.open(url)
        ready(browser)
        choose(browser, image)
        browser.call("page", "click", "#save")
        deadline = time.monotonic() + 30
        while not (files := browser.call("log", "read")["downloads"]) and time.monotonic() < deadline:
            time.sleep(0.05)
        saved = json.loads(Path(files[0]).read_text())
    expected = load_encoder(built / "onnx").encode([image])
    assert saved.keys() == expected.keys()
    for name, values in expected.items():
        assert saved[name]["shape"] == list(values.shape)


def test_a_patch_is_chosen_by_a_click(apps: Mapping[str, Path], browser: Browser, image: Path) -> None:
    drawn = "document.getElementById('image').toDataURL()"
    with served(apps["onnx"] / "site") as url:
        browser.open(url)
        ready(browser)
        choose(browser, image)
        middle = browser.evaluate(drawn)
        browser.call("page", "click", "#image", {"position": {"x": 1, "y": 1}})
        corner = browser.evaluate(drawn)
        browser.call("page", "click", "#map input")
        plain = browser.evaluate(drawn)
        assert len({middle, corner, plain}) == 3
        expected = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
        shown = browser.evaluate(
            "(({width, height}, context) => [...context.getImageData(0, 0, width, height).data])"
            "(document.getElementById('image'), document.getElementById('image').getContext('2d'))"
        )
        assert np.array_equal(np.array(shown).reshape(*expected.shape[:2], 4)[..., :3], expected)


def test_a_phone_has_a_camera_and_no_horizontal_scroll(apps: Mapping[str, Path], browser: Browser, image: Path) -> None:
    for scheme in ("light", "dark"):
        phone = {"viewport": {"width": 320, "height": 640}, "isMobile": True, "hasTouch": True, "colorScheme": scheme}
        with served(apps["onnx"] / "site") as url:
            browser.open(url, **phone)
            ready(browser)
            choose(browser, image)
            selftest(browser)
            assert browser.evaluate("document.documentElement.scrollWidth") == 320
            assert browser.call("page", "isVisible", "label.touch")
            assert browser.evaluate("document.getElementById('camera').getAttribute('capture')") == "environment"
