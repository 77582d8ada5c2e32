"""Checkpoints in: a folder or hub id of a transformers `ViTModel` or `ViTForImageClassification` becomes an `Encoder`.

Every weight that the config implies must be there in its shape (`checkpoint_files.py` reads the files). The pooler is
optional: without its weights there is no `pooler_output`.

Transformers' own model, on the same weights, stays the reference that artifacts are judged against.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from vitedge.converters.checkpoint_files import check_weights, download, read_config, read_json, read_weights, renamed
from vitedge.converters.license import license_of
from vitedge.quantization.encoder import Encoder, EncoderShape, FloatArray
from vitedge.quantization.pixel_input import fold_normalization
from vitedge.runtimes.errors import CheckpointError
from vitedge.runtimes.manifest import Origin
from vitedge.runtimes.preprocess import PixelValues, Preprocessing

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
# Hidden size, layers, heads, intermediate size (Dosovitskiy et al. 2020, table 1; Touvron et al. 2021 for the small).
_PRESETS = {
    "tiny": (192, 12, 3, 768),
    "small": (384, 12, 6, 1536),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    `weights` are named as in transformers 5, without the `vit.` prefix, at the checkpoint's own image size; `encoder`
    is the same in vitedge's form, at the image size asked for. `license_files` hold the text of its licence.
    """

    origin: Origin
    config: ViTConfig
    weights: Mapping[str, torch.Tensor]
    encoder: Encoder
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    license_files: tuple[Path, ...] = ()

    def with_uint8_input(self) -> "Checkpoint":
        """The same with an encoder of pixels as they are, uint8 [batch, height, width, 3]."""
        return replace(
            self,
            encoder=fold_normalization(self.encoder, self.preprocessing),
            preprocessing=replace(self.preprocessing, dtype="uint8"),
        )

    def reference(self) -> "Reference":
        """Transformers' own model on these weights."""
        return Reference(self)


class Reference:
    """Transformers' FP32 model: what every artifact is compared with; `model` is the module itself."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._outputs = tuple(checkpoint.encoder.shape.outputs)
        shape = checkpoint.encoder.shape
        self.model = _without_weights(checkpoint.config, bool(shape.classes), bool(shape.pooler))
        state = dict(checkpoint.weights)
        if shape.classes:
            state = {k if k.startswith("classifier.") else f"vit.{k}": v for k, v in state.items()}
        self.model.load_state_dict(state, strict=True, assign=True)
        self.model.eval()
        self._interpolate = (shape.image_height, shape.image_width) != _pair(checkpoint.config.image_size)
        self._contract = checkpoint.preprocessing

    @torch.inference_mode()
    def __call__(self, pixel_values: PixelValues) -> dict[str, FloatArray]:
        """What the checkpoint's contract makes of images to the encoder's named outputs."""
        if self._contract.dtype == "uint8":
            pixel_values = replace(self._contract, dtype="float32").batch(list(pixel_values))
        outputs = self.tensors(torch.from_numpy(np.ascontiguousarray(pixel_values)))
        return {name: output.numpy() for name, output in outputs.items()}

    def tensors(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same from tensor to tensors, for exporters to trace."""
        encoder = self.model.vit if hasattr(self.model, "vit") else self.model
        result = encoder(pixel_values, interpolate_pos_encoding=self._interpolate)
        outputs = {"last_hidden_state": result.last_hidden_state, "pooler_output": result.pooler_output}
        if "logits" in self._outputs:
            outputs["logits"] = self.model.classifier(result.last_hidden_state[:, 0])
        return {name: outputs[name] for name in self._outputs}


def load_checkpoint(source: str, *, revision: str | None = None, image_size: int | None = None) -> Checkpoint:
    """Loads a checkpoint folder, or downloads one from the hub.

    Args:
        source: A folder with `config.json` and safetensors weights, or a hub id such as
            `google/vit-base-patch16-224-in21k`.
        revision: Branch, tag or commit of a hub id.
        image_size: Height and width in pixels to convert for; positions are interpolated as transformers does.

    Raises:
        CheckpointError: Not found, another architecture, pickled, or with missing or misshapen weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or not _HUB_ID.fullmatch(source):
            raise CheckpointError(
                f"{source}: no such folder. Pass a folder with config.json and model.safetensors, or a hub id like"
                " google/vit-base-patch16-224-in21k"
            )
        folder = download(source, revision)
    else:
        source = str(folder.absolute())  # artifacts name it, and are verified from wherever
    config = read_config(folder)
    weights, sha = read_weights(folder)
    sha.update((folder / "config.json").read_bytes())
    weights = renamed(folder, weights)
    classes = _is_classifier(config, weights, folder)
    pooler = not classes and "pooler.dense.weight" in weights
    try:
        model = _without_weights(config, classes, pooler)
    except Exception as error:  # transformers checks some values only here
        raise CheckpointError(f"{folder / 'config.json'}: transformers cannot build this model ({error})") from error
    check_weights(folder, weights, model)
    contract = read_json(folder / "preprocessor_config.json", required=False)
    preprocessing = Preprocessing.from_config(contract)
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels)) if classes else ()
    stated = license_of(folder)
    origin = Origin(source, sha.hexdigest(), revision, image_size, license=stated.name)
    return replace(_checkpoint(origin, config, weights, preprocessing, labels), license_files=stated.files)


def random_checkpoint(preset: str, *, seed: int = 0, image_size: int | None = None) -> Checkpoint:
    """An encoder with seeded random weights, for latency, size and memory; its accuracy means nothing.

    Args:
        preset: `vit-{tiny,small,base,large}-patch{N}-{image size}`, such as `vit-base-patch16-224`.
        seed: Of torch's generator.
        image_size: As in `load_checkpoint`.

    Raises:
        CheckpointError: No such preset.
    """
    match = re.fullmatch(r"vit-(\w+)-patch(\d+)-(\d+)", preset)
    if not match or match[1] not in _PRESETS or not 0 < int(match[2]) <= int(match[3]) <= 4096:
        raise CheckpointError(
            f"--random-weights {preset}: expected vit-SIZE-patchN-PIXELS with SIZE one of {', '.join(_PRESETS)},"
            " such as vit-base-patch16-224"
        )
    hidden, layers, heads, intermediate = _PRESETS[match[1]]
    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate,
        patch_size=int(match[2]),
        image_size=int(match[3]),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = ViTModel(config).state_dict()
    digest = hashlib.sha256(f"random {preset} {seed}".encode()).hexdigest()
    origin = Origin(preset, digest, image_size=image_size, random_weights=True, seed=seed)
    return _checkpoint(origin, config, weights, Preprocessing.from_config({}), ())


def _checkpoint(
    origin: Origin,
    config: ViTConfig,
    weights: Mapping[str, torch.Tensor],
    preprocessing: Preprocessing,
    labels: tuple[str, ...],
) -> Checkpoint:
    """Puts the parts together; the image size is the one asked for, or the config's."""
    height, width = _pair(origin.image_size or config.image_size)
    preprocessing = replace(preprocessing, height=height, width=width)
    shape = _shape(config, weights, preprocessing, len(labels))
    encoder = Encoder(shape, _fused_tensors(shape, config, weights))
    return Checkpoint(origin, config, weights, encoder, preprocessing, labels)


def _is_classifier(config: ViTConfig, weights: Mapping[str, torch.Tensor], folder: Path) -> bool:
    named = "ViTForImageClassification" in (config.architectures or ())
    if named and "classifier.weight" not in weights:
        raise CheckpointError(f"{folder}: config.json says ViTForImageClassification, but classifier.weight is missing")
    return named


def _without_weights(config: ViTConfig, classes: bool, pooler: bool) -> Any:
    """Transformers' model without memory for its weights."""
    with torch.device("meta"):
        return ViTForImageClassification(config) if classes else ViTModel(config, add_pooling_layer=pooler)


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _activation(name: Any) -> str:
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"activation {name}: expected one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _shape(
    config: ViTConfig, weights: Mapping[str, torch.Tensor], preprocessing: Preprocessing, classes: int
) -> EncoderShape:
    patch_height, patch_width = _pair(config.patch_size)
    if config.num_channels != 3:
        raise CheckpointError(f"config.json: expected num_channels 3 (RGB), found {config.num_channels}")
    pooler = 0 if classes or "pooler.dense.weight" not in weights else int(config.pooler_output_size)
    if preprocessing.height < patch_height or preprocessing.width < patch_width:
        raise CheckpointError(
            f"an image of {preprocessing.height}×{preprocessing.width} is smaller than a patch of"
            f" {patch_height}×{patch_width}; pass a larger --image-size"
        )
    return EncoderShape(
        image_height=preprocessing.height,
        image_width=preprocessing.width,
        channels=int(config.num_channels),
        patch_height=patch_height,
        patch_width=patch_width,
        hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        intermediate=int(config.intermediate_size),
        activation=_activation(config.hidden_act),
        layer_norm_eps=float(config.layer_norm_eps),
        pooler=pooler,
        pooler_activation=_activation(config.pooler_act),
        classes=classes,
    )


def _fused_tensors(
    shape: EncoderShape, config: ViTConfig, weights: Mapping[str, torch.Tensor]
) -> dict[str, FloatArray]:
    """Transformers' weights under vitedge's names: query, key and value in one linear, positions at the image size."""

    def array(name: str) -> FloatArray:
        return weights[name].numpy()

    def qkv(layer: int, part: str) -> NDArray[np.float32]:
        names = [f"layers.{layer}.attention.{letter}_proj.{part}" for letter in "qkv"]
        if part == "bias" and not config.qkv_bias:
            return np.zeros(3 * shape.hidden, np.float32)
        return np.concatenate([array(name) for name in names])

    tensors = {
        "cls_token": array("embeddings.cls_token").reshape(-1),
        "position_embeddings": _positions(shape, config, weights["embeddings.position_embeddings"]),
        "patch_embedding.weight": array("embeddings.patch_embeddings.projection.weight").reshape(shape.hidden, -1),
        "patch_embedding.bias": array("embeddings.patch_embeddings.projection.bias"),
    }
    for name in shape.tensor_shapes:
        if ".attention.qkv." in name:
            tensors[name] = qkv(int(name.split(".")[1]), name.rpartition(".")[2])
        elif name not in tensors:
            tensors[name] = array(name)
    return tensors


def _positions(shape: EncoderShape, config: ViTConfig, positions: torch.Tensor) -> FloatArray:
    """Positions [tokens, hidden] at the shape's image size, interpolated by transformers' own rule (bicubic)."""
    if (shape.image_height, shape.image_width) == _pair(config.image_size):
        return positions[0].numpy()
    old_height, old_width = _pair(config.image_size)
    if old_height != old_width or shape.patch_height != shape.patch_width:
        raise CheckpointError("--image-size: only square images with square patches can be interpolated")
    side = old_height // shape.patch_height
    grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, size=shape.grid, mode="bicubic", align_corners=False)
    return torch.cat((positions[0, :1], grid[0].flatten(1).T)).numpy()
