"""The encoder as a program: named operations on named tensors, written once, run by several interpreters.

`FloatOperations` runs it in PyTorch and sees every tensor; `FakeOperations` rounds every tensor as integer kernels do;
the TFLite writer adds an operator for each. So the prediction and the artifact cannot disagree about what is computed.

The operations are few, and each has integer kernels in TFLite. LayerNorm is

    square root of its summands   x' · deviation       [tokens, hidden]  MUL
    variance                      Σ summand²           [tokens, 1]       BATCH_MATMUL of each row with itself
    inverse deviation r           1/√variance          [tokens, 1]       RSQRT
    scale                         r · g                [tokens, hidden]  FULLY_CONNECTED with one input
    normalized                    x' · scale           [tokens, hidden]  MUL

A row times itself sums in 32 bits without rounding; a tensor of squares in 8 bits costs 28 dB (measured: 16 against 44
dB), as most squares are far below the largest. LayerNorm's epsilon is left out: it is at most a hundredth of the
smallest variance, which `observe` checks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from vitedge.quantization.encoder import EncoderShape

V = TypeVar("V")


class Operations(Protocol[V]):
    """What an interpreter does. `name` is the result's; a result without a name has the integers of its input."""

    def fully_connected(self, name: str, x: V, linear: str) -> V:
        """The linear of x [..., in]."""

    def matmul(self, name: str, x: V, y: V, *, transpose_y: bool = False) -> V:
        """Of the last two dimensions, batched over the others."""

    def multiply(self, name: str, x: V, y: V) -> V:
        """Elementwise, of equal shapes."""

    def add(self, name: str, x: V, y: V) -> V:
        """Elementwise, of equal shapes."""

    def multiply_constant(self, name: str, x: V, constant: str) -> V:
        """Elementwise, by a constant that broadcasts to x."""

    def add_constant(self, name: str, x: V, constant: str) -> V:
        """Elementwise, of a constant that broadcasts to x."""

    def lookup(self, name: str, x: V, function: str) -> V:
        """A function of one number: RSQRT, GELU, GELU_TANH, RELU, LOGISTIC or TANH."""

    def softmax(self, name: str, x: V) -> V:
        """Over the last dimension."""

    def reshape(self, x: V, shape: Sequence[int]) -> V:
        """To another shape of as many values."""

    def transpose(self, x: V, order: Sequence[int]) -> V:
        """Dimensions in another order."""

    def prepend_row(self, x: V) -> V:
        """[batch, rows, values] to [batch, 1 + rows, values], the first row 0."""

    def first_row(self, x: V) -> V:
        """[batch, rows, values] to [batch, values]."""


@dataclass(frozen=True)
class Program(Generic[V]):
    """The encoder, for one interpreter, shape and number of images; can also be run layer by layer."""

    operations: Operations[V]
    shape: EncoderShape
    batch: int

    def run(self, pixels: V) -> Mapping[str, V]:
        """The outputs by name.

        Args:
            pixels: `pixel_values` [batch, rows · patch height, columns · patch width, channels], normalized.
        """
        x = self.embeddings(pixels)
        for layer in range(self.shape.layers):
            x = self.layer(layer, x)
        return self.outputs(x)

    def embeddings(self, pixels: V) -> V:
        """Pixels to the residual stream [batch, tokens, hidden]."""
        do, shape = self.operations, self.shape
        rows, columns = shape.grid
        x = do.reshape(pixels, (self.batch * rows, shape.patch_height, columns, shape.patch_width * shape.channels))
        x = do.reshape(do.transpose(x, (0, 2, 1, 3)), (self.batch, rows * columns, shape.patch_values))
        x = do.prepend_row(do.fully_connected("patches", x, "patch_embedding"))
        return do.add_constant("residual", x, "positions")

    def layer(self, layer: int, x: V) -> V:
        """The residual stream before a layer to the one after it."""
        do, prefix = self.operations, f"layers.{layer}"
        y = self.attention(f"{prefix}.attention", self.layernorm(f"{prefix}.layernorm_before", x))
        x = do.add(f"{prefix}.attention.residual", x, y)
        y = self.layernorm(f"{prefix}.layernorm_after", x)
        y = do.fully_connected(f"{prefix}.mlp.wide", y, f"{prefix}.mlp.fc1")
        y = self.activation(f"{prefix}.mlp.activation", y, self.shape.activation)
        return do.add(f"{prefix}.mlp.residual", x, do.fully_connected(f"{prefix}.mlp.output", y, f"{prefix}.mlp.fc2"))

    def layernorm(self, name: str, x: V) -> V:
        """Without its bias; see the module's docstring."""
        do = self.operations
        summand = do.multiply_constant(f"{name}.summand", x, "deviation")
        summand = do.reshape(summand, (self.batch * self.shape.tokens, 1, self.shape.hidden))
        variance = do.matmul(f"{name}.variance", summand, summand, transpose_y=True)
        inverse = do.lookup(f"{name}.inverse_deviation", variance, "RSQRT")
        inverse = do.reshape(inverse, (self.batch, self.shape.tokens, 1))
        return do.multiply(f"{name}.normalized", x, do.fully_connected(f"{name}.scale", inverse, f"{name}.scale"))

    def attention(self, name: str, x: V) -> V:
        """Up to the output projection."""
        do, shape = self.operations, self.shape

        def heads(part: str) -> V:
            y = do.fully_connected(f"{name}.{part}", x, f"{name}.{part}")
            y = do.reshape(y, (self.batch, shape.tokens, shape.heads, shape.head_width))
            return do.transpose(y, (0, 2, 1, 3))

        scores = do.matmul(f"{name}.scores", heads("query"), heads("key"), transpose_y=True)
        context = do.matmul(f"{name}.context", do.softmax(f"{name}.weights", scores), heads("value"))
        context = do.reshape(do.transpose(context, (0, 2, 1, 3)), (self.batch, shape.tokens, shape.hidden))
        return do.fully_connected(f"{name}.output", context, f"{name}.o_proj")

    def activation(self, name: str, x: V, kind: str) -> V:
        """A key of `ACTIVATIONS`."""
        do = self.operations
        if kind in ("silu", "quick_gelu"):
            scaled = do.multiply_constant(f"{name}.scaled", x, "1.702") if kind == "quick_gelu" else x
            return do.multiply(name, x, do.lookup(f"{name}.sigmoid", scaled, "LOGISTIC"))
        return do.lookup(name, x, kind.upper())

    def outputs(self, x: V) -> Mapping[str, V]:
        """The residual stream after the last layer to the encoder's outputs."""
        do, shape = self.operations, self.shape
        hidden = do.add_constant("last_hidden_state", self.layernorm("layernorm", x), "layernorm.bias")
        named = {"last_hidden_state": hidden}
        if shape.pooler:
            dense = do.fully_connected("pooler.dense", do.first_row(hidden), "pooler.dense")
            named["pooler_output"] = self.activation("pooler_output", dense, shape.pooler_activation)
        if shape.classes:
            named["logits"] = do.fully_connected("logits", do.first_row(hidden), "classifier")
        return named
