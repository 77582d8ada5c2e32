"""The encoder as a frozen value: its shape, its float32 tensors, and one forward pass with a replaceable linear.

Everything between a checkpoint and an artifact is a function from `Encoder` to `Encoder` (fold, smooth) or a choice of
`Linear` (float, observed, fake-quantized). So a rewrite is arithmetic on named numpy arrays, and one forward pass
serves the FP32 model, the calibration and the prediction of the quantized artifacts.

Tensors, by name (L = 0 … layers - 1); linears store `weight` [out, in] and `bias` [out]:

    cls_token [hidden]                     position_embeddings [tokens, hidden]
    patch_embedding (in = channels · patch · patch, in that order)
    layers.L.layernorm_before.{weight,bias} [hidden]
    layers.L.attention.qkv (out = query, key, value: 3 · hidden)      layers.L.attention.o_proj
    layers.L.layernorm_after.{weight,bias} [hidden]
    layers.L.mlp.fc1                       layers.L.mlp.fc2
    layernorm.{weight,bias} [hidden]       pooler.dense (optional)    classifier (optional)

Query, key and value are one linear because they read the same input: one quantization of it, one larger MatMul.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vitedge.runtimes.errors import CheckpointError
from vitedge.runtimes.preprocess import PixelValues

FloatArray = NDArray[np.float32]
# (name of the linear, its input [..., in]) -> its output [..., out]
Linear = Callable[[str, torch.Tensor], torch.Tensor]

ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": functional.relu,
    "silu": functional.silu,
    "tanh": torch.tanh,
}
# No value of these functions is smaller (their minima, rounded down).
_ACTIVATION_MINIMUM: Mapping[str, float] = {
    "gelu": -0.1700,
    "gelu_tanh": -0.1701,
    "quick_gelu": -0.1637,
    "relu": 0.0,
    "silu": -0.2785,
    "tanh": -1.0,
}


@dataclass(frozen=True)
class EncoderShape:
    """The numbers that fix the graph of a Vision Transformer encoder.

    `activation` and `pooler_activation` are keys of `ACTIVATIONS`. `pooler` is the width of the pooler's output and
    `classes` the number of classes; 0 means that the encoder has none. With `uint8_input` it takes pixels as they are
    (see `pixel_input.py`).
    """

    image_height: int
    image_width: int
    channels: int
    patch_height: int
    patch_width: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: str
    layer_norm_eps: float
    pooler: int = 0
    pooler_activation: str = "tanh"
    classes: int = 0
    uint8_input: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.image_height // self.patch_height, self.image_width // self.patch_width

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return self.grid[0] * self.grid[1] + 1

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    @property
    def patch_values(self) -> int:
        return self.channels * self.patch_height * self.patch_width

    @property
    def outputs(self) -> Mapping[str, tuple[int, ...]]:
        """Name of each output, in order, and its shape without the batch."""
        outputs: dict[str, tuple[int, ...]] = {"last_hidden_state": (self.tokens, self.hidden)}
        if self.pooler:
            outputs["pooler_output"] = (self.pooler,)
        if self.classes:
            outputs["logits"] = (self.classes,)
        return outputs

    @property
    def linears(self) -> Mapping[str, int]:
        """Name of each linear, in order of execution, and the rows it multiplies per image."""
        rows = {"patch_embedding": self.tokens - 1}
        for layer in range(self.layers):
            for name in ("attention.qkv", "attention.o_proj", "mlp.fc1", "mlp.fc2"):
                rows[f"layers.{layer}.{name}"] = self.tokens
        if self.pooler:
            rows["pooler.dense"] = 1
        if self.classes:
            rows["classifier"] = 1
        return rows

    def known_minimum(self, name: str) -> float | None:
        """What no input of a linear can be smaller than, where it comes out of an activation; else None."""
        return _ACTIVATION_MINIMUM[self.activation] if name.endswith(".mlp.fc2") else None

    @property
    def attention_macs(self) -> int:
        """Multiply-accumulates per image of the two attention MatMuls of all layers."""
        return 2 * self.layers * self.tokens * self.tokens * self.hidden

    @property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor that an encoder of this shape holds."""
        hidden, linears = self.hidden, {"patch_embedding": (self.hidden, self.patch_values)}
        shapes: dict[str, tuple[int, ...]] = {"cls_token": (hidden,), "position_embeddings": (self.tokens, hidden)}
        for layer in range(self.layers):
            prefix = f"layers.{layer}."
            shapes |= {
                f"{prefix}layernorm_{at}.{part}": (hidden,) for at in ("before", "after") for part in ("weight", "bias")
            }
            linears[prefix + "attention.qkv"] = (3 * hidden, hidden)
            linears[prefix + "attention.o_proj"] = (hidden, hidden)
            linears[prefix + "mlp.fc1"] = (self.intermediate, hidden)
            linears[prefix + "mlp.fc2"] = (hidden, self.intermediate)
        shapes |= {"layernorm.weight": (hidden,), "layernorm.bias": (hidden,)}
        if self.pooler:
            linears["pooler.dense"] = (self.pooler, hidden)
        if self.classes:
            linears["classifier"] = (self.classes, hidden)
        for name, (out_features, in_features) in linears.items():
            shapes |= {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}
        return shapes


@dataclass(frozen=True)
class Encoder:
    """A Vision Transformer encoder: its shape and its float32 tensors by name (see the module's docstring).

    Raises:
        CheckpointError: A tensor is missing, superfluous, misshapen or not float32.
    """

    shape: EncoderShape
    tensors: Mapping[str, FloatArray]

    def __post_init__(self) -> None:
        expected = self.shape.tensor_shapes
        if expected.keys() != self.tensors.keys():
            different = sorted(expected.keys() ^ self.tensors.keys())
            raise CheckpointError(f"encoder tensors do not fit its shape: missing or unexpected {different[:5]}")
        for name, shape in expected.items():
            tensor = self.tensors[name]
            if tensor.shape != shape or tensor.dtype != np.float32:
                raise CheckpointError(
                    f"encoder tensor {name}: expected float32 {list(shape)}, found {tensor.dtype} {list(tensor.shape)}"
                )

    def with_tensors(self, changed: Mapping[str, FloatArray]) -> "Encoder":
        """The same encoder with some tensors replaced."""
        return replace(self, tensors={**self.tensors, **changed})


def float_linear(encoder: Encoder) -> Linear:
    """The encoder's own linears in float32."""
    tensors = {name: torch.from_numpy(value) for name, value in encoder.tensors.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, tensors[name + ".weight"], tensors[name + ".bias"])

    return linear


@torch.inference_mode()
def forward(encoder: Encoder, pixel_values: PixelValues, linear: Linear) -> dict[str, FloatArray]:
    """Runs the encoder with the given linear.

    Args:
        encoder: The encoder.
        pixel_values: float32 [batch, channels, height, width], normalized; if the encoder's input is uint8, such
            [batch, height, width, channels].
        linear: What multiplies; `float_linear(encoder)` gives the FP32 model.

    Returns:
        The outputs named by `encoder.shape.outputs`, float32, batch first.
    """
    shape = encoder.shape
    tensors = {name: torch.from_numpy(value) for name, value in encoder.tensors.items()}
    activation = ACTIVATIONS[shape.activation]

    def layernorm(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = tensors[name + ".weight"], tensors[name + ".bias"]
        return functional.layer_norm(x, (shape.hidden,), weight, bias, shape.layer_norm_eps)

    def attention(name: str, x: torch.Tensor) -> torch.Tensor:
        qkv = linear(name + ".qkv", x).view(len(x), shape.tokens, 3, shape.heads, shape.head_width)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        context = functional.scaled_dot_product_attention(query, key, value)
        return linear(name + ".o_proj", context.transpose(1, 2).reshape(x.shape))

    pixels = torch.from_numpy(pixel_values)
    if shape.uint8_input:
        pixels = pixels.permute(0, 3, 1, 2).float()
    patches = linear("patch_embedding", to_patches(shape, pixels))
    cls_token = tensors["cls_token"].expand(len(patches), 1, shape.hidden)
    x = torch.cat((cls_token, patches), dim=1) + tensors["position_embeddings"]
    for layer in range(shape.layers):
        prefix = f"layers.{layer}"
        x = x + attention(f"{prefix}.attention", layernorm(f"{prefix}.layernorm_before", x))
        wide = activation(linear(f"{prefix}.mlp.fc1", layernorm(f"{prefix}.layernorm_after", x)))
        x = x + linear(f"{prefix}.mlp.fc2", wide)
    x = layernorm("layernorm", x)
    outputs = {"last_hidden_state": x}
    if shape.pooler:
        outputs["pooler_output"] = ACTIVATIONS[shape.pooler_activation](linear("pooler.dense", x[:, 0]))
    if shape.classes:
        outputs["logits"] = linear("classifier", x[:, 0])
    return {name: output.numpy() for name, output in outputs.items()}


def to_patches(shape: EncoderShape, pixel_values: torch.Tensor) -> torch.Tensor:
    """[batch, channels, height, width] to [batch, patches, channels · patch height · patch width], row by row."""
    rows, columns = shape.grid
    x = pixel_values[:, :, : rows * shape.patch_height, : columns * shape.patch_width]
    x = x.reshape(len(x), shape.channels, rows, shape.patch_height, columns, shape.patch_width)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), rows * columns, shape.patch_values)
