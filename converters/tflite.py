"""Lowering to TFLite (LiteRT), for its CPU backend XNNPACK.

What becomes integer: every linear of the plan and the patch embedding. A linear is

    FULLY_CONNECTED (float input, int8 weights [out, in] with a scale per channel, float bias, float output)

"dynamic range" in TFLite's words: the kernel quantizes each row of its input over that row's own range (asymmetric),
multiplies integers and scales back, so a plan's linears must be dynamic. Fixed input scales would need QUANTIZE, an
integer FULLY_CONNECTED and DEQUANTIZE, and one range for all rows costs several dB; they are refused.

Residual adds, LayerNorm, softmax, GELU and the two attention matmuls stay float: XNNPACK takes softmax and GELU in
float only, and 8-bit softmax has a fixed step of 1/256.

The graph is one XNNPACK partition: no operator falls back to TFLite's own kernels. It keeps to four dimensions, which
suffice and which XNNPACK and operator versions 1 are made for:

- Patches: [batch · rows, patch height, columns, patch width · channels] transposed in the middle and flattened. That
  orders a patch's values (row, column, channel), so the columns of the patch embedding's weight are permuted likewise.
  CONV_2D would quantize a whole image over one range instead of each patch over its own, and is slower (ViT-B on a
  Xeon with AMX: float 2.0 against 1.8 ms, int8 1.9 against 0.3 ms).
- Class token: PAD adds an empty row 0 to the patches; the constant added next holds the positions and, in row 0, the
  token itself. So the token needs no copy per image of a batch.
- Query, key and value are one linear, one transpose to [batch, 3 · heads, tokens, head width] and one SPLIT. The
  1/√(head width) of attention is folded into the query's rows of weight scale and bias (of the float weight, where the
  linear is float): the integers stay those of the plan.
- LayerNorm is written out: the mean first, then the mean square of the differences, so nothing cancels.

The batch is fixed: RESHAPE needs its numbers, and delegates want static shapes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from vitedge.converters.tflite_file import FLOAT, Form, Tensor, TfliteModel
from vitedge.converters.tflite_versions import INT8_WEIGHTS
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import QuantizedLinear
from vitedge.quantization.query_scale import fold_query_scale
from vitedge.runtimes.errors import ConversionError

MODEL_FILE = "model.tflite"
# Of ai-edge-litert, which counts anew. Measured: 1.1.2, 1.2.0, 2.0.2 and 2.3.0 load FP32 and INT8 models and run each
# as one XNNPACK partition; 1.0.1 does not work with numpy 2.
MINIMUM_RUNTIME = "1.1"
# Of TensorFlow Lite, as in the file's metadata: the release of FULLY_CONNECTED version 12, the newest operator in use
# (see `tflite_file`). FP32 models load from 2.9 on, or 2.3 without GELU.
MINIMUM_TENSORFLOW = "2.17"
# Pixels as they are, in a form that XNNPACK reads within its one partition.
PIXELS = Form(np.dtype(np.uint8), scale=1.0)


def convert(encoder: Encoder, linears: Mapping[str, QuantizedLinear], folder: Path, batch: int | None) -> None:
    """Writes `folder/model.tflite`.

    The input is `pixel_values` [batch, height, width, channels], RGB: float32, normalized; uint8 if the encoder's is.

    Args:
        encoder: The encoder that the integers belong to.
        linears: Integer linears by name; the others stay float. Empty for the FP32 model.
        folder: Existing folder to write into.
        batch: Fixed batch size; None is 1.

    Raises:
        ConversionError: A linear has a fixed input scale, or the file would exceed 2 GB.
    """
    for name, linear in linears.items():
        if linear.input is not None or linear.multiplier is not None:
            raise ConversionError(
                f"{name}: expected a dynamic input, found {linear.input}; the TFLite lowering has no fixed input"
                " scales, use a recipe with dynamic activations"
            )
    graph = _Graph(*fold_query_scale(encoder, linears), batch or 1)
    pixel_values, outputs = graph.encoder_graph()
    graph.model.write(folder / MODEL_FILE, {"pixel_values": pixel_values}, outputs)


class _Graph:
    """The encoder as TFLite operators."""

    def __init__(self, encoder: Encoder, linears: Mapping[str, QuantizedLinear], batch: int) -> None:
        self.encoder, self.shape, self.linears, self.batch = encoder, encoder.shape, linears, batch
        self.model = TfliteModel()

    def operator(
        self, code: str, name: str, inputs: Sequence[Tensor], shape: Sequence[int], options: Any = None
    ) -> Tensor:
        """Adds an operator with one result, which bears its name."""
        return self.model.operator(code, inputs, {name: shape}, options)[0]

    def integers(self, values: Sequence[Any]) -> Tensor:
        array = np.array(values, np.int32)
        return self.model.constant(f"int32{array.tolist()}", array)

    def number(self, value: float) -> Tensor:
        return self.model.constant(f"float_{value!r}", np.array(value, np.float32))

    def elementwise(self, code: str, name: str, x: Tensor, y: Tensor) -> Tensor:
        """ADD, SUB or MUL of x and what broadcasts to it."""
        options = {"ADD": schema.AddOptionsT, "SUB": schema.SubOptionsT, "MUL": schema.MulOptionsT}
        return self.operator(code, name, [x, y], x.shape, options[code]())

    def reshape(self, name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
        options = schema.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        return self.operator("RESHAPE", name, [x, self.integers(shape)], shape, options)

    def swap_middle(self, name: str, x: Tensor) -> Tensor:
        """[a, b, c, d] to [a, c, b, d]."""
        a, b, c, d = x.shape
        return self.operator(
            "TRANSPOSE", name, [x, self.integers([0, 2, 1, 3])], (a, c, b, d), schema.TransposeOptionsT()
        )

    def slice(self, name: str, x: Tensor, shape: Sequence[int]) -> Tensor:
        """The corner of x at index 0 of every dimension."""
        inputs = [x, self.integers([0] * len(shape)), self.integers(shape)]
        return self.operator("SLICE", name, inputs, shape, schema.SliceOptionsT())

    def matmul(self, name: str, x: Tensor, y: Tensor, *, transpose_y: bool) -> Tensor:
        options = schema.BatchMatMulOptionsT()
        options.adjY = transpose_y
        shape = (*x.shape[:-1], y.shape[-2] if transpose_y else y.shape[-1])
        return self.operator("BATCH_MATMUL", name, [x, y], shape, options)

    def linear(self, name: str, x: Tensor, output: str | None = None) -> Tensor:
        """The linear `name` of x [..., in]."""
        options = schema.FullyConnectedOptionsT()
        options.keepNumDims = True
        weight, weight_scale, bias = self.weights(name)
        inputs = [
            x,
            self.model.constant(f"{name}.weight", weight, weight_scale),
            self.model.constant(f"{name}.bias", bias),
        ]
        code = "FULLY_CONNECTED"
        if weight_scale is not None:
            code += INT8_WEIGHTS
            options.asymmetricQuantizeInputs = True
        return self.operator(code, output or f"{name}.output", inputs, (*x.shape[:-1], len(bias)), options)

    def weights(
        self, name: str
    ) -> tuple[NDArray[np.float32] | NDArray[np.int8], NDArray[np.float32] | None, NDArray[np.float32]]:
        """Weight [out, in], its scale [out] if it is int8, and bias [out], in this graph's order."""
        shape, quantized = self.shape, self.linears.get(name)
        weight: NDArray[np.float32] | NDArray[np.int8]
        if quantized is None:
            weight, scale, bias = self.encoder.tensors[f"{name}.weight"], None, self.encoder.tensors[f"{name}.bias"]
        else:
            weight, scale, bias = quantized.weight.values, quantized.weight.scale, quantized.weight.bias
        if name == "patch_embedding":
            patches = weight.reshape(-1, shape.channels, shape.patch_height, shape.patch_width)
            weight = patches.transpose(0, 2, 3, 1).reshape(weight.shape)
            if shape.uint8_input and quantized is not None:
                with_zero = np.zeros((len(weight), shape.patch_values + 1), np.int8)  # of the 255 in `exact_pixels`
                with_zero[:, :-1] = weight
                weight = with_zero
        if scale is not None:
            # XNNPACK refuses to load a subnormal scale, such as a row of zeros can have.
            scale = np.maximum(scale, np.finfo(np.float32).tiny)
        return weight, scale, bias

    def layernorm(self, name: str, x: Tensor, output: str | None = None) -> Tensor:
        weight, bias = (
            self.model.constant(f"{name}.{part}", self.encoder.tensors[f"{name}.{part}"]) for part in ("weight", "bias")
        )
        mean = self.mean(f"{name}.mean", x)
        centered = self.elementwise("SUB", f"{name}.centered", x, mean)
        variance = self.mean(f"{name}.variance", self.elementwise("MUL", f"{name}.squares", centered, centered))
        variance = self.elementwise("ADD", f"{name}.stable_variance", variance, self.number(self.shape.layer_norm_eps))
        deviation = self.operator("RSQRT", f"{name}.inverse_deviation", [variance], variance.shape)
        normalized = self.elementwise("MUL", f"{name}.normalized", centered, deviation)
        scaled = self.elementwise("MUL", f"{name}.scaled", normalized, weight)
        return self.elementwise("ADD", output or f"{name}.output", scaled, bias)

    def mean(self, name: str, x: Tensor) -> Tensor:
        """Over the last dimension, which stays as 1."""
        options = schema.ReducerOptionsT()
        options.keepDims = True
        last = self.integers([len(x.shape) - 1])
        return self.operator("MEAN", name, [x, last], (*x.shape[:-1], 1), options)

    def activation(self, kind: str, name: str, x: Tensor) -> Tensor:
        match kind:
            case "gelu" | "gelu_tanh":
                options = schema.GeluOptionsT()
                options.approximate = kind == "gelu_tanh"
                return self.operator("GELU", name, [x], x.shape, options)
            case "relu":
                return self.operator("RELU", name, [x], x.shape)
            case "tanh":
                return self.operator("TANH", name, [x], x.shape)
            case "silu" | "quick_gelu":
                scaled = self.elementwise("MUL", f"{name}.scaled", x, self.number(1.702)) if kind == "quick_gelu" else x
                return self.elementwise("MUL", name, x, self.operator("LOGISTIC", f"{name}.sigmoid", [scaled], x.shape))
            case _:
                raise AssertionError(f"no TFLite form of activation {kind}")

    def encoder_graph(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Builds the whole graph; returns its input and its outputs by name."""
        shape = self.shape
        dims = (self.batch, shape.image_height, shape.image_width, shape.channels)
        pixel_values = self.model.tensor("pixel_values", dims, PIXELS if shape.uint8_input else FLOAT)
        x = pixel_values
        if shape.uint8_input:
            x = self.operator("DEQUANTIZE", "float_pixels", [x], dims, schema.DequantizeOptionsT())
        x = self.embeddings(x)
        for layer in range(shape.layers):
            prefix = f"layers.{layer}"
            attended = self.attention(f"{prefix}.attention", self.layernorm(f"{prefix}.layernorm_before", x))
            x = self.elementwise("ADD", f"{prefix}.attention.residual", x, attended)
            wide = self.linear(f"{prefix}.mlp.fc1", self.layernorm(f"{prefix}.layernorm_after", x))
            wide = self.activation(shape.activation, f"{prefix}.mlp.activation", wide)
            x = self.elementwise("ADD", f"{prefix}.mlp.residual", x, self.linear(f"{prefix}.mlp.fc2", wide))
        outputs = {"last_hidden_state": self.layernorm("layernorm", x, output="last_hidden_state")}
        if shape.pooler or shape.classes:
            cls = self.slice("cls_row", outputs["last_hidden_state"], (self.batch, 1, shape.hidden))
            cls = self.reshape("cls", cls, (self.batch, shape.hidden))
        if shape.pooler:
            dense = self.linear("pooler.dense", cls)
            outputs["pooler_output"] = self.activation(shape.pooler_activation, "pooler_output", dense)
        if shape.classes:
            outputs["logits"] = self.linear("classifier", cls, output="logits")
        return pixel_values, outputs

    def embeddings(self, x: Tensor) -> Tensor:
        """Pixels to tokens [batch, tokens, hidden]."""
        shape, tensors = self.shape, self.encoder.tensors
        rows, columns = shape.grid
        height, width = rows * shape.patch_height, columns * shape.patch_width
        if (height, width) != (shape.image_height, shape.image_width):
            x = self.slice("covered", x, (self.batch, height, width, shape.channels))
        patch_row = shape.patch_width * shape.channels
        x = self.reshape("split_patches", x, (self.batch * rows, shape.patch_height, columns, patch_row))
        x = self.swap_middle("sorted_patches", x)
        x = self.reshape("patches", x, (self.batch, rows * columns, shape.patch_values))
        if shape.uint8_input and "patch_embedding" in self.linears:
            x = self.exact_pixels(x)
        x = self.linear("patch_embedding", x)
        inputs = [x, self.integers([[0, 0], [1, 0], [0, 0]])]
        x = self.operator(
            "PAD", "padded_patches", inputs, (self.batch, shape.tokens, shape.hidden), schema.PadOptionsT()
        )
        positions = tensors["position_embeddings"][None].copy()
        positions[0, 0] += tensors["cls_token"]
        return self.elementwise("ADD", "tokens", x, self.model.constant("cls_token_and_positions", positions))

    def exact_pixels(self, x: Tensor) -> Tensor:
        """Patches with a 255 at their end, which a weight of 0 multiplies: the range of each is 0 to 255 then, so that
        the integers that XNNPACK makes of pixels are the pixels themselves.
        """
        dims = (*x.shape[:-1], x.shape[-1] + 1)
        inputs = [x, self.integers([[0, 0], [0, 0], [0, 1]])]
        padded = self.operator("PAD", "patches_and_0", inputs, dims, schema.PadOptionsT())
        last = np.zeros(dims[-1], np.float32)
        last[-1] = 255
        return self.elementwise("ADD", "patches_and_255", padded, self.model.constant("255_at_the_end", last))

    def attention(self, name: str, x: Tensor) -> Tensor:
        shape, rows = self.shape, (self.batch, self.shape.tokens)
        qkv = self.reshape(f"{name}.heads", self.linear(f"{name}.qkv", x), (*rows, 3 * shape.heads, shape.head_width))
        qkv = self.swap_middle(f"{name}.query_key_value", qkv)
        split = schema.SplitOptionsT()
        split.numSplits = 3
        axis = self.model.constant("head_axis", np.array(1, np.int32))
        part = (self.batch, shape.heads, shape.tokens, shape.head_width)
        parts = {f"{name}.query": part, f"{name}.key": part, f"{name}.value": part}
        query, key, value = self.model.operator("SPLIT", [axis, qkv], parts, split)
        scores = self.matmul(f"{name}.scores", query, key, transpose_y=True)
        softmax = schema.SoftmaxOptionsT()
        softmax.beta = 1.0
        weights = self.operator("SOFTMAX", f"{name}.weights", [scores], scores.shape, softmax)
        context = self.matmul(f"{name}.context", weights, value, transpose_y=False)
        context = self.swap_middle(f"{name}.merged_heads", context)
        return self.linear(f"{name}.o_proj", self.reshape(f"{name}.flat_context", context, (*rows, shape.hidden)))
