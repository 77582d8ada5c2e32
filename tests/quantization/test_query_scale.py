"""Folding the query's scale changes where it is applied, and nothing else."""

import numpy as np
import torch
from torch.nn import functional

from tests.converters.test_lowerings import quantized
from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.quantization.encoder import Encoder, FloatArray, Linear, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.query_scale import fold_query_scale


def unscaled(encoder: Encoder, linear: Linear, pixels: FloatArray) -> FloatArray:
    """`forward` with attention that does not scale."""
    attention = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda *inputs: attention(*inputs, scale=1.0)  # type: ignore[assignment]
    try:
        return forward(encoder, pixels, linear)["last_hidden_state"]
    finally:
        functional.scaled_dot_product_attention = attention


def test_float_outputs_stay_equal() -> None:
    encoder, pixels = random_encoder(), random_pixels()
    folded, _ = fold_query_scale(encoder, {})
    expected = forward(encoder, pixels, float_linear(encoder))["last_hidden_state"]
    np.testing.assert_allclose(unscaled(folded, float_linear(folded), pixels), expected, atol=1e-5)
    # The twin: without the fold they differ.
    assert np.abs(unscaled(encoder, float_linear(encoder), pixels) - expected).max() > 1e-2


def test_integers_stay_the_same_and_their_scales_take_the_factor() -> None:
    encoder, linears = quantized(SHAPE)
    folded, rescaled = fold_query_scale(encoder, linears)
    assert rescaled.keys() == linears.keys()
    for name, linear in linears.items():
        weight, found = linear.weight, rescaled[name].weight
        assert found.values is weight.values
        queries = SHAPE.hidden if name.endswith("qkv") else 0
        factor = np.float32(SHAPE.head_width**-0.5)
        for part in ("scale", "bias"):
            before, after = getattr(weight, part), getattr(found, part)
            np.testing.assert_array_equal(after[:queries], before[:queries] * factor)
            np.testing.assert_array_equal(after[queries:], before[queries:])
    pixels = random_pixels()
    expected = forward(encoder, pixels, fake_quantized_linear(encoder, linears))["last_hidden_state"]
    found_outputs = unscaled(folded, fake_quantized_linear(folded, rescaled), pixels)
    # Flips of single integers aside.
    assert torch.isclose(torch.from_numpy(found_outputs), torch.from_numpy(expected), atol=1e-4).float().mean() > 0.5
    np.testing.assert_allclose(found_outputs, expected, atol=0.1)
