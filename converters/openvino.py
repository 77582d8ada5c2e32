"""Lowering to OpenVINO IR, for the CPU plugin.

What becomes integer: every linear of the plan and the patch embedding. A linear is

    FakeQuantize (256 levels, fixed range) -> MatMul or 1×1 Convolution by int8 weights (Convert · Multiply) -> Add bias

A dynamic input has a range per row (token). Of a row x with minimum m and step s = (max - m) / 255, the integers are
q = (x - m) / s, and x · W = s · (q · W) + m · colsum(W): the row is normalized to [0, 255] in float, the FakeQuantize
has that fixed range, and what comes out is scaled and shifted. Behind GELU, m is GELU's own minimum, and the last term
part of the bias.

The plugin turns FakeQuantize into u8 and runs the product in integers. Which product is faster depends on the CPU: on
those without VNNI (target `avx2`) integer MatMuls fall into a slow generic kernel, while 1×1 convolutions have a fast
one, so every linear becomes a convolution, of one dimension: two would be as fast, but need two operators more around
each, and every operator takes time when the IR is loaded. Permutes cost nothing where they become the convolution's own
layout: tokens are [batch, tokens, hidden] everywhere else (of four dimensions the plugin takes LayerNorm apart, and one
permute more is real), rounded before the permute, in the same kernel as LayerNorm's weight, and stay in that layout
between fc1 and fc2. With VNNI or AMX, and in float, MatMul is faster and needs no permutes. What multiplies the input
of fc2 by channel is part of its fixed range.

Residual adds, LayerNorm, softmax and GELU stay float, as in the other lowerings, and so do attention's two MatMuls, but
for scores that the plan wants in integers: with VNNI the plugin fuses attention around an integer product of query and
key, which takes a third of its time.

The IR keeps float32 constants: compressing them to float16 would mix an export error into the quantization error.
"""

from collections.abc import Mapping, Sequence
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


class _Graph:
    """Builds the graph; tokens are [batch, tokens, hidden]."""

    def __init__(
        self, encoder: Encoder, linears: Mapping[str, QuantizedLinear], batch: int | None, as_convolutions: bool
    ) -> None:
        self.encoder, self.shape, self.linears = encoder, encoder.shape, linears
        self.batch, self.as_convolutions = batch, as_convolutions
        self._integers: dict[tuple[int, ...], Any] = {}

    def model(self) -> openvino.Model:
        shape = self.shape
        size = (shape.image_height, shape.image_width)
        dims = [*size, shape.channels] if shape.uint8_input else [shape.channels, *size]
        dtype = np.uint8 if shape.uint8_input else np.float32
        pixels = ops.parameter([self.batch or -1, *dims], dtype, name="pixel_values")
        pixels.output(0).set_names({"pixel_values"})
        planes = ops.transpose(ops.convert(pixels, "f32"), self.integers(0, 3, 1, 2)) if shape.uint8_input else pixels
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
        shape, outputs = self.shape, {"last_hidden_state": x}
        cls = ops.gather(x, self.integers(0), _constant(np.int64(1)))
        if shape.pooler:
            dense = self.activation(shape.pooler_activation, self.linear("pooler.dense", cls))
            outputs["pooler_output"] = ops.reshape(dense, self.integers(0, shape.pooler), True)
        if shape.classes:
            outputs["logits"] = ops.reshape(self.linear("classifier", cls), self.integers(0, shape.classes), True)
        return outputs

    def integers(self, *values: int) -> Any:
        """An int64 constant, one for all that read the same: every node costs time when the IR is loaded."""
        if values not in self._integers:
            self._integers[values] = _constant(np.array(values, np.int64))
        return self._integers[values]

    def quantized_input(
        self, x: Any, low: np.float32, high: np.float32, multiplier: NDArray[np.float32] | None = None
    ) -> Any:
        """x, times a positive multiplier that broadcasts to it if one is given, rounded to 256 levels from low to high.

        The multiplier divides the ends instead. As a node of its own it would get there too, by a pass of the plugin
        that takes its time whenever the IR is loaded (`FakeQuantizeFusions`; OV_ENABLE_PROFILE_PASS=1 prints it).
        """
        ends = _constant(low), _constant(high)
        inside = ends if multiplier is None else (_constant(low / multiplier), _constant(high / multiplier))
        return ops.fake_quantize(x, *inside, *ends, 256)

    def rounded(self, x: Any, step: float) -> Any:
        """Rounded to the symmetric int8 grid of a step."""
        return self.quantized_input(x, np.float32(-128 * step), np.float32(127 * step))

    def mlp(self, name: str, x: Any) -> Any:
        """Both linears of tokens; two convolutions with fixed ranges stay in their own layout in between."""
        wide, narrow = (self.linears.get(f"{name}.{part}") for part in ("fc1", "fc2"))
        kind = self.shape.activation
        if not (self.as_convolutions and wide and wide.input and narrow and narrow.input):
            return self.linear(f"{name}.fc2", self.activation(kind, self.linear(f"{name}.fc1", x)))
        x = self.channels_first(self.quantized_input(x, *_ends(wide.input), wide.multiplier))
        x = self.activation(kind, self.pointwise(f"{name}.fc1", x, wide.weight, wide.weight.bias))
        multiplier = None if narrow.multiplier is None else narrow.multiplier[:, None]
        x = self.quantized_input(x, *_ends(narrow.input), multiplier)
        return self.rows(self.pointwise(f"{name}.fc2", x, narrow.weight, narrow.weight.bias))

    def linear(self, name: str, x: Any) -> Any:
        """The linear `name` of tokens."""
        return self.linear_parts(name, x, ("",))[0]

    def linear_parts(self, name: str, x: Any, parts: Sequence[str]) -> list[Any]:
        """The linear `name` of tokens, its outputs in equal parts: a product each of one rounded input.

        Args:
            name: Of the linear.
            x: Tokens.
            parts: What is added to the name for each.
        """
        quantized = self.linears.get(name)
        if quantized is None:
            tensors = (np.split(self.encoder.tensors[f"{name}.{kind}"], len(parts)) for kind in ("weight", "bias"))
            return [
                ops.add(ops.matmul(x, _constant(w), False, True), _constant(b)) for w, b in zip(*tensors, strict=True)
            ]
        weights = dict(zip(parts, quantized.weight.split(len(parts)), strict=True))
        if quantized.input is not None:
            x = self.operand(self.quantized_input(x, *_ends(quantized.input), quantized.multiplier))
            return [self.product(f"{name}{part}", x, weight, weight.bias) for part, weight in weights.items()]
        known = self.shape.known_minimum(name)
        low = _constant(np.float32(known)) if known is not None else ops.reduce_min(x, self.integers(-1), True)
        span = ops.subtract(ops.reduce_max(x, self.integers(-1), True), low)
        # A row of equal values has no span.
        step = ops.maximum(ops.multiply(span, _constant(np.float32(1 / 255))), _constant(np.float32(1e-12)))
        levels = ops.divide(ops.subtract(x, low), step)
        levels = self.operand(self.quantized_input(levels, np.float32(0), np.float32(255)))
        found = []
        for part, weight in weights.items():
            scaled = ops.multiply(self.product(f"{name}{part}", levels, weight, None), step)
            sums = weight.dequantized().sum(axis=1)
            if known is not None:
                found.append(ops.add(scaled, _constant(weight.bias + np.float32(known) * sums)))
            else:
                found.append(ops.add(scaled, ops.add(ops.multiply(low, _constant(sums)), _constant(weight.bias))))
        return found

    def operand(self, x: Any) -> Any:
        """Rounded tokens as `product` takes them."""
        return self.channels_first(x) if self.as_convolutions else x

    def product(self, name: str, x: Any, weight: IntegerWeight, bias: NDArray[np.float32] | None) -> Any:
        """An operand times integer weights, plus the bias if one is given; tokens again."""
        if self.as_convolutions:
            return self.rows(self.pointwise(name, x, weight, bias))
        filters = ops.multiply(ops.convert(_constant(weight.values), "f32"), _constant(weight.scale[:, None]))
        x = ops.matmul(x, filters, False, True, name=name)
        return x if bias is None else ops.add(x, _constant(bias))

    def channels_first(self, x: Any) -> Any:
        """[batch, rows, width] as [batch, width, rows], whose channels-last layout has the values where they are."""
        return ops.transpose(x, self.integers(0, 2, 1))

    def rows(self, x: Any) -> Any:
        """The reverse of `channels_first`."""
        return ops.transpose(x, self.integers(0, 2, 1))

    def pointwise(self, name: str, x: Any, weight: IntegerWeight, bias: NDArray[np.float32] | None) -> Any:
        """A product as a convolution of width 1 over `channels_first`."""
        return self.convolution(name, x, weight.values[:, :, None], weight.scale, bias, (1,))

    def convolution(
        self,
        name: str,
        x: Any,
        weight: NDArray[np.generic],
        scale: NDArray[np.float32] | None,
        bias: NDArray[np.float32] | None,
        stride: tuple[int, ...],
    ) -> Any:
        """Convolution of one or two dimensions, without padding, channels first: by float weights or, given their
        scale, int8 ones, plus the bias.
        """
        filters, each = _constant(weight), (1,) * len(stride)
        if scale is not None:
            filters = ops.multiply(ops.convert(filters, "f32"), _constant(scale.reshape(-1, 1, *each)))
        none = [0] * len(stride)
        x = ops.convolution(x, filters, list(stride), none, none, list(each), name=name)
        return x if bias is None else ops.add(x, _constant(bias.reshape(1, -1, *each)))

    def layernorm(self, name: str, x: Any) -> Any:
        tensors = self.encoder.tensors
        x = ops.mvn(x, self.integers(-1), True, self.shape.layer_norm_eps, "inside_sqrt")
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
        x = ops.transpose(ops.reshape(x, self.integers(0, shape.hidden, patches), True), self.integers(0, 2, 1))
        x = ops.add(x, _constant(tensors["position_embeddings"][1:]))
        # The class token and its position are one constant row; Broadcast gives it the batch.
        row = _constant((tensors["cls_token"] + tensors["position_embeddings"][0])[None, None])
        batch = ops.gather(ops.shape_of(x), self.integers(0), _constant(np.int64(0)))
        cls = ops.broadcast(row, ops.concat([batch, self.integers(1, shape.hidden)], 0))
        return ops.concat([cls, x], 1)

    def attention(self, name: str, x: Any) -> Any:
        """Query, key and value are products of their own: their permutes then are part of the attention that the plugin
        fuses, which saves a pass over each of them.
        """
        shape = self.shape
        by_head = self.integers(0, shape.tokens, shape.heads, shape.head_width)
        query, key, value = (
            ops.transpose(ops.reshape(part, by_head, True), self.integers(0, 2, 1, 3))
            for part in self.linear_parts(f"{name}.qkv", x, (".query", ".key", ".value"))
        )
        qkv_linear = self.linears.get(f"{name}.qkv")
        if qkv_linear is not None and qkv_linear.scores is not None:
            query = self.rounded(query, qkv_linear.scores.query)
            key = self.rounded(key, qkv_linear.scores.key)
        scores = ops.matmul(query, key, False, True, name=f"{name}.scores")
        weights = ops.softmax(scores, -1)
        context = ops.transpose(ops.matmul(weights, value, False, False), self.integers(0, 2, 1, 3))
        return self.linear(f"{name}.o_proj", ops.reshape(context, self.integers(0, shape.tokens, shape.hidden), True))
