"""Pixels in: an encoder that takes uint8 [batch, height, width, channels] as a decoder and a resize leave them.

Normalization is affine per channel, x = (p · rescale - mean) / std, and the patch embedding is linear, so the one folds
into the other: W · x + b = (W · rescale / std) · p + (b - W · mean / std). A pixel is an integer from 0 to 255 already,
so that an integer patch embedding multiplies it as it is: no rounding, nothing to quantize, a quarter of the bytes.
"""

from dataclasses import replace

import numpy as np

from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import StaticInput
from vitedge.runtimes.preprocess import Preprocessing

# The quantization of what is an integer from 0 to 255 already.
PIXELS = StaticInput(1.0, 0)


def fold_normalization(encoder: Encoder, contract: Preprocessing) -> Encoder:
    """The same function of pixels as they are.

    Needs: an encoder of normalized pixels. Promises: outputs equal to float32 rounding, sums being taken in float64.

    Args:
        encoder: Takes float32 [batch, channels, height, width], normalized.
        contract: Which normalization.
    """
    shape = encoder.shape
    assert not shape.uint8_input, "normalization is folded in already"
    weight, bias = encoder.tensors["patch_embedding.weight"], encoder.tensors["patch_embedding.bias"]
    values = shape.patch_height * shape.patch_width
    scale = np.repeat(contract.rescale_factor / np.asarray(contract.std, np.float64), values)
    shift = np.repeat(np.asarray(contract.mean, np.float64) / np.asarray(contract.std, np.float64), values)
    folded = {
        "patch_embedding.weight": (weight * scale).astype(np.float32),
        "patch_embedding.bias": (bias - weight.astype(np.float64) @ shift).astype(np.float32),
    }
    return replace(encoder.with_tensors(folded), shape=replace(shape, uint8_input=True))
