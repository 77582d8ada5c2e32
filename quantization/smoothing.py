"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438) as a float rewrite: outliers move from activations into weights.

Where a linear's input channels come out of something affine, channel j of that producer is divided by a factor s_j and
column j of the linear multiplied by it; the function stays the same. A ViT has three such places in a layer:

    layernorm_before -> attention.qkv        layernorm_after -> mlp.fc1
    value rows of attention.qkv -> attention.o_proj    (attention mixes tokens, never channels)

The input of mlp.fc2 comes out of GELU, which nothing can be folded through. Where it has a fixed range, which outliers
make coarse, it is divided at run time instead (`explicitly_smoothed`): a multiplication per value, or a range per
channel, which gains 3 dB of the whole model on vit-s14-real in OpenVINO (`benchmarks/ablation.py`).

Factors are s_j = max|x_j|^strength, normalized to a geometric mean of 1. The paper's equation 4 divides that by
max|W_:j|^(1 - strength), to make weights easier too; but second-order rounding does not need that, and it makes
activations coarser: a channel with small weights, which weighs little, takes a large part of the range, and what it
takes depends on which images were seen. The strength is chosen per model by measured error (`quantize.py`).
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.runtimes.errors import PlanError


def smoothing_factors(
    statistics: Mapping[str, InputStatistics], names: Iterable[str], strength: float
) -> Mapping[str, FloatArray]:
    """Factors [in] of some linears, by name.

    Args:
        statistics: What calibration saw of the inputs of linears, before smoothing.
        names: Of linears whose input can be smoothed (`smoothable`).
        strength: 0 moves nothing out of the activations, 1 everything: all channels end at the same maximum.
    """
    factors = {}
    for name in names:
        log_factor = strength * np.log(np.maximum(statistics[name].absolute_maximum, 1e-5))
        factors[name] = np.exp(log_factor - log_factor.mean()).astype(np.float32)
    return factors


def smoothable(encoder: Encoder) -> tuple[str, ...]:
    """The linears whose input channels can be divided for free."""
    parts = ("attention.qkv", "attention.o_proj", "mlp.fc1")
    return tuple(f"layers.{layer}.{part}" for layer in range(encoder.shape.layers) for part in parts)


def explicitly_smoothed(encoder: Encoder) -> tuple[str, ...]:
    """The linears whose input channels can be divided at run time only."""
    return tuple(f"layers.{layer}.mlp.fc2" for layer in range(encoder.shape.layers))


def smooth(encoder: Encoder, factors: Mapping[str, FloatArray]) -> Encoder:
    """The same function with smoothed channels.

    Needs: factors only for `smoothable` linears, all positive. Promises: outputs equal to float32 rounding, whatever
    the order of `factors`.

    Raises:
        PlanError: As `in_order`.
    """
    for name, factor in in_order(encoder, factors):
        producer, rows = producer_of(encoder, name)
        weight, bias = encoder.tensors[f"{producer}.weight"].copy(), encoder.tensors[f"{producer}.bias"].copy()
        weight[rows] /= factor if weight.ndim == 1 else factor[:, None]
        bias[rows] /= factor
        encoder = encoder.with_tensors({f"{producer}.weight": weight, f"{producer}.bias": bias})
        encoder = encoder.with_tensors({f"{name}.weight": encoder.tensors[f"{name}.weight"] * factor})
    return encoder


def in_order(encoder: Encoder, by_linear: Mapping[str, FloatArray]) -> Sequence[tuple[str, FloatArray]]:
    """What a rewrite does to the input channels [in] of `smoothable` linears, in the order of execution, so that its
    result does not depend on that of a mapping.

    Raises:
        PlanError: Something is for another linear, is not as wide as the linear's input, or not finite.
    """
    places = smoothable(encoder)
    unknown = sorted(by_linear.keys() - set(places))
    if unknown:
        raise PlanError(f"plan: the input channels of {unknown[:3]} cannot be changed in this encoder")
    for name, values in by_linear.items():
        expected = encoder.tensors[f"{name}.weight"].shape[1:]
        if values.shape != expected or not np.isfinite(values).all():
            raise PlanError(f"plan: {name}: expected {expected[0]} finite numbers, found shape {list(values.shape)}")
    return [(name, by_linear[name]) for name in places if name in by_linear]


def producer_of(encoder: Encoder, name: str) -> tuple[str, slice]:
    """What makes the input of a smoothable linear: a LayerNorm or a qkv, and the rows of it that do."""
    prefix, _, part = name.rpartition(".")
    if part == "o_proj":
        return f"{prefix}.qkv", slice(2 * encoder.shape.hidden, None)  # the values, behind query and key
    layer = prefix.rpartition(".")[0]
    return f"{layer}.layernorm_{'before' if part == 'qkv' else 'after'}", slice(None)
