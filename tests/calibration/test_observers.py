"""What calibration remembers: equal to numpy's statistics of everything at once, in the memory of one batch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.calibration.observers import DEVIATIONS, InputStatistics, Observer
from vitedge.quantization.encoder import FloatArray, to_patches
from vitedge.quantization.quantize import observe
from vitedge.runtimes.errors import PlanError

FIELDS = ("minimum", "maximum", "mean", "covariance")


def identity(_: str, x: torch.Tensor) -> torch.Tensor:
    return x


def observed(*arrays: FloatArray) -> InputStatistics:
    observer = Observer(identity)
    for array in arrays:
        observer("linear", torch.from_numpy(array))
    return observer.statistics()["linear"]


def of_the_whole(images: FloatArray) -> InputStatistics:
    """Of [images, rows, in]."""
    wide = images.astype(np.float64)
    lows, highs, rows = wide.min(1), wide.max(1), wide.reshape(-1, wide.shape[-1])
    found = (
        np.minimum(lows.min(0), lows.mean(0) - DEVIATIONS * lows.std(0)),
        np.maximum(highs.max(0), highs.mean(0) + DEVIATIONS * highs.std(0)),
        rows.mean(0),
        np.cov(rows.T, bias=True),
    )
    return InputStatistics(*(array.astype(np.float32) for array in found))


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.sampled_from([1e-3, 1.0, 1e4]),
    st.sampled_from([0.0, 100.0]),
)
def test_any_split_into_batches_gives_numpys_statistics(
    seed: int, sizes: list[int], spread: float, offset: float
) -> None:
    images = (np.random.default_rng(seed).standard_normal((sum(sizes), 5, 6)) * spread + offset).astype(np.float32)
    found = observed(*np.split(images, np.cumsum(sizes)[:-1]))
    expected = of_the_whole(images)
    np.testing.assert_allclose(found.minimum, expected.minimum, rtol=1e-6, atol=1e-6 * spread)
    np.testing.assert_allclose(found.maximum, expected.maximum, rtol=1e-6, atol=1e-6 * spread)
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-6, atol=1e-6 * spread)
    np.testing.assert_allclose(
        found.covariance, expected.covariance, rtol=1e-4, atol=1e-5 * spread**2 + 1e-6 * spread * offset
    )
    assert all(getattr(found, field).dtype == np.float32 for field in FIELDS)


def test_sums_do_not_lose_small_values_among_many() -> None:
    """2^24 + 1 is not a float32: a float32 running sum would stop growing at 2^24."""
    found = observed(np.full((1, 1), 2.0**25, np.float32), *[np.ones((1, 1), np.float32)] * 400)
    assert found.mean[0] == pytest.approx((2**25 + 400) / 401, rel=1e-6)


def test_all_axes_between_the_first_and_the_last_are_rows() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(observed(x), field), getattr(observed(x.reshape(2, 15, 4)), field))


def test_an_input_without_rows_has_one_per_image() -> None:
    """As the pooler's."""
    x = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(observed(x), field), getattr(observed(x[:, None]), field))


def test_more_is_expected_than_a_few_images_show() -> None:
    """Of extremes 1 and 3 the mean is 2, the standard deviation 1."""
    images = np.array([[[-1, 2], [1, -2]], [[-3, 6], [3, -6]]], np.float32)
    found = observed(*np.split(images, 2))
    np.testing.assert_array_equal(found.maximum, [2 + DEVIATIONS, 2 * (2 + DEVIATIONS)])
    np.testing.assert_array_equal(found.minimum, [-2 - DEVIATIONS, -2 * (2 + DEVIATIONS)])


def test_no_less_is_expected_than_was_seen() -> None:
    """40, once among 31 ones: 2.5 standard deviations above the mean are 19."""
    images = np.tile(np.array([[-1], [1]], np.float32), (32, 1, 1))
    images[5] *= 40
    found = observed(*np.split(images, 4))
    assert (found.minimum[0], found.maximum[0]) == (-40, 40)


def test_what_is_the_same_in_all_images_is_expected_to_the_bit() -> None:
    value = np.float32(1e6 + 0.25)
    images = np.tile(np.array([[-value, 0.1], [value, 0.7]], np.float32), (9, 1, 1))
    found = observed(*np.split(images, 3))
    np.testing.assert_array_equal(found.minimum, images[0].min(0))
    np.testing.assert_array_equal(found.maximum, images[0].max(0))


def test_the_linear_is_called_unchanged() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    called: list[tuple[str, torch.Tensor]] = []

    def linear(name: str, given_x: torch.Tensor) -> torch.Tensor:
        called.append((name, given_x))
        return given_x + 1

    output = Observer(linear)("a", x)
    assert called[0][0] == "a"
    assert called[0][1] is x
    torch.testing.assert_close(output, x + 1)


def test_linears_are_kept_apart() -> None:
    observer = Observer(identity)
    observer("a", torch.full((2, 3), 1.0))
    observer("b", torch.full((4, 5), -2.0))
    observer("b", torch.full((1, 5), -1.0))
    observer("a", torch.full((6, 3), 5.0))
    found = observer.statistics()
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"].mean, np.full(3, 4.0))  # 2 rows of 1 and 6 of 5
    np.testing.assert_allclose(found["b"].mean, np.full(5, -1.8), rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("batch", [0, 1, 2])
def test_nan_and_infinity_are_errors_wherever_they_were(value: float, batch: int) -> None:
    """Also when sound batches follow: a minimum that forgets NaN would hide it."""
    arrays = [np.array([[1, 2], [3, 4], [5, 6]], np.float32) for _ in range(3)]
    arrays[batch][1, 1] = value
    with pytest.raises(PlanError, match="the input of linear held NaN or infinity during calibration; check the check"):
        observed(*arrays)


@pytest.mark.parametrize("value", [0.0, -1.5])
def test_an_input_that_never_changes_is_refused(value: float) -> None:
    with pytest.raises(PlanError, match="the input of linear never changed over the calibration images"):
        observed(*[np.full((3, 2), value, np.float32)] * 2)


def test_blank_images_name_the_first_linear() -> None:
    with pytest.raises(PlanError, match="the input of patch_embedding never changed"):
        observe(random_encoder(), [0 * random_pixels() - 1])


def test_absolute_maximum() -> None:
    found = observed(np.array([[[-3, 1, 0], [2, 4, 0]]], np.float32))
    np.testing.assert_array_equal(found.absolute_maximum, [3, 4, 0])


def test_dividing_the_input_divides_its_statistics() -> None:
    rows = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    factors = np.array([0.5, 1, 4], np.float32)
    divided, expected = observed(rows).divided_by(factors), observed(rows / factors)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(divided, field), getattr(expected, field), rtol=1e-5)


def test_observing_an_encoder_sees_every_linear_whatever_the_batches() -> None:
    encoder, pixels = random_encoder(), random_pixels(count=12)
    at_once, in_parts = observe(encoder, [pixels]), observe(encoder, np.split(pixels, [1, 6, 11]))
    assert list(at_once) == list(SHAPE.linears)
    for name in at_once:
        for field in FIELDS:
            np.testing.assert_allclose(getattr(in_parts[name], field), getattr(at_once[name], field), atol=1e-4)
    patches = to_patches(SHAPE, torch.from_numpy(pixels)).numpy().reshape(-1, SHAPE.patch_values)
    np.testing.assert_allclose(at_once["patch_embedding"].mean, patches.mean(0), atol=1e-6)


def test_nan_pixels_name_the_first_linear() -> None:
    pixels = random_pixels()
    pixels[2, 0, 5, 5] = np.nan
    with pytest.raises(PlanError, match="the input of patch_embedding held NaN"):
        observe(random_encoder(), [pixels])


# Memory. Of fresh processes, by the kernel's VmHWM: ru_maxrss of a child starts at that of its parent, and tracemalloc
# does not see torch.

LARGE = {"image_height": 224, "image_width": 224, "patch_height": 16, "patch_width": 16}
LARGE |= {"hidden": 192, "layers": 4, "heads": 3, "intermediate": 768}
MEASURE = f"""
import sys
from dataclasses import replace
from pathlib import Path
import torch
from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.quantization import quantize
from vitedge.quantization.encoder import float_linear, forward

images, keep = int(sys.argv[1]), sys.argv[2] == "keep"
torch.set_num_threads(1)
shape = replace(SHAPE, **{LARGE!r})
encoder = random_encoder(shape)
batches = (random_pixels(shape, 8, seed) for seed in range(images // 8))
if keep:
    kept, linear = [], float_linear(encoder)
    def keeping(name, x):
        kept.append(x.clone())
        return linear(name, x)
    for batch in batches:
        forward(encoder, batch, keeping)
else:
    assert len(quantize.observe(encoder, batches)) == len(shape.linears)
status = Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
"""
# Bytes of all inputs of linears of one image: 196 patches of 768 values, then per layer 197 tokens into qkv, o_proj and
# fc1 (192 each) and fc2 (768), and the pooler's.
KEPT_BYTES_PER_IMAGE = 4 * (196 * 768 + 4 * 197 * (3 * 192 + 768) + 192)
needs_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")


def peak_bytes(images: int, mode: str) -> int:
    root = Path(__file__).parents[2]
    found = subprocess.run(
        [sys.executable, "-c", MEASURE, str(images), mode],
        cwd=root,
        # Large blocks go back to the system when they are freed, so that the heap's gaps do not blur what is held.
        env={**os.environ, "PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": str(1 << 20)},
        capture_output=True,
        check=True,
        timeout=300,
        encoding="utf-8",
    )
    return int(found.stdout)


@needs_linux
def test_memory_does_not_grow_with_the_number_of_images() -> None:
    """Keeping the activations of 144 more images would cost 697 MB."""
    growth = peak_bytes(160, "observe") - peak_bytes(16, "observe")
    would_cost = 144 * KEPT_BYTES_PER_IMAGE
    assert would_cost == 696_840_192
    assert growth < 0.02 * would_cost


@needs_linux
def test_the_measurement_of_memory_sees_kept_activations() -> None:
    """The twin of the test above: what keeps its inputs grows, by what was computed."""
    growth = peak_bytes(48, "keep") - peak_bytes(16, "keep")
    assert growth == pytest.approx(32 * KEPT_BYTES_PER_IMAGE, rel=0.05)
