"""The modules of `vitedge embed --platform web` against Python: pixels, preprocessing, outputs."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import Browser, BrowserError, needs_browser, served
from tests.commands.conftest import Site
from tests.commands.embed.web.conftest import RUNTIMES, decoded, make_site, pixels_of, ready, selftest
from vitedge.runtimes.golden import load_golden
from vitedge.runtimes.image import read_image
from vitedge.runtimes.instruction_sets import ANY
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.resize import resize
from vitedge.runtimes.selftest import fidelity

pytestmark = needs_browser
RESIZE = """
import { readFileSync, writeFileSync } from "node:fs";
import { resize } from "./preprocess.js";
const cases = JSON.parse(readFileSync(process.argv[2], "utf8"));
const found = cases.map(({ data, size: [height, width], to, resample }) => {
  try {
    return [...resize({ data: Uint8Array.from(data), height, width }, ...to, resample).data];
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
});
writeFileSync(process.argv[2], JSON.stringify(found));
"""


@pytest.fixture(scope="module")
def pixel_apps(
    site: Site, pixels_in: Path, apps: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Path]:
    """Folders of artifacts that take pixels as they are, by runtime."""
    found = {}
    for runtime in RUNTIMES:
        app = found[runtime] = tmp_path_factory.mktemp("uint8") / "app"
        assert site.vitedge("embed", pixels_in / runtime, "--platform", "web", "--out", app).exit_code == 0
        shutil.copytree(apps[runtime] / "node_modules", app / "node_modules", symlinks=True)
        make_site(app)
    return found


def check_against_python(browser: Browser, app: Path, artifact: Path, images: list[Path]) -> None:
    """Inputs equal Python's, and outputs are as near to Python's as the tolerances against FP32."""
    encoder = load_encoder(artifact)
    (bounds,) = (tolerances[ANY] for tolerances in load_golden(app / "golden").tolerances.values())
    tolerance = bounds["last_hidden_state"]
    for image in images:
        found = browser.evaluate(
            f"{decoded(image)}.then(async (image) => {{"
            " const { Encoder } = await import('./encoder.js');"
            " const { preprocess } = await import('./preprocess.js');"
            " globalThis.encoder ??= await Encoder.load('model/');"
            " const outputs = await encoder.encode(image);"
            " return { input: [...preprocess(image)], outputs: Object.fromEntries(Object.entries(outputs).map("
            " ([name, { shape, values }]) => [name, { shape, values: [...values] }])) }; })"
        )
        given = encoder.manifest.preprocessing(read_image(image))
        if encoder.manifest.inputs[0].layout == "NHWC" and given.dtype == np.float32:
            given = given.transpose(1, 2, 0)
        assert np.array_equal(np.array(found["input"], given.dtype), given.ravel())
        expected = encoder.encode([image])
        assert found["outputs"].keys() == expected.keys()
        for name, values in expected.items():
            assert found["outputs"][name]["shape"] == list(values.shape)
        state = np.array(found["outputs"]["last_hidden_state"]["values"], np.float32)
        near = fidelity(expected["last_hidden_state"], state.reshape(expected["last_hidden_state"].shape))
        assert near.cosine_worst >= tolerance.min_cosine
        assert near.sqnr_db >= tolerance.min_sqnr_db


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_features_are_those_of_python(
    runtime: str, apps: Mapping[str, Path], browser: Browser, site: Site, built: Path
) -> None:
    with served(apps[runtime] / "site") as url:
        browser.open(url)
        check_against_python(browser, apps[runtime], built / runtime, sorted(site.evaluation.rglob("*.png"))[:6])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_pixels_in(runtime: str, pixels_in: Path, pixel_apps: Mapping[str, Path], browser: Browser, site: Site) -> None:
    with served(pixel_apps[runtime] / "site") as url:
        browser.open(url)
        ready(browser)
        steps = selftest(browser)
        assert all(passed for passed, _ in steps.values())
        assert steps["Preprocessing"][1].startswith("0 resized values differ")
        images = sorted(site.evaluation.rglob("*.png"))[:3]
        check_against_python(browser, pixel_apps[runtime], pixels_in / runtime, images)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_wrong_input_is_refused(runtime: str, apps: Mapping[str, Path], browser: Browser) -> None:
    with served(apps[runtime] / "site") as url:
        browser.open(url)
        load = "import('./encoder.js').then(({ Encoder }) => Encoder.load('model/'))"
        with pytest.raises(
            BrowserError, match="RangeError: input: expected 3072 values of float32, found 5 of float32"
        ):
            browser.evaluate(f"{load}.then((encoder) => encoder.run(new Float32Array(5)))")
        with pytest.raises(BrowserError, match=r"RangeError: input: .* found 3072 of uint8"):
            browser.evaluate(f"{load}.then((encoder) => encoder.run(new Uint8Array(3072)))")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_in_the_background_it_is_the_same(runtime: str, apps: Mapping[str, Path], browser: Browser, site: Site) -> None:
    image = decoded(sorted(site.evaluation.rglob("*.png"))[0])
    encode = ".then(async (encoder) => [...(await encoder.encode(await image)).last_hidden_state.values])"
    load = (
        "import('./background.js').then(({ BackgroundEncoder }) => BackgroundEncoder.load('model/'))"
        ".then((encoder) => { globalThis.background = encoder; return encoder; })"
    )
    with served(apps[runtime] / "site") as url:
        browser.open(url)
        here = "import('./encoder.js').then(({ Encoder }) => Encoder.load('model/'))"
        browser.evaluate(f"{{ globalThis.image = {image}; }}")
        expected = browser.evaluate(here + encode)
        assert browser.evaluate(load + encode) == expected
        assert browser.evaluate("background.loaded.threads") == 1
        with pytest.raises(BrowserError, match="RangeError: input: expected 3072 values of float32, found 5"):
            browser.evaluate("background.run(new Float32Array(5))")
        with pytest.raises(BrowserError, match="RangeError: image: expected RGB of 2×2 pixels, found 1 values"):
            browser.evaluate("background.encode({ data: new Uint8Array(1), height: 2, width: 2 })")
        with pytest.raises(BrowserError, match="the encoder was closed"):
            browser.evaluate(
                "(() => { const late = background.run(new Float32Array(3072)); background.close(); return late; })()"
            )
        with pytest.raises(BrowserError, match="the encoder was closed"):
            browser.evaluate("background.run(new Float32Array(3072))")


def test_every_filter_is_the_contracts_own(apps: Mapping[str, Path], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes = [((37, 61), (32, 32)), ((7, 5), (32, 31)), ((90, 33), (32, 32)), ((32, 90), (32, 17)), ((1, 1), (3, 2))]
    sizes += [((300, 200), (16, 16)), ((16, 500), (224, 32)), ((64, 64), (64, 64)), ((101, 32), (33, 64))]
    cases, expected = [], []
    for resample in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        for size, to in sizes:
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            cases.append({"data": pixels.ravel().tolist(), "size": size, "to": to, "resample": resample})
            expected.append(resize(pixels, *to, resample).ravel().tolist())
    for data in ([], [1, 2]):
        cases.append({"data": data, "size": (0, 0), "to": (1, 1), "resample": "box"})
        expected.append(f"RangeError: image: expected RGB of 0×0 pixels, found {len(data)} values")
    for name in ("preprocess.js", "contract.js"):
        shutil.copy(apps["onnx"] / "site" / name, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "run.js").write_text(RESIZE)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run(["node", "run.js", "cases.json"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "cases.json").read_text()) == expected


def test_pixels_are_those_of_python(apps: Mapping[str, Path], browser: Browser, tmp_path: Path) -> None:
    """Upright, whatever EXIF says; without color conversion; alpha is dropped."""
    generator = np.random.default_rng(0)
    smooth = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(smooth).resize((60, 41), Image.Resampling.BICUBIC)
    profile = b"not a profile that anything should convert by"
    with served(apps["onnx"] / "site") as url:
        browser.open(url)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            for name in ("image.png", "image.jpg"):
                picture.save(tmp_path / name, exif=exif, quality=90, icc_profile=profile)
                expected = read_image(tmp_path / name)
                assert expected.shape == ((41, 60, 3) if orientation < 5 else (60, 41, 3))
                found = pixels_of(browser, tmp_path / name)
                assert found.shape == expected.shape
                assert np.abs(found.astype(int) - expected).max() <= (3 if name.endswith("jpg") else 0), orientation
        tall = picture.resize((1500, 3000), Image.Resampling.NEAREST)  # more than is copied at a time
        tall.save(tmp_path / "tall.png")
        digest = "crypto.subtle.digest('SHA-256', image.data).then((bytes) => [...new Uint8Array(bytes)])"
        found = bytes(browser.evaluate(f"{decoded(tmp_path / 'tall.png')}.then((image) => {digest})"))
        assert found == hashlib.sha256(tall.tobytes()).digest()
        see_through = picture.copy()
        see_through.putalpha(128)
        see_through.save(tmp_path / "alpha.png")
        assert np.abs(pixels_of(browser, tmp_path / "alpha.png").astype(int) - np.asarray(picture)).max() <= 2
        assert browser.evaluate(f"{decoded(tmp_path / 'alpha.png')}.then((image) => image.transparent)") == 41 * 60


def test_conversion_of_colors_is_noticed(apps: Mapping[str, Path], browser: Browser, tmp_path: Path) -> None:
    """As in Safari, which does not read the option; and in a browser that does not know it."""
    ask = "import('./decode.js').then((decode) => decode.convertsColors())"
    golden = "m.loadGolden(new URL('golden/', location)).then(m.testDecoding)"
    instead = "void (globalThis.createImageBitmap = ((own) => {})(createImageBitmap))"
    Image.new("RGB", (3, 2)).save(tmp_path / "image.png")
    with served(apps["onnx"] / "site") as url:
        browser.open(url)
        assert browser.evaluate(ask) is False
        converting = "(file, options) => own(file, {...options, colorSpaceConversion: 'default'})"
        browser.evaluate(instead.replace("{}", converting))
        assert browser.evaluate(ask) is True
        assert browser.evaluate(f"import('./selftest.js').then((m) => {golden})") == {
            "passed": True,
            "found": "0 decoded values differ; colors that are not of sRGB are converted by this browser",
        }
        browser.evaluate(
            instead.replace("{}", "(file, options) => own(file, {...options, imageOrientation: 'unknown'})")
        )
        with pytest.raises(BrowserError, match="too old: expected Chrome 112, Firefox 111, Safari 16"):
            browser.evaluate(decoded(tmp_path / "image.png"))
