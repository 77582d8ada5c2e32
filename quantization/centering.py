"""Centering of input channels as a float rewrite: what a channel is offset by moves into biases.

A fixed range must cover all channels of an input, wherever each of them lies; and the factor that smoothing divides a
channel by grows with the offset, though only what varies about it tells anything. Where an input comes out of something
affine (the places of `smoothing.py`), an offset c_j can be subtracted from channel j there, and W · c added to the bias
of the linear that reads it; the function stays the same:

    layernorm_before -> attention.qkv        layernorm_after -> mlp.fc1        both by the bias of the LayerNorm
    value rows of attention.qkv -> attention.o_proj     as probabilities of a row add up to 1, so that the context of a
                                                        shifted value is the shifted context

c_j is the middle of the channel's range (the shifting of Outlier Suppression+, Wei et al. 2023, arXiv:2304.09145), so
that every channel lies evenly about 0. On vit-s14-real that gains 0.6 dB of the ONNX artifact of target avx2, where
most ranges are fixed, and nothing of the OpenVINO one (`python -m vitedge.benchmarks.ablation --only centering`).
"""

from collections.abc import Iterable, Mapping

import numpy as np

from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.quantization.smoothing import in_order, producer_of


def channel_centers(statistics: Mapping[str, InputStatistics], names: Iterable[str]) -> Mapping[str, FloatArray]:
    """The middle of the range of every input channel, float32 [in], of some `smoothable` linears, by name."""
    seen = {name: statistics[name] for name in names}
    return {name: np.asarray((own.minimum + own.maximum) / 2, np.float32) for name, own in seen.items()}


def center(encoder: Encoder, centers: Mapping[str, FloatArray]) -> Encoder:
    """The same function with `centers`, float32 [in], subtracted from the input channels of linears, by name.

    Promises: outputs equal to float32 rounding; the same bits whatever the order of `centers`.

    Raises:
        PlanError: As `smoothing.in_order`.
    """
    for name, offset in in_order(encoder, centers):
        producer, rows = producer_of(encoder, name)
        shifted = encoder.tensors[f"{producer}.bias"].copy()
        shifted[rows] -= offset
        taken_back = encoder.tensors[f"{name}.weight"].astype(np.float64) @ offset  # large offsets, small biases
        bias = (encoder.tensors[f"{name}.bias"] + taken_back).astype(np.float32)
        encoder = encoder.with_tensors({f"{producer}.bias": shifted, f"{name}.bias": bias})
    return encoder
