"""A float rewrite for lowerings: attention's factor 1/√(head width) goes into the query rows of qkv.

Attention scores are then the plain product of query and key, without an operator that scales them. In integers nothing
is rounded anew: weights have a scale per output channel, and that is what is multiplied.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.quantization.plan import IntegerWeight, QuantizedLinear


def fold_query_scale(
    encoder: Encoder, linears: Mapping[str, QuantizedLinear]
) -> tuple[Encoder, dict[str, QuantizedLinear]]:
    """The encoder and its integer linears for attention that does not scale.

    Args:
        encoder: For attention that does.
        linears: Integer linears of that encoder by name.
    """
    shape = encoder.shape
    factor = np.ones(3 * shape.hidden, np.float32)
    factor[: shape.hidden] = shape.head_width**-0.5
    tensors: dict[str, FloatArray] = {}
    folded = dict(linears)
    for layer in range(shape.layers):
        name = f"layers.{layer}.attention.qkv"
        weight, bias = encoder.tensors[f"{name}.weight"], encoder.tensors[f"{name}.bias"]
        tensors |= {f"{name}.weight": weight * factor[:, None], f"{name}.bias": bias * factor}
        if name in linears:
            integers, scores = linears[name].weight, linears[name].scores
            scaled = IntegerWeight(integers.values, integers.scale * factor, integers.bias * factor)
            if scores is not None:
                scores = replace(scores, query=scores.query * shape.head_width**-0.5)
            folded[name] = replace(linears[name], weight=scaled, scores=scores)
    return encoder.with_tensors(tensors), folded
