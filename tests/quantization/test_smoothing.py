"""Smoothing changes ranges and nothing else."""

import numpy as np
import pytest

from tests.tiny import random_encoder, random_pixels
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.quantize import observe
from vitedge.quantization.smoothing import smooth, smoothable, smoothing_factors
from vitedge.runtimes.errors import PlanError

QKV = "layers.0.attention.qkv"


@pytest.mark.parametrize("strength", [0.15, 0.5, 0.9])
def test_outputs_stay_equal(strength: float) -> None:
    encoder, pixels = random_encoder(), random_pixels()
    factors = smoothing_factors(observe(encoder, [pixels]), smoothable(encoder), strength)
    smoothed = smooth(encoder, factors)
    expected = forward(encoder, pixels, float_linear(encoder))
    found = forward(smoothed, pixels, float_linear(smoothed))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    assert factors.keys() == set(smoothable(encoder))
    assert all(np.ptp(factor) > 0.1 for factor in factors.values())  # it did something


def test_factors_are_a_power_of_the_largest_value_and_have_a_geometric_mean_of_1() -> None:
    encoder = random_encoder()
    statistics = observe(encoder, [random_pixels()])
    factor = smoothing_factors(statistics, [QKV], 0.7)[QKV]
    power = statistics[QKV].absolute_maximum ** 0.7
    np.testing.assert_allclose(factor / factor[0], power / power[0], rtol=1e-4)
    assert np.log(factor).mean() == pytest.approx(0, abs=1e-5)


def test_only_the_linears_named_are_smoothed() -> None:
    """Those that every recipe keeps in float stay as they were, and so does what produces their input."""
    encoder = random_encoder()
    factors = smoothing_factors(observe(encoder, [random_pixels()]), ["layers.1.mlp.fc1"], 0.5)
    smoothed = smooth(encoder, factors)
    changed = {name for name in encoder.tensors if not np.array_equal(encoder.tensors[name], smoothed.tensors[name])}
    norm = "layers.1.layernorm_after"
    assert changed == {"layers.1.mlp.fc1.weight", f"{norm}.weight", f"{norm}.bias"}


def test_statistics_after_smoothing_follow_from_those_before() -> None:
    encoder, pixels = random_encoder(), random_pixels()
    before = observe(encoder, [pixels])
    factors = smoothing_factors(before, smoothable(encoder), 0.5)
    after = observe(smooth(encoder, factors), [pixels])
    for name in smoothable(encoder):
        predicted = before[name].divided_by(factors[name])
        for field in ("minimum", "maximum", "mean", "covariance"):
            np.testing.assert_allclose(getattr(predicted, field), getattr(after[name], field), rtol=1e-3, atol=1e-4)


def test_an_outlier_channel_is_moved_into_the_weights() -> None:
    encoder = random_encoder()
    weight = encoder.tensors["layers.0.layernorm_before.weight"].copy()
    weight[5] *= 100
    encoder = encoder.with_tensors({"layers.0.layernorm_before.weight": weight})
    observed = observe(encoder, [random_pixels()])

    def spread(strength: float) -> float:
        factors = smoothing_factors(observed, [QKV], strength)
        largest = observed[QKV].divided_by(factors[QKV]).absolute_maximum
        return float(largest.max() / np.median(largest))

    before = observed[QKV].absolute_maximum
    assert spread(0.5) < before.max() / np.median(before) / 5
    assert spread(0.9) < spread(0.5) / 2
    assert spread(1.0) == pytest.approx(1, rel=1e-4)  # all of it is in the weights


def test_refuses_a_factor_that_has_no_place() -> None:
    with pytest.raises(PlanError, match=r"mlp\.fc2"):
        smooth(random_encoder(), {"layers.0.mlp.fc2": np.ones(48, np.float32)})
