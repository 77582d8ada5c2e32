"""Centering moves offsets into biases and changes nothing else."""

import numpy as np
import pytest

from tests.tiny import random_encoder, random_pixels
from vitedge.quantization.centering import center, channel_centers
from vitedge.quantization.encoder import Encoder, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.prediction import Prediction
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.recipe import Recipe
from vitedge.quantization.smoothing import smoothable
from vitedge.runtimes.errors import PlanError

QKV, O_PROJ = "layers.0.attention.qkv", "layers.0.attention.o_proj"


def offset_encoder() -> Encoder:
    """One whose channels do not lie about 0, neither behind LayerNorm nor in the values."""
    encoder, rng = random_encoder(), np.random.default_rng(3)
    names = [name for name in encoder.tensors if name.endswith(".bias") and ("layernorm_" in name or "qkv" in name)]
    return encoder.with_tensors(
        {name: (3 * rng.standard_normal(encoder.tensors[name].shape)).astype(np.float32) for name in names}
    )


def test_outputs_stay_equal() -> None:
    encoder, pixels = offset_encoder(), random_pixels()
    centers = channel_centers(observe(encoder, [pixels]), smoothable(encoder))
    centered = center(encoder, centers)
    expected = forward(encoder, pixels, float_linear(encoder))
    found = forward(centered, pixels, float_linear(centered))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    assert centers.keys() == set(smoothable(encoder))
    assert all(np.abs(offset).max() > 0.5 for offset in centers.values())  # it did something


def test_every_channel_lies_evenly_about_0_afterwards() -> None:
    encoder, pixels = offset_encoder(), random_pixels()
    before = observe(encoder, [pixels])
    centers = channel_centers(before, smoothable(encoder))
    after = observe(center(encoder, centers), [pixels])
    for name in smoothable(encoder):
        np.testing.assert_allclose(after[name].minimum, -after[name].maximum, atol=1e-4)
        assert np.ptp([after[name].minimum, after[name].maximum]) < np.ptp([before[name].minimum, before[name].maximum])
        predicted = before[name].shifted_by(centers[name])
        for field in ("minimum", "maximum", "mean", "covariance"):
            np.testing.assert_allclose(getattr(predicted, field), getattr(after[name], field), rtol=1e-3, atol=1e-3)


def test_only_biases_of_the_linears_named_and_of_what_makes_their_input_change() -> None:
    encoder = offset_encoder()
    centers = channel_centers(observe(encoder, [random_pixels()]), [O_PROJ])
    centered = center(encoder, centers)
    changed = {name for name in encoder.tensors if not np.array_equal(encoder.tensors[name], centered.tensors[name])}
    assert changed == {f"{O_PROJ}.bias", f"{QKV}.bias"}
    hidden = encoder.shape.hidden
    kept = [tensors.tensors[f"{QKV}.bias"][: 2 * hidden] for tensors in (encoder, centered)]
    np.testing.assert_array_equal(*kept)  # query and key


def test_the_order_of_centers_does_not_matter() -> None:
    """A plan that was read from a file has another order than the one that was made."""
    encoder = offset_encoder()
    centers = channel_centers(observe(encoder, [random_pixels()]), smoothable(encoder))
    turned = center(encoder, dict(reversed(centers.items())))
    for name, tensor in center(encoder, centers).tensors.items():
        np.testing.assert_array_equal(turned.tensors[name], tensor)


@pytest.mark.parametrize("offset", [np.float32(1), np.ones(3, np.float32), np.full(48, np.nan, np.float32)], ids=str)
def test_refuses_a_center_that_is_none(offset: np.ndarray) -> None:
    with pytest.raises(PlanError, match=r"qkv: expected \d+ finite numbers"):
        center(random_encoder(), {QKV: offset})


def test_fixed_ranges_lose_less_around_centered_channels() -> None:
    encoder, pixels = offset_encoder(), random_pixels(count=16)
    calibration = Calibration(observe(encoder, [pixels]), lambda: [pixels], lambda: [pixels], (-1, 1), "i")
    recipes = {"onnx": Recipe("int8", {"*": "static", O_PROJ: "float"})}
    found, prediction = {}, Prediction(encoder, pixels)
    for centered in (False, True):
        plan, smoothed = make_plan(
            encoder, calibration, recipes=recipes, target="", checkpoint_digest="", strengths=(0.5,), centered=centered
        )
        assert plan.centers.keys() == (set(smoothable(encoder)) - {O_PROJ} if centered else set())
        found[centered] = prediction(smoothed, fake_quantized_linear(smoothed, plan.linears("onnx"))).sqnr_db
    assert found[True] > found[False] + 1


def test_refuses_a_center_that_has_no_place() -> None:
    with pytest.raises(PlanError, match=r"mlp\.fc2"):
        center(random_encoder(), {"layers.0.mlp.fc2": np.ones(96, np.float32)})
