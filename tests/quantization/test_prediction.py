"""The prediction is what comparing hidden states by hand gives, whatever the batches."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tests.converters.test_lowerings import quantized
from tests.tiny import SHAPE, random_pixels, sqnr_db
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.fidelity import EXACT_SQNR_DB
from vitedge.quantization.prediction import Prediction, hidden_states


@pytest.mark.parametrize(("images", "counted"), [(None, range(19)), (3, (3, 9, 15)), (40, range(19))])
def test_prediction_compares_hidden_states(images: int | None, counted: Sequence[int]) -> None:
    encoder, linears = quantized(SHAPE)
    pixels = random_pixels(count=19)
    found = Prediction(encoder, pixels)(encoder, fake_quantized_linear(encoder, linears), images)
    expected, rounded = (
        forward(encoder, pixels[list(counted)], linear)["last_hidden_state"]
        for linear in (float_linear(encoder), fake_quantized_linear(encoder, linears))
    )
    assert found.sqnr_db == pytest.approx(sqnr_db(expected, rounded), abs=0.05)
    a, b = expected[:, 0], rounded[:, 0]
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert found.cosine_mean == pytest.approx(cosines.mean(), abs=1e-4)
    assert found.cosine_worst == pytest.approx(cosines.min(), abs=1e-4)


def test_the_encoder_itself_is_exact() -> None:
    encoder, _ = quantized(SHAPE)
    found = Prediction(encoder, random_pixels())(encoder, float_linear(encoder))
    assert found.sqnr_db == EXACT_SQNR_DB
    assert found.cosine_worst == pytest.approx(1)


def test_an_image_that_is_far_off_does_not_decide_the_typical_sqnr() -> None:
    encoder, linears = quantized(SHAPE)
    pixels = random_pixels(count=10)
    rounded = fake_quantized_linear(encoder, linears)

    def with_an_outlier(name: str, x: torch.Tensor) -> torch.Tensor:
        found = rounded(name, x)
        if name.endswith("1.mlp.fc2") and len(x) == 2:  # the second batch: images 8 and 9
            found[1] += 100 * torch.linspace(-1, 1, found.shape[-1])
        return found

    prediction = Prediction(encoder, pixels)
    expected, off = (
        hidden_states(encoder, float_linear(encoder), pixels),
        hidden_states(encoder, with_an_outlier, pixels),
    )
    by_hand = [sqnr_db(one, other) for one, other in zip(expected, off, strict=True)]
    assert prediction.typical_sqnr_db(encoder, with_an_outlier) == pytest.approx(np.mean(by_hand), abs=0.05)
    typical = prediction.typical_sqnr_db(encoder, rounded)
    assert typical - prediction.typical_sqnr_db(encoder, with_an_outlier) < 6
    assert prediction(encoder, rounded).sqnr_db - prediction(encoder, with_an_outlier).sqnr_db > 10
