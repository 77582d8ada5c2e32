"""The frozen encoder: its own consistency, and agreement of its forward pass with transformers."""

import numpy as np
import pytest

from tests.tiny import SHAPE, random_encoder, random_pixels
from vitedge.quantization.encoder import Encoder, float_linear, forward
from vitedge.runtimes.errors import CheckpointError


def test_counts_its_work():
    assert SHAPE.tokens == 17
    assert list(SHAPE.linears) == [
        "patch_embedding",
        *(
            f"layers.{layer}.{part}"
            for layer in (0, 1)
            for part in ("attention.qkv", "attention.o_proj", "mlp.fc1", "mlp.fc2")
        ),
        "pooler.dense",
    ]
    assert SHAPE.attention_macs == 2 * 2 * 17 * 17 * 48


def test_outputs_have_their_shapes():
    encoder = random_encoder()
    outputs = forward(encoder, random_pixels(count=3), float_linear(encoder))
    assert {name: output.shape for name, output in outputs.items()} == {
        "last_hidden_state": (3, 17, 48),
        "pooler_output": (3, 48),
    }


@pytest.mark.parametrize("change", ["missing", "misshapen", "float64", "superfluous"])
def test_refuses_tensors_that_do_not_fit(change):
    tensors = dict(random_encoder().tensors)
    if change == "missing":
        del tensors["cls_token"]
    elif change == "misshapen":
        tensors["cls_token"] = np.zeros(25, np.float32)
    elif change == "float64":
        tensors["cls_token"] = np.zeros(48, np.float64)
    else:
        tensors["extra"] = np.zeros(1, np.float32)
    with pytest.raises(CheckpointError, match=r"cls_token|extra"):
        Encoder(SHAPE, tensors)
