"""The prediction is what comparing hidden states by hand gives, whatever the batches."""

from collections.abc import Sequence

import numpy as np
import pytest

from tests.converters.test_lowerings import quantized
from tests.tiny import SHAPE, random_pixels, sqnr_db
from vitedge.quantization.encoder import float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.fidelity import EXACT_SQNR_DB
from vitedge.quantization.prediction import Prediction


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
