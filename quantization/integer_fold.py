"""Float rewrites that make an encoder fit for integer activations. The function stays the same.

1. Mean-free residual stream. Every linear that writes to the residual stream, the class token and the positions lose
   their mean over the hidden channels. LayerNorm subtracts that mean anyway, so nothing changes, except that LayerNorm
   no longer has to compute it (the same step as LayerNorm to RMSNorm in SliceGPT, Ashkboos et al. 2024).
2. Scaled residual stream: it holds x' = x / s, one factor per channel for all layers, so that outlier channels take
   part of the 8-bit range instead of all of it. Writers divide, LayerNorms multiply. The factors are multiples of
   max(s)/127, so that the constant s is exact in int8.
3. LayerNorm as y = x' · (r · g) with r = 1/√variance per token and one constant g per channel. Its bias, and the rest
   of its weight, go into the linears that read it; so g is free, and is chosen as SmoothQuant chooses (Xiao et al.
   2022). Only the last LayerNorm, whose result is the output, keeps weight and bias.
4. 1/√(head width) goes into the query.

Query, key and value become linears of their own, so that each has its own range.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitedge.quantization.encoder import Encoder, EncoderShape, FloatArray

SMOOTHING_STRENGTH = 0.5


@dataclass(frozen=True)
class FoldedEncoder:
    """What an integer program computes with.

    Attributes:
        shape: Of the encoder.
        linears: Weight [out, in] and bias [out] by name: `patch_embedding` (columns in the order row, column, channel),
            `layers.L.attention.{query,key,value,o_proj}`, `layers.L.mlp.{fc1,fc2}`, `pooler.dense`, `classifier`, and
            `<layernorm>.scale` [hidden, 1], which multiplies r by g; `newton.scale` [1, 1], 1.5 - 0.5 · input.
        constants: `positions` [tokens, hidden] with the class token in row 0; `deviation` [hidden], s/√hidden, so that
            the variance is the sum of (x' · deviation)²; `layernorm.bias` [hidden]; `1.702` [1] for quick GELU.
    """

    shape: EncoderShape
    linears: Mapping[str, tuple[FloatArray, FloatArray]]
    constants: Mapping[str, FloatArray]


def layernorms(shape: EncoderShape) -> Mapping[str, tuple[str, ...]]:
    """The linears that read each LayerNorm; none for the last, which is read by the outputs."""
    readers: dict[str, tuple[str, ...]] = {}
    for layer in range(shape.layers):
        attention = f"layers.{layer}.attention"
        readers[f"layers.{layer}.layernorm_before"] = tuple(f"{attention}.{x}" for x in ("query", "key", "value"))
        readers[f"layers.{layer}.layernorm_after"] = (f"layers.{layer}.mlp.fc1",)
    return readers | {"layernorm": ()}


def residual_factors(absolute_maxima: FloatArray) -> FloatArray:
    """Factors s [hidden] of the residual stream.

    Args:
        absolute_maxima: float32 [points, hidden], the largest absolute value of each channel of the residual stream
            after the embeddings and after every addition.

    Each point is taken relative to its median channel, so that the last layers' large values do not decide alone.
    """
    median = np.maximum(np.median(absolute_maxima, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return on_int8_grid((absolute_maxima / median).max(axis=0))


def on_int8_grid(factors: FloatArray) -> FloatArray:
    """Factors as whole multiples of a 127th of the largest, none of them 0."""
    step = factors.max() / 127
    return np.asarray(np.maximum(np.rint(factors / step), 1) * step, np.float32)


def smoothing_multipliers(folded: FoldedEncoder, absolute_maxima: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
    """Constants g by LayerNorm, from an encoder folded with g = 1 and the largest values of its LayerNorms."""
    multipliers = {}
    for name, readers in layernorms(folded.shape).items():
        if readers:
            weight = np.max([np.abs(folded.linears[reader][0]).max(axis=0) for reader in readers], axis=0)
            activation = np.maximum(absolute_maxima[name], 1e-5)
            log_factor = SMOOTHING_STRENGTH * np.log(activation)
            log_factor -= (1 - SMOOTHING_STRENGTH) * np.log(np.maximum(weight, 1e-7))
            multipliers[name] = np.exp(log_factor.mean() - log_factor).astype(np.float32)
    return multipliers


def fold(encoder: Encoder, factors: FloatArray, multipliers: Mapping[str, FloatArray]) -> FoldedEncoder:
    """The same function in the form of `FoldedEncoder`.

    Args:
        encoder: As loaded, or smoothed.
        factors: s [hidden], positive.
        multipliers: g [hidden] by LayerNorm; 1 where absent.
    """
    shape, tensors = encoder.shape, encoder.tensors
    ones = np.ones(shape.hidden, np.float32)
    linears: dict[str, tuple[FloatArray, FloatArray]] = {}

    def writer(name: str) -> None:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        linears[name] = ((weight - weight.mean(axis=0)) / factors[:, None], (bias - bias.mean()) / factors)

    def scale(name: str, multiplier: FloatArray) -> None:
        linears[f"{name}.scale"] = (multiplier[:, None], np.zeros(shape.hidden, np.float32))

    def reader(layernorm: str, weight: FloatArray, bias: FloatArray) -> tuple[FloatArray, FloatArray]:
        columns = tensors[f"{layernorm}.weight"] * factors / multipliers.get(layernorm, ones)
        return weight * columns, bias + weight @ tensors[f"{layernorm}.bias"]

    writer("patch_embedding")
    weight, bias = linears["patch_embedding"]
    by_channel = weight.reshape(shape.hidden, shape.channels, shape.patch_height, shape.patch_width)
    linears["patch_embedding"] = (by_channel.transpose(0, 2, 3, 1).reshape(weight.shape), bias)
    for layer in range(shape.layers):
        attention, mlp = f"layers.{layer}.attention", f"layers.{layer}.mlp"
        before, after = f"layers.{layer}.layernorm_before", f"layers.{layer}.layernorm_after"
        scale(before, multipliers.get(before, ones))
        parts = zip(*(np.split(tensors[f"{attention}.qkv.{kind}"], 3) for kind in ("weight", "bias")), strict=True)
        for part, (weight, bias) in zip(("query", "key", "value"), parts, strict=True):
            factor = np.float32(shape.head_width**-0.5 if part == "query" else 1)
            linears[f"{attention}.{part}"] = reader(before, weight * factor, bias * factor)
        writer(f"{attention}.o_proj")
        scale(after, multipliers.get(after, ones))
        linears[f"{mlp}.fc1"] = reader(after, tensors[f"{mlp}.fc1.weight"], tensors[f"{mlp}.fc1.bias"])
        writer(f"{mlp}.fc2")
    scale("layernorm", tensors["layernorm.weight"] * factors)
    for name in ("pooler.dense",) * bool(shape.pooler) + ("classifier",) * bool(shape.classes):
        linears[name] = (tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    linears["newton.scale"] = (np.array([[-0.5]], np.float32), np.array([1.5], np.float32))
    positions = tensors["position_embeddings"].copy()
    positions[0] += tensors["cls_token"]
    constants = {
        "positions": (positions - positions.mean(axis=1, keepdims=True)) / factors,
        "deviation": factors / np.float32(shape.hidden**0.5),
        "layernorm.bias": tensors["layernorm.bias"],
        "1.702": np.array([1.702], np.float32),  # quick GELU: x · sigmoid(1.702 x)
    }
    return FoldedEncoder(shape, linears, constants)
