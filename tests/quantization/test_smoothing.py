"""Smoothing changes ranges and nothing else."""

import numpy as np
import pytest

from tests.tiny import random_encoder, random_pixels
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.quantize import observe
from vitedge.quantization.smoothing import smooth, smoothable, smoothing_factors
from vitedge.runtimes.errors import PlanError


@pytest.mark.parametrize("strength", [0.15, 0.5, 0.9])
def test_outputs_stay_equal(strength):
    encoder, pixels = random_encoder(), random_pixels()
    factors = smoothing_factors(encoder, observe(encoder, [pixels]), strength)
    smoothed = smooth(encoder, factors)
    expected = forward(encoder, pixels, float_linear(encoder))
    found = forward(smoothed, pixels, float_linear(smoothed))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    assert all(np.ptp(factor) > 0.1 for factor in factors.values())  # it did something


def test_statistics_after_smoothing_follow_from_those_before():
    encoder, pixels = random_encoder(), random_pixels()
    before = observe(encoder, [pixels])
    factors = smoothing_factors(encoder, before, 0.5)
    after = observe(smooth(encoder, factors), [pixels])
    for name in smoothable(encoder):
        predicted = before[name].divided_by(factors[name])
        for field in ("minimum", "maximum", "mean", "mean_square"):
            np.testing.assert_allclose(getattr(predicted, field), getattr(after[name], field), rtol=1e-3, atol=1e-5)


def test_an_outlier_channel_is_moved_into_the_weights():
    encoder = random_encoder()
    weight = encoder.tensors["layers.0.layernorm_before.weight"].copy()
    weight[5] *= 100
    encoder = encoder.with_tensors({"layers.0.layernorm_before.weight": weight})
    statistics = observe(encoder, [random_pixels()])["layers.0.attention.qkv"]
    factors = smoothing_factors(encoder, observe(encoder, [random_pixels()]), 0.5)
    smoothed = statistics.divided_by(factors["layers.0.attention.qkv"])
    spread = [s.absolute_maximum.max() / np.median(s.absolute_maximum) for s in (statistics, smoothed)]
    assert spread[1] < spread[0] / 5


def test_refuses_a_factor_that_has_no_place():
    with pytest.raises(PlanError, match=r"mlp\.fc2"):
        smooth(random_encoder(), {"layers.0.mlp.fc2": np.ones(48, np.float32)})
