"""Lowering to OpenVINO IR, for the CPU plugin.

What becomes integer: every linear of the plan and the patch embedding. A linear is

    FakeQuantize (256 levels, fixed range) -> MatMul or 1×1 Convolution by int8 weights (Convert · Multiply) -> Add bias

A dynamic input has a range per row (token). Of a row x with minimum m and step s = (max - m) / 255, the integers are
q = (x - m) / s, and x · W = s · (q · W) + m · colsum(W): the row is normalized to [0, 255] in float, the FakeQuantize
has that fixed range, and what comes out is scaled and shifted. Behind GELU, m is GELU's own minimum, and the last term
part of the bias.

The plugin turns FakeQuantize into u8 and runs the product in integers. Which product is faster depends on the CPU: on
those without VNNI (target `avx2`) integer MatMuls fall into a slow generic kernel, while 1×1 convolutions have a fast
one, so every linear becomes a convolution and tokens are kept as [batch, tokens, 1, hidden], the shape that a permute
turns into the convolution's own layout. Between fc1 and fc2 they stay in that layout, which saves two permutes of the
widest tensors. A fixed range of fc2 is that of its input times a factor per channel. With VNNI or AMX, and in float,
MatMul is faster and needs no permutes.

Residual adds, LayerNorm, softmax and GELU stay float, as in the other lowerings, and so do attention's two MatMuls, but
for scores that the plan wants in integers: with VNNI the plugin fuses attention around an integer product of query and
key, which takes a third of its time.

The IR keeps float32 constants: compressing them to float16 would mix an export error into the quantization error.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import IntegerWeight, QuantizedLinear, StaticInput
from vitedge.quantization.query_scale import fold_query_scale
from vitedge.runtimes.errors import PlanError

MODEL_FILES = ("model.xml", "model.bin")
MINIMUM_RUNTIME = "2023.2"  # the first release with operator set 13


def convert(
    encoder: Encoder,
    linears: Mapping[str, QuantizedLinear],
    folder: Path,
    batch: int | None,
    *,
    as_convolutions: bool = False,
) -> None:
    """Writes `folder/model.xml` and `folder/model.bin`.

    Args:
        encoder: The encoder that the integers belong to.
        linears: Integer linears by name; the others stay float. Empty for the FP32 model.
        folder: Existing folder to write into.
        batch: Fixed batch size, or None for any.
        as_convolutions: Integer linears as 1×1 convolutions, for CPUs without VNNI.

    Raises:
        PlanError: The patch embedding has a dynamic input.
    """
    model = _Graph(*fold_query_scale(encoder, linears), batch, as_convolutions).model()
    openvino.save_model(model, folder / MODEL_FILES[0], compress_to_fp16=False)


def _constant(value: NDArray[np.generic] | np.generic) -> Any:
    return ops.constant(np.asarray(value, order="C"))


def _ends(static: StaticInput) -> tuple[np.float32, np.float32]:
    """The reals that 0 and 255 stand for."""
    scale = np.float32(static.scale)
    return -scale * np.float32(static.zero_point), scale * np.float32(255 - static.zero_point)


def _integers(*values: int) -> Any:
    return _constant(np.array(values, np.int64))


class _Graph:
    """Builds the graph; tokens are [batch, tokens, hidden], or [batch, tokens, 1, hidden] with convolutions."""

    def __init__(
        self, encoder: Encoder, linears: Mapping[str, QuantizedLinear], batch: int | None, as_convolutions: bool
    ) -> None:
        self.encoder, self.shape, self.linears = encoder, encoder.shape, linears
        self.batch, self.as_convolutions = batch, as_convolutions

    def model(self) -> openvino.Model:
        shape = self.shape
        size = (shape.image_height, shape.image_width)
        dims = [*size, shape.channels] if shape.uint8_input else [shape.channels, *size]
        dtype = np.uint8 if shape.uint8_input else np.float32
        pixels = ops.parameter([self.batch or -1, *dims], dtype, name="pixel_values")
        pixels.output(0).set_names({"pixel_values"})
        planes = ops.transpose(ops.convert(pixels, "f32"), _integers(0, 3, 1, 2)) if shape.uint8_input else pixels
        x = self.embeddings(planes)
        for layer in range(shape.layers):
            prefix = f"layers.{layer}"
            x = ops.add(x, self.attention(f"{prefix}.attention", self.layernorm(f"{prefix}.layernorm_before", x)))
            x = ops.add(x, self.mlp(f"{prefix}.mlp", self.layernorm(f"{prefix}.layernorm_after", x)))
        x = self.layernorm("layernorm", x)
        results = []
        for name, output in self.outputs(x).items():
            output.output(0).set_names({name})
            results.append(ops.result(output, name=f"{name}.result"))
        return openvino.Model(results, [pixels], "vit_encoder")

    def outputs(self, x: Any) -> Mapping[str, Any]:
        shape, outputs = self.shape, {"last_hidden_state": self.flat(x, self.shape.tokens, self.shape.hidden)}
        cls = ops.gather(x, _integers(0), _constant(np.int64(1)))
        if shape.pooler:
            dense = self.activation(shape.pooler_activation, self.linear("pooler.dense", cls))
            outputs["pooler_output"] = ops.reshape(dense, _integers(0, shape.pooler), True)
        if shape.classes:
            outputs["logits"] = ops.reshape(self.linear("classifier", cls), _integers(0, shape.classes), True)
        return outputs

    def flat(self, x: Any, rows: int, width: int) -> Any:
        """Tokens as [batch, rows, width]."""
        return ops.reshape(x, _integers(0, rows, width), True) if self.as_convolutions else x

    def as_tokens(self, x: Any, rows: int, width: int) -> Any:
        """Anything whose values are rows of a width as tokens."""
        unit = (1,) if self.as_convolutions else ()
        return ops.reshape(x, _integers(0, rows, *unit, width), True)

    def quantized_input(self, x: Any, low: np.float32, high: np.float32) -> Any:
        ends = _constant(low), _constant(high)
        return ops.fake_quantize(x, *ends, *ends, 256)

    def rounded(self, x: Any, step: float) -> Any:
        """Rounded to the symmetric int8 grid of a step."""
        return self.quantized_input(x, np.float32(-128 * step), np.float32(127 * step))

    def mlp(self, name: str, x: Any) -> Any:
        """Both linears of tokens; two convolutions with fixed ranges stay in their own layout in between."""
        wide, narrow = (self.linears.get(f"{name}.{part}") for part in ("fc1", "fc2"))
        kind = self.shape.activation
        if not (self.as_convolutions and wide and wide.input and narrow and narrow.input):
            return self.linear(f"{name}.fc2", self.activation(kind, self.linear(f"{name}.fc1", x)))
        x = self.quantized_convolution(f"{name}.fc1", ops.transpose(x, _integers(0, 3, 1, 2)), wide)
        x = self.quantized_convolution(f"{name}.fc2", self.activation(kind, x), narrow)
        return ops.transpose(x, _integers(0, 2, 3, 1))

    def linear(self, name: str, x: Any) -> Any:
        """The linear `name` of tokens."""
        quantized = self.linears.get(name)
        if quantized is None:
            weight = _constant(self.encoder.tensors[f"{name}.weight"])
            return ops.add(ops.matmul(x, weight, False, True), _constant(self.encoder.tensors[f"{name}.bias"]))
        if quantized.input is not None:
            if self.as_convolutions:
                x = self.quantized_convolution(name, ops.transpose(x, _integers(0, 3, 1, 2)), quantized)
                return ops.transpose(x, _integers(0, 2, 3, 1))
            if quantized.multiplier is not None:
                x = ops.multiply(x, _constant(quantized.multiplier))
            return self.product(name, x, quantized.weight, *_ends(quantized.input), bias=quantized.weight.bias)
        known = self.shape.known_minimum(name)
        low = _constant(np.float32(known)) if known is not None else ops.reduce_min(x, _integers(-1), True)
        step = ops.multiply(ops.subtract(ops.reduce_max(x, _integers(-1), True), low), _constant(np.float32(1 / 255)))
        step = ops.maximum(step, _constant(np.float32(1e-12)))  # a row of equal values has no span
        steps = ops.divide(ops.subtract(x, low), step)
        scaled = ops.multiply(self.product(name, steps, quantized.weight, np.float32(0), np.float32(255)), step)
        sums = quantized.weight.dequantized().sum(axis=1)
        if known is not None:
            return ops.add(scaled, _constant(quantized.weight.bias + np.float32(known) * sums))
        return ops.add(scaled, ops.add(ops.multiply(low, _constant(sums)), _constant(quantized.weight.bias)))

    def product(
        self,
        name: str,
        x: Any,
        weight: IntegerWeight,
        low: np.float32,
        high: np.float32,
        bias: NDArray[np.float32] | None = None,
    ) -> Any:
        """Tokens, rounded to 256 levels from low to high, times integer weights, plus the bias if one is given."""
        if self.as_convolutions:
            x = self.quantized_input(ops.transpose(x, _integers(0, 3, 1, 2)), low, high)
            x = self.convolution(name, x, weight.values[:, :, None, None], weight.scale, bias, (1, 1))
            return ops.transpose(x, _integers(0, 2, 3, 1))
        filters = ops.multiply(ops.convert(_constant(weight.values), "f32"), _constant(weight.scale[:, None]))
        x = ops.matmul(self.quantized_input(x, low, high), filters, False, True, name=name)
        return x if bias is None else ops.add(x, _constant(bias))

    def quantized_convolution(self, name: str, x: Any, linear: QuantizedLinear) -> Any:
        """A linear with a fixed range as a 1×1 convolution [batch, width, tokens, 1]."""
        weight = linear.weight
        assert linear.input is not None, "a fixed range"
        if linear.multiplier is not None:
            x = ops.multiply(x, _constant(linear.multiplier[:, None, None]))
        x = self.quantized_input(x, *_ends(linear.input))
        return self.convolution(name, x, weight.values[:, :, None, None], weight.scale, weight.bias, (1, 1))

    def convolution(
        self,
        name: str,
        x: Any,
        weight: NDArray[np.generic],
        scale: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        stride: tuple[int, int],
    ) -> Any:
        """Convolution without padding, by float weights or, given their scale, int8 ones, plus the bias; NCHW."""
        filters = _constant(weight)
        if scale is not None:
            filters = ops.multiply(ops.convert(filters, "f32"), _constant(scale[:, None, None, None]))
        x = ops.convolution(x, filters, list(stride), [0, 0], [0, 0], [1, 1], name=name)
        return x if bias is None else ops.add(x, _constant(bias[None, :, None, None]))

    def layernorm(self, name: str, x: Any) -> Any:
        tensors = self.encoder.tensors
        x = ops.mvn(x, _integers(-1), True, self.shape.layer_norm_eps, "inside_sqrt")
        return ops.add(ops.multiply(x, _constant(tensors[f"{name}.weight"])), _constant(tensors[f"{name}.bias"]))

    def activation(self, kind: str, x: Any) -> Any:
        match kind:
            case "gelu":
                return ops.gelu(x, "erf")
            case "gelu_tanh":
                return ops.gelu(x, "tanh")
            case "relu":
                return ops.relu(x)
            case "tanh":
                return ops.tanh(x)
            case "silu":
                return ops.swish(x)
            case "quick_gelu":
                return ops.swish(x, _constant(np.float32(1.702)))
            case _:
                raise AssertionError(f"no OpenVINO form of activation {kind}")

    def embeddings(self, pixels: Any) -> Any:
        """Pixels to tokens; a convolution without padding ignores what no whole patch covers, as it should."""
        shape, tensors = self.shape, self.encoder.tensors
        patch, patches = (shape.patch_height, shape.patch_width), shape.tokens - 1
        filter_dims = (shape.hidden, shape.channels, *patch)
        quantized = self.linears.get("patch_embedding")
        if quantized is None:
            weight, bias = tensors["patch_embedding.weight"].reshape(filter_dims), tensors["patch_embedding.bias"]
            x = self.convolution("patch_embedding", pixels, weight, None, bias, patch)
        else:
            if quantized.input is None:
                raise PlanError(
                    'patch_embedding: OpenVINO convolves whole images, so its input has no rows; make it "static"'
                )
            x = self.quantized_input(pixels, *_ends(quantized.input))
            integers = quantized.weight
            values = integers.values.reshape(filter_dims)
            x = self.convolution("patch_embedding", x, values, integers.scale, integers.bias, patch)
        x = ops.transpose(ops.reshape(x, _integers(0, shape.hidden, patches), True), _integers(0, 2, 1))
        x = ops.add(x, _constant(tensors["position_embeddings"][1:]))
        # The class token and its position are one constant row; Broadcast gives it the batch.
        row = _constant((tensors["cls_token"] + tensors["position_embeddings"][0])[None, None])
        batch = ops.gather(ops.shape_of(x), _integers(0), _constant(np.int64(0)))
        cls = ops.broadcast(row, ops.concat([batch, _integers(1, shape.hidden)], 0))
        return self.as_tokens(ops.concat([cls, x], 1), shape.tokens, shape.hidden)

    def attention(self, name: str, x: Any) -> Any:
        shape = self.shape
        dims = _integers(0, shape.tokens, 3, shape.heads, shape.head_width)
        qkv = ops.reshape(self.linear(f"{name}.qkv", x), dims, True)
        parts = ops.split(ops.transpose(qkv, _integers(2, 0, 3, 1, 4)), _constant(np.int64(0)), 3)
        query, key, value = (ops.squeeze(parts.output(part), _integers(0)) for part in range(3))
        qkv_linear = self.linears.get(f"{name}.qkv")
        if qkv_linear is not None and qkv_linear.scores is not None:
            query = self.rounded(query, qkv_linear.scores.query)
            key = self.rounded(key, qkv_linear.scores.key)
        scores = ops.matmul(query, key, False, True, name=f"{name}.scores")
        weights = ops.softmax(scores, -1)
        context = ops.transpose(ops.matmul(weights, value, False, False), _integers(0, 2, 1, 3))
        return self.linear(f"{name}.o_proj", self.as_tokens(context, shape.tokens, shape.hidden))
