"""Lowering to ONNX, for ONNX Runtime's CPU provider.

What becomes integer: every linear of the plan and the patch embedding. One with a static input is

    QuantizeLinear (fixed uint8 scale) -> com.microsoft.MatMulIntegerToFloat (int8 weights, per-channel scale, bias)

one kernel with float output, the fastest form that the CPU provider has: a QDQ pair around MatMul + Add would first be
fused into Gemm, which has no integer kernel with float output. One with a dynamic input has a range per row (token): of
a row x with minimum m and step s = (max - m) / 255, the integers are q = (x - m) / s, and

    x · W = s · (q · W) + m · colsum(W)

which is ReduceMin, ReduceMax, Sub, QuantizeLinear with a scale per row, the same integer kernel, and a multiplication
and an addition of what comes out. Behind GELU, m is GELU's own minimum: no ReduceMin, and the last term is part of the
bias.

The portable form has standard operators only, for engines without that kernel, and is somewhat slower:

    QuantizeLinear -> MatMulInteger -> Cast -> Mul by both scales -> Add

Residual adds, LayerNorm, softmax, GELU and the two attention MatMuls stay float: the provider has no integer kernels
for the first four, and the MatMuls are 4 % of the work of ViT-B and feed softmax.
Its fused kernels for them do not pay: MultiHeadAttention takes the same time, and SkipLayerNormalization, which is
scalar, more.

The patch embedding is a linear over flattened patches, so that it is the same integer kernel; quantizing before the
patches are cut out makes the transpose move bytes instead of floats. If the encoder takes uint8 pixels, they are the
integers, and nothing is quantized there.

Opset 20 (the first with Gelu) and IR version 9 load in ONNX Runtime 1.17 and later. The batch is a symbol unless given.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.quantization.pixel_input import PIXELS
from vitedge.quantization.plan import IntegerWeight, QuantizedLinear, StaticInput
from vitedge.quantization.query_scale import fold_query_scale
from vitedge.runtimes.errors import ConversionError

OPSET, IR_VERSION, MINIMUM_RUNTIME = 20, 9, "1.17"
MODEL_FILE = "model.onnx"


def convert(
    encoder: Encoder,
    linears: Mapping[str, QuantizedLinear],
    folder: Path,
    batch: int | None,
    *,
    portable: bool = False,
) -> None:
    """Writes `folder/model.onnx`.

    Args:
        encoder: The encoder that the integers belong to.
        linears: Integer linears by name; the others stay float. Empty for the FP32 model.
        folder: Existing folder to write into.
        batch: Fixed batch size, or None for any.
        portable: Whether to use standard ONNX operators only.

    Raises:
        ConversionError: The model exceeds the 2 GB that one ONNX file can hold.
    """
    graph = _Graph(*fold_query_scale(encoder, linears), batch, portable=portable)
    graph.encoder_graph()
    model = graph.model()
    if model.ByteSize() >= 2**31:
        raise ConversionError(f"ONNX: the model has {model.ByteSize()} bytes; one file can hold at most 2 GB")
    onnx.checker.check_model(model)
    onnx.save_model(model, folder / MODEL_FILE)


def opsets(linears: Mapping[str, QuantizedLinear], *, portable: bool = False) -> Mapping[str, int]:
    """The operator sets that such a model needs, version by domain; `ai.onnx` is the standard one."""
    return {"ai.onnx": OPSET} | ({"com.microsoft": 1} if linears and not portable else {})


class _Graph:
    """An ONNX graph under construction: nodes in order, initializers by name."""

    def __init__(
        self, encoder: Encoder, linears: Mapping[str, QuantizedLinear], batch: int | None, *, portable: bool
    ) -> None:
        self.encoder, self.shape, self.linears, self.portable = encoder, encoder.shape, linears, portable
        self.batch: int | str = batch or "batch"
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        shape = self.shape
        size = (shape.image_height, shape.image_width)
        pixels = [self.batch, *size, shape.channels] if shape.uint8_input else [self.batch, shape.channels, *size]
        pixel_type = TensorProto.UINT8 if shape.uint8_input else TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "vit_encoder",
            [helper.make_tensor_value_info("pixel_values", pixel_type, pixels)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [self.batch, *dims])
                for name, dims in shape.outputs.items()
            ],
            list(self.initializers.values()),
        )
        imports = [
            helper.make_opsetid("" if domain == "ai.onnx" else domain, version)
            for domain, version in opsets(self.linears, portable=self.portable).items()
        ]
        return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="vitedge")

    def constant(self, name: str, value: NDArray[np.generic] | np.generic) -> str:
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def integers(self, *values: int) -> str:
        return self.constant("int64_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(f"float_{value!r}", np.array(value, np.float32))

    def node(self, operator: str, name: str, inputs: Sequence[str], domain: str = "", **attributes: object) -> str:
        """Adds a node whose one output bears its name."""
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def linear(self, name: str, x: str, output: str | None = None) -> str:
        """The linear `name` of x [..., in]; x must be what `quantize` returned if the linear is integer."""
        quantized = self.linears.get(name)
        output = output or f"{name}.output"
        if quantized is None:
            weight = self.constant(f"{name}.weight", self.encoder.tensors[f"{name}.weight"].T)
            bias = self.constant(f"{name}.bias", self.encoder.tensors[f"{name}.bias"])
            return self.node("Add", output, [self.node("MatMul", f"{name}.matmul", [x, weight]), bias])
        weights = quantized.weight
        if quantized.input is not None:
            return self.integer_product(name, output, x, weights, quantized.input, weights.bias)
        # Scales of rows come after the product, and the row's minimum is integer 0.
        product = self.integer_product(name, f"{name}.product", x, weights, StaticInput(1.0, 0), None)
        scaled = self.node("Mul", f"{name}.scaled", [product, f"{name}.row_scale"])
        sums = weights.dequantized().sum(axis=1)
        known = self.shape.known_minimum(name)
        if known is not None:
            offset = self.constant(f"{name}.bias", weights.bias + np.float32(known) * sums)
        else:
            columns = self.constant(f"{name}.column_sums", sums)
            minimum = self.node("Mul", f"{name}.offset", [f"{name}.row_minimum", columns])
            offset = self.node("Add", f"{name}.shift", [minimum, self.constant(f"{name}.bias", weights.bias)])
        if name in ("pooler.dense", "classifier"):  # of one token, not of all
            return self.node("Add", output, [scaled, offset])
        tokens = self.shape.linears[name]
        shifted = self.node("Add", f"{name}.flat_output", [scaled, offset])
        return self.node("Reshape", output, [shifted, self.integers(-1, tokens, len(weights.bias))])

    def integer_product(
        self, name: str, output: str, x: str, weight: IntegerWeight, grid: StaticInput, bias: FloatArray | None
    ) -> str:
        """The product of uint8 rows x of a grid with the weights, in float, plus the bias if there is one."""
        zero_point = self.constant(f"{name}.input_zero_point", np.uint8(grid.zero_point))
        values = self.constant(f"{name}.weight", weight.values.T)
        shift = [] if bias is None else [self.constant(f"{name}.bias", bias)]
        if not self.portable:
            scale = self.constant(f"{name}.input_scale", np.float32(grid.scale))
            scales = self.constant(f"{name}.weight_scale", weight.scale)
            zeros = self.constant(f"{name}.weight_zero_point", np.zeros(len(weight.scale), np.int8))
            inputs = [x, values, scale, scales, zero_point, zeros, *shift]
            return self.node("MatMulIntegerToFloat", output, inputs, domain="com.microsoft")
        sums = self.node("MatMulInteger", f"{name}.sums", [x, values, zero_point])
        floats = self.node("Cast", f"{name}.float_sums", [sums], to=TensorProto.FLOAT)
        scales = self.constant(f"{name}.output_scale", weight.scale * np.float32(grid.scale))
        if not shift:
            return self.node("Mul", output, [floats, scales])
        return self.node("Add", output, [self.node("Mul", f"{name}.product", [floats, scales]), *shift])

    def quantize(self, name: str, x: str) -> str:
        """What the linear `name` reads: x [..., in] in uint8 if that linear is integer, else x.

        A dynamic input comes out as [rows, in], with its rows' scales and, if not known, minima in
        `NAME.row_scale` and `NAME.row_minimum` [rows, 1].
        """
        quantized = self.linears.get(name)
        if quantized is None:
            return x
        if quantized.input is not None:
            if quantized.multiplier is not None:
                x = self.node("Mul", f"{name}.divided", [x, self.constant(f"{name}.multiplier", quantized.multiplier)])
            return self.node("QuantizeLinear", f"{name}.input", [x, *self.input_parameters(name, quantized.input)])
        width = self.shape.tensor_shapes[f"{name}.weight"][1]
        rows = self.node("Reshape", f"{name}.rows", [x, self.integers(-1, width)])
        known = self.shape.known_minimum(name)
        if known is None:
            low = self.node("ReduceMin", f"{name}.row_minimum", [rows, self.integers(-1)], keepdims=1)
        else:
            low = self.number(known)
        high = self.node("ReduceMax", f"{name}.row_maximum", [rows, self.integers(-1)], keepdims=1)
        span = self.node("Sub", f"{name}.row_span", [high, low])
        step = self.node("Mul", f"{name}.row_step", [span, self.number(1 / 255)])
        # A row of equal values has no span; any step will do for its zeros.
        scale = self.node("Max", f"{name}.row_scale", [step, self.number(1e-12)])
        flat_scale = self.node("Reshape", f"{name}.row_scales", [scale, self.integers(-1)])
        shifted = self.node("Sub", f"{name}.shifted", [rows, low])
        return self.node("QuantizeLinear", f"{name}.input", [shifted, flat_scale], axis=0)

    def input_parameters(self, name: str, static: StaticInput) -> tuple[str, str]:
        """Scale and zero point of the input of the linear `name`, as constants."""
        scale = self.constant(f"{name}.input_scale", np.float32(static.scale))
        return scale, self.constant(f"{name}.input_zero_point", np.uint8(static.zero_point))

    def layernorm(self, name: str, x: str, output: str | None = None) -> str:
        tensors = self.encoder.tensors
        parts = [self.constant(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias")]
        epsilon = self.shape.layer_norm_eps
        return self.node("LayerNormalization", output or f"{name}.output", [x, *parts], axis=-1, epsilon=epsilon)

    def activation(self, kind: str, name: str, x: str) -> str:
        match kind:
            case "gelu":
                return self.node("Gelu", name, [x])
            case "gelu_tanh":
                return self.node("Gelu", name, [x], approximate="tanh")
            case "relu":
                return self.node("Relu", name, [x])
            case "tanh":
                return self.node("Tanh", name, [x])
            case "silu" | "quick_gelu":
                scaled = self.node("Mul", f"{name}.scaled", [x, self.number(1.702)]) if kind == "quick_gelu" else x
                return self.node("Mul", name, [x, self.node("Sigmoid", f"{name}.sigmoid", [scaled])])
            case _:
                raise AssertionError(f"no ONNX form of activation {kind}")

    def encoder_graph(self) -> None:
        shape = self.shape
        x = self.embeddings()
        for layer in range(shape.layers):
            prefix = f"layers.{layer}"
            attended = self.attention(f"{prefix}.attention", self.layernorm(f"{prefix}.layernorm_before", x))
            x = self.node("Add", f"{prefix}.attention.residual", [x, attended])
            normed = self.quantize(f"{prefix}.mlp.fc1", self.layernorm(f"{prefix}.layernorm_after", x))
            wide = self.activation(
                shape.activation, f"{prefix}.mlp.activation", self.linear(f"{prefix}.mlp.fc1", normed)
            )
            narrow = self.linear(f"{prefix}.mlp.fc2", self.quantize(f"{prefix}.mlp.fc2", wide))
            x = self.node("Add", f"{prefix}.mlp.residual", [x, narrow])
        x = self.layernorm("layernorm", x, output="last_hidden_state")
        if shape.pooler or shape.classes:
            cls = self.node("Gather", "cls", [x, self.constant("int64_zero", np.array(0, np.int64))], axis=1)
        if shape.pooler:
            dense = self.linear("pooler.dense", self.quantize("pooler.dense", cls))
            self.activation(shape.pooler_activation, "pooler_output", dense)
        if shape.classes:
            self.linear("classifier", self.quantize("classifier", cls), output="logits")

    def pixels(self, patches: QuantizedLinear | None) -> str:
        """What patches are cut out of: bytes where the range is fixed, else floats."""
        if self.shape.uint8_input and patches is not None and patches.input == PIXELS:
            return "pixel_values"
        x = "pixel_values"
        if self.shape.uint8_input:
            x = self.node("Cast", "float_pixels", [x], to=TensorProto.FLOAT)
        return x if patches is None or patches.input is None else self.quantize("patch_embedding", x)

    def embeddings(self) -> str:
        """Pixels to tokens [batch, tokens, hidden]."""
        shape, tensors = self.shape, self.encoder.tensors
        rows, columns = shape.grid
        # Rows are known only once the patches are cut out.
        patches = self.linears.get("patch_embedding")
        dynamic = patches is not None and patches.input is None
        x = self.pixels(patches)
        height, width = rows * shape.patch_height, columns * shape.patch_width
        if (height, width) != (shape.image_height, shape.image_width):
            axes = self.integers(1, 2) if shape.uint8_input else self.integers(2, 3)
            x = self.node("Slice", "covered", [x, self.integers(0, 0), self.integers(height, width), axes])
        split, order = [rows, shape.patch_height, columns, shape.patch_width], [0, 2, 4, 1, 3, 5]
        if shape.uint8_input:
            split, order = [*split, shape.channels], [0, 1, 3, 5, 2, 4]
        else:
            split = [shape.channels, *split]
        x = self.node("Reshape", "split_patches", [x, self.integers(0, *split)])
        x = self.node("Transpose", "sorted_patches", [x], perm=order)
        x = self.node("Reshape", "patches", [x, self.integers(0, rows * columns, shape.patch_values)])
        x = self.linear("patch_embedding", self.quantize("patch_embedding", x) if dynamic else x)
        positions = tensors["position_embeddings"]
        x = self.node("Add", "positioned_patches", [x, self.constant("patch_positions", positions[1:])])
        # The class token and its position are one constant row; Expand gives it the batch.
        cls = self.constant("cls_token", (tensors["cls_token"] + positions[0])[None, None])
        batch = self.node("Shape", "batch_size", [x], start=0, end=1)
        ones = self.node("Concat", "cls_shape", [batch, self.integers(1, shape.hidden)], axis=0)
        return self.node("Concat", "tokens", [self.node("Expand", "cls_tokens", [cls, ones]), x], axis=1)

    def attention(self, name: str, x: str) -> str:
        shape = self.shape
        qkv = self.linear(f"{name}.qkv", self.quantize(f"{name}.qkv", x))
        heads = self.node("Reshape", f"{name}.heads", [qkv, self.integers(0, 0, 3, shape.heads, shape.head_width)])
        parts = [f"{name}.query", f"{name}.key", f"{name}.value"]
        flat = [f"{part}_flat" for part in parts]
        self.nodes.append(helper.make_node("Split", [heads], flat, name=f"{name}.split", axis=2, num_outputs=3))
        squeezed = [self.node("Squeeze", f"{p}_heads", [f, self.integers(2)]) for p, f in zip(parts, flat, strict=True)]
        query = self.node("Transpose", parts[0], [squeezed[0]], perm=[0, 2, 1, 3])
        key = self.node("Transpose", parts[1], [squeezed[1]], perm=[0, 2, 3, 1])
        value = self.node("Transpose", parts[2], [squeezed[2]], perm=[0, 2, 1, 3])
        scores = self.node("MatMul", f"{name}.scores", [query, key])
        weights = self.node("Softmax", f"{name}.weights", [scores], axis=-1)
        context = self.node("MatMul", f"{name}.context", [weights, value])
        context = self.node("Transpose", f"{name}.merged_heads", [context], perm=[0, 2, 1, 3])
        context = self.node("Reshape", f"{name}.flat_context", [context, self.integers(0, 0, shape.hidden)])
        return self.linear(f"{name}.o_proj", self.quantize(f"{name}.o_proj", context))
