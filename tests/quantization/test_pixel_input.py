"""Normalization folded into the patch embedding: the same function of pixels as they are."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import SHAPE, random_encoder
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.pixel_input import PIXELS, fold_normalization
from vitedge.quantization.ranges import covering_input
from vitedge.runtimes.preprocess import Preprocessing

NUMBERS = st.floats(0.1, 0.9)
THREE = st.tuples(NUMBERS, NUMBERS, NUMBERS)


def contract(mean: tuple[float, float, float], std: tuple[float, float, float]) -> Preprocessing:
    return Preprocessing(SHAPE.image_height, SHAPE.image_width, "bilinear", 1 / 255, mean, std)


@settings(max_examples=20, deadline=None)
@given(mean=THREE, std=THREE, seed=st.integers(0, 99))
def test_outputs_stay_equal(mean: tuple[float, float, float], std: tuple[float, float, float], seed: int) -> None:
    encoder, normalized = random_encoder(seed=seed), contract(mean, std)
    folded = fold_normalization(encoder, normalized)
    images = np.random.default_rng(seed).integers(0, 256, (2, SHAPE.image_height, SHAPE.image_width, 3), np.uint8)
    expected = forward(encoder, normalized.batch(list(images)), float_linear(encoder))
    found = forward(folded, replace(normalized, dtype="uint8").batch(list(images)), float_linear(folded))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_a_pixel_is_its_own_integer() -> None:
    pixels = replace(contract((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), dtype="uint8")
    assert pixels.value_range == (0.0, 255.0)
    assert covering_input(*pixels.value_range) == PIXELS


def test_folding_twice_is_a_mistake_of_the_caller() -> None:
    normalized = contract((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(AssertionError, match="folded in already"):
        fold_normalization(fold_normalization(random_encoder(), normalized), normalized)
