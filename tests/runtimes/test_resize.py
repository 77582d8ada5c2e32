"""Resizing: Pillow's own bits, also where float32 alone would not give them."""

import numpy as np
import PIL
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.runtimes.pictures import Pixels, smooth
from vitedge.runtimes import resize as resize_module
from vitedge.runtimes.resize import RESAMPLE_NAMES, resize

pillow_13 = pytest.mark.skipif(
    int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 always runs the horizontal pass first"
)
SIDES = st.integers(1, 400)


@pillow_13
@settings(max_examples=400, deadline=None)
@given(
    source=st.tuples(SIDES, SIDES),
    target=st.tuples(SIDES, SIDES),
    resample=st.sampled_from(RESAMPLE_NAMES),
    seed=st.integers(0, 9),
    spread=st.sampled_from([2, 256]),
)
@example(source=(400, 100), target=(200, 1), resample="bicubic", seed=0, spread=256)
@example(source=(400, 1), target=(1, 400), resample="bilinear", seed=0, spread=256)
@example(source=(400, 400), target=(100, 250), resample="bicubic", seed=0, spread=256)
@example(source=(400, 400), target=(250, 100), resample="bicubic", seed=0, spread=256)
@example(source=(2, 13), target=(372, 4), resample="hamming", seed=0, spread=2)  # its constants are float32
@example(source=(17, 23), target=(17, 23), resample="lanczos", seed=0, spread=256)
def test_resize_is_pillows_to_the_bit(
    source: tuple[int, int], target: tuple[int, int], resample: str, seed: int, spread: int
) -> None:
    """Noise over the whole range, and pure black and white, where every filter clips."""
    noise = np.random.default_rng(seed).integers(0, spread, (*source, 3)) * (255 // (spread - 1))
    check_resize(noise.astype(np.uint8), target, resample)


@pillow_13
@pytest.mark.parametrize("resample", RESAMPLE_NAMES)
@pytest.mark.parametrize(("source", "target"), [((1500, 2000), (224, 224)), ((3, 5), (518, 1024)), ((9000, 2), (3, 9))])
def test_large_resizes_are_pillows_to_the_bit(source: tuple[int, int], target: tuple[int, int], resample: str) -> None:
    check_resize(np.random.default_rng(0).integers(0, 256, (*source, 3), dtype=np.uint8), target, resample)


def check_resize(image: Pixels, target: tuple[int, int], resample: str) -> None:
    height, width = target
    expected = Image.fromarray(image).resize((width, height), Image.Resampling[resample.upper()])
    before = image.copy()
    np.testing.assert_array_equal(resize(image, height, width, resample), np.asarray(expected))
    np.testing.assert_array_equal(image, before)


def test_views_are_resized_as_their_copies() -> None:
    """Callers flip, crop and turn BGR into RGB by slicing; strides must not matter."""
    image = smooth(90, 70)
    for view in (image[::-1], image[:, ::-1], image[..., ::-1], image[5:60:2, 3:50:3], image.transpose(1, 0, 2)):
        for height, width in ((32, 24), view.shape[:2]):
            expected = resize(view.copy(), height, width, "bicubic")
            np.testing.assert_array_equal(resize(view, height, width, "bicubic"), expected)


def stripes(side: int) -> Pixels:
    """Black and white columns in turns: shrunk by an even factor, every sum is half way between 127 and 128."""
    return np.where(np.arange(side)[None, :, None] % 2, 255, 0).astype(np.uint8).repeat(side, 0).repeat(3, 2)


@pillow_13
@pytest.mark.parametrize("resample", RESAMPLE_NAMES)
@pytest.mark.parametrize("factor", [2, 3, 6, 10])
def test_sums_half_way_between_integers_are_rounded_as_pillow_does(
    resample: str, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resize_module, "_STRIP_VALUES", 5000)  # so that there are several strips, and parts of them
    image = stripes(40 * factor)
    for view in (image, image.transpose(1, 0, 2), image ^ image.transpose(1, 0, 2)):
        check_resize(view, (40, 40), resample)


def test_float32_alone_would_not_be_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The twin of the test above: it can fail."""
    monkeypatch.setattr(resize_module, "_error", lambda _: 0.0)
    resize_module._pass.cache_clear()
    try:
        with pytest.raises(AssertionError, match="Mismatched elements"):
            check_resize(stripes(400), (40, 40), "lanczos")
    finally:
        resize_module._pass.cache_clear()


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 3000), st.integers(1, 300)),
    resample=st.sampled_from(sorted(set(RESAMPLE_NAMES) - {"nearest"})),
    seed=st.integers(0, 9),
    low=st.sampled_from([0, 255]),
)
@example(sizes=(448, 224), resample="bilinear", seed=0, low=0)
def test_float32_sums_are_as_near_as_is_assumed(sizes: tuple[int, int], resample: str, seed: int, low: int) -> None:
    planned = resize_module._pass(*sizes, 1, resample)
    vector = np.random.default_rng(seed).integers(low, 256, (1, sizes[0])).astype(np.uint8)
    exact = (vector[0, planned.inputs] * planned.coefficients).sum(1) / resize_module._ONE
    found = np.concatenate(
        [vector[:, block.inputs].astype(np.float32) @ block.coefficients for block in planned.blocks], axis=1
    )
    assert (np.abs(found[0] - exact) <= 0.5 - planned.certain.astype(np.float64)).all()


def test_sums_that_float32_holds_are_not_computed_twice() -> None:
    """Halving with a triangle: eighths, but at the borders."""
    assert (resize_module._pass(448, 224, 1, "bilinear").certain[1:-1] == 0.5).all()
