"""Sites that are damaged, incomplete, built again, or of other golden vectors."""

import shutil
from pathlib import Path

import pytest

from tests.browser import Browser, needs_browser, served
from tests.commands.embed.conftest import turned_away
from tests.commands.embed.web.conftest import RUNTIMES, make_site, npm, ready, selftest
from tests.commands.embed.web.test_page import wait_for_offline

pytestmark = needs_browser
both = pytest.mark.parametrize("app", RUNTIMES, indirect=True)


def error_of(browser: Browser, url: str) -> str:
    browser.open(url)
    ready(browser)
    assert browser.text("#status") == "Loading the model: failed"
    assert browser.evaluate("document.getElementById('file').disabled")
    return browser.text("#error")


@both
def test_a_changed_model_is_refused(app: Path, browser: Browser) -> None:
    (model,) = (app / "site" / "model").glob("model.*")
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with served(app / "site") as url:
        assert f"/model/{model.name}: expected SHA-256 " in error_of(browser, url)
        model.unlink()
        assert f"/model/{model.name}: expected a file, found HTTP 404; copy the folder again" in error_of(browser, url)


@both
def test_a_missing_engine_is_named(app: Path, browser: Browser) -> None:
    with served(app / "site") as url:
        for wasm in (app / "site" / "vendor").rglob("*.wasm"):
            wasm.unlink()
        said = error_of(browser, url)
        assert "cannot load model." in said
        assert "with the files of /vendor/" in said
        for script in (app / "site" / "vendor").rglob("*.*js"):
            script.unlink()
        assert "The engine in vendor/ cannot be loaded; make the site again with npm run build" in error_of(
            browser, url
        )


def test_a_missing_worker_is_named(app: Path, browser: Browser) -> None:
    (app / "site" / "background-worker.js").unlink()
    with served(app / "site") as url:
        assert error_of(browser, url) == "/background-worker.js: the worker failed (it cannot be loaded)"


def test_a_build_without_the_engine_is_refused(app: Path) -> None:
    shutil.rmtree(app / "node_modules" / "onnxruntime-web" / "dist")
    result = npm(app, "exec", "--", "node", "build.js")
    assert result.returncode == 2
    assert "node_modules/onnxruntime-web/dist/ort.wasm.min.mjs: expected a file of the engine" in result.stderr
    assert "run npm install" in result.stderr


def test_a_site_of_changed_files_is_not_kept_for_offline(app: Path, browser: Browser) -> None:
    with (app / "site" / "style.css").open("a") as style:
        style.write("/* changed after the build */")
    with served(app / "site") as url:
        browser.open(url)
        ready(browser)
        assert "does not work offline: a file is missing, or not the one that was built" in wait_for_offline(browser)
        assert browser.evaluate("caches.match('./')") is None


def test_a_new_build_replaces_the_old_and_no_other_cache(app: Path, browser: Browser) -> None:
    with served(app / "site") as url:
        browser.open(url)
        ready(browser)
        assert wait_for_offline(browser) == "This page works offline."
        (old,) = browser.evaluate("caches.keys()")
        browser.evaluate("caches.open('vitedge of another site').then(() => null)")
        page = app / "public" / "index.html"
        page.write_text(page.read_text().replace("<h1>ViT encoder", "<h1>New"))
        make_site(app)
        browser.call("page", "reload")  # fetches the new worker, shows the old page
        ready(browser)
        assert browser.text("h1") == "ViT encoder"
        browser.evaluate(
            "navigator.serviceWorker.getRegistration().then(async (found) => {"
            " while (!found.waiting) await new Promise((resolve) => setTimeout(resolve, 50)); })"
        )
        browser.call("page", "goto", "about:blank")  # the old page is closed
        browser.call("page", "goto", url)
        ready(browser)
        assert browser.text("h1") == "New"
        kept = browser.evaluate("caches.keys()")
        assert len(kept) == 2
        assert "vitedge of another site" in kept
        assert old not in kept


def change(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_each_step_of_the_selftest_fails_alone(app: Path, browser: Browser) -> None:
    golden = app / "site" / "golden"

    def failed(url: str) -> list[str]:
        browser.open(url)
        ready(browser)
        return [f"{name}: {found}" for name, (passed, found) in selftest(browser).items() if not passed]

    with served(app / "site") as url:
        kept = (golden / "images" / "0.png").read_bytes()
        shutil.copy(golden / "images" / "1.png", golden / "images" / "0.png")
        (said,) = failed(url)
        assert said.startswith("Decoding: ")
        assert not said.startswith("Decoding: 0 ")
        (golden / "images" / "0.png").write_bytes(kept)

        change(golden / "resized.bin", 100)
        (said,) = failed(url)
        assert said.startswith("Preprocessing: 1 resized values differ; largest error after normalization ")
        change(golden / "resized.bin", 100)

        for path in sorted((golden / "fp32").iterdir()):
            kept = path.read_bytes()
            turned_away(path)
            (said,) = failed(url)
            assert said.startswith("Inference: last_hidden_state: cosine ")
            assert f"{path.stem}: cosine " in said
            path.write_bytes(kept)
        assert failed(url) == []

        path = golden / "fp32" / "last_hidden_state.bin"
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-4])
        browser.open(url)
        ready(browser)
        selftest(browser)
        assert f"/golden/fp32/last_hidden_state.bin: expected {size} bytes" in browser.text("#error")
        (golden / "index.txt").write_text("")
        assert "/golden/index.txt: names no image" in error_of(browser, url)
