"""Fake quantization: the integer artifacts' arithmetic, done in float32 PyTorch, to predict them before they are built.

Quantized inputs and weights are the reals that their integers stand for, multiplied and summed in float32, so that
predictions agree with integer kernels to float rounding, not to the bit.
"""

from collections.abc import Mapping

import torch
from torch.nn import functional

from vitedge.quantization.encoder import Encoder, Linear, float_linear
from vitedge.quantization.plan import QuantizedLinear, StaticInput
from vitedge.quantization.scores import rounded_scores


def fake_quantized_linear(encoder: Encoder, linears: Mapping[str, QuantizedLinear]) -> Linear:
    """The encoder's linears with those in `linears` computed as their integers would."""
    as_float = float_linear(encoder)
    weights = {name: torch.from_numpy(linear.weight.dequantized()) for name, linear in linears.items()}
    biases = {name: torch.from_numpy(linear.weight.bias) for name, linear in linears.items()}
    multipliers = {
        name: torch.from_numpy(linear.multiplier) for name, linear in linears.items() if linear.multiplier is not None
    }

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        if name not in linears:
            return as_float(name, x)
        static, rows = linears[name].input, linears[name].rows
        if name in multipliers:
            x = x * multipliers[name]
        if static is not None:
            x = quantize_static(x, static)
        elif rows == "minimum":
            x = quantize_rows_from_minimum(x, encoder.shape.known_minimum(name))
        else:
            x = quantize_rows(x)
        found = functional.linear(x, weights[name], biases[name])
        grids = linears[name].scores
        return found if grids is None else rounded_scores(found, grids)

    return linear


def quantize_static(x: torch.Tensor, static: StaticInput) -> torch.Tensor:
    """Rounds to the fixed uint8 grid and back."""
    q = torch.clamp(torch.round(x / static.scale) + static.zero_point, 0, 255)
    return (q - static.zero_point) * static.scale


def quantize_rows(x: torch.Tensor) -> torch.Tensor:
    """Rounds every row (last axis) to an 8-bit grid over its own range, as XNNPACK's dynamic quantization does."""
    low = torch.clamp(x.amin(-1, keepdim=True), max=0)
    high = torch.clamp(x.amax(-1, keepdim=True), min=0)
    scale = torch.clamp((high - low) / 255, min=1e-12)
    zero_point = torch.round(-low / scale)
    return (torch.clamp(torch.round(x / scale) + zero_point, 0, 255) - zero_point) * scale


def quantize_rows_from_minimum(x: torch.Tensor, known_minimum: float | None) -> torch.Tensor:
    """Rounds every row to 256 steps from its minimum, or from what none is smaller than, to its maximum."""
    low = x.amin(-1, keepdim=True) if known_minimum is None else torch.tensor(known_minimum)
    step = torch.clamp((x.amax(-1, keepdim=True) - low) / 255, min=1e-12)
    return torch.clamp(torch.round((x - low) / step), 0, 255) * step + low
