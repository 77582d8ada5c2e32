"""Tiny seeded models and images that the tests build in code."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from vitedge.converters.checkpoint import Checkpoint
from vitedge.quantization.encoder import Encoder, EncoderShape, FloatArray
from vitedge.quantization.plan import Plan
from vitedge.quantization.quantize import Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS, Recipe

SHARED = Path(__file__).parents[2] / "shared"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the workshop's real encoder and photographs are not here"
)
REAL_ENCODER = SHARED / "models" / "vit-s14-real"
PHOTOGRAPHS = SHARED / "images"

SHAPE = EncoderShape(
    image_height=32,
    image_width=32,
    channels=3,
    patch_height=8,
    patch_width=8,
    # A multiple of 16: OpenVINO 2026.4 crashes on other widths when oneDNN is limited to AVX2 (no ViT has one).
    hidden=48,
    layers=2,
    heads=3,
    intermediate=96,
    activation="gelu",
    layer_norm_eps=1e-6,
    pooler=48,
)

CONFIG: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
}


def random_encoder(shape: EncoderShape = SHAPE, seed: int = 0) -> Encoder:
    generator = np.random.default_rng(seed)

    def tensor(name: str, dims: tuple[int, ...]) -> FloatArray:
        spread = dims[-1] ** -0.5 if len(dims) == 2 else 0.2
        center = 1.0 if name.endswith(".weight") and len(dims) == 1 else 0.0
        return (center + spread * generator.standard_normal(dims)).astype(np.float32)

    return Encoder(shape, {name: tensor(name, dims) for name, dims in shape.tensor_shapes.items()})


def random_pixels(shape: EncoderShape = SHAPE, count: int = 4, seed: int = 1) -> FloatArray:
    dims = (count, shape.channels, shape.image_height, shape.image_width)
    return np.random.default_rng(seed).uniform(-1, 1, dims).astype(np.float32)


def planned(
    checkpoint: Checkpoint,
    target: str = "avx2",
    *,
    recipes: Mapping[str, Recipe] | None = None,
    pixels: FloatArray | None = None,
) -> tuple[Plan, Encoder]:
    """A plan of a tiny checkpoint with one strength of smoothing, calibrated on two random images unless others are
    given; and the smoothed encoder.
    """
    given = random_pixels(checkpoint.encoder.shape, count=2) if pixels is None else pixels
    return make_plan(
        checkpoint.encoder,
        Calibration(observe(checkpoint.encoder, [given]), lambda: [given], lambda: [given], (-1, 1), "images"),
        recipes=recipes or TARGETS[target],
        target=target,
        checkpoint_digest=checkpoint.origin.digest,
        strengths=(0.7,),
    )


def sqnr_db(expected: FloatArray, found: FloatArray) -> float:
    """Signal to noise of an output, in dB; infinite if they are equal."""
    noise = np.square(found.astype(np.float64) - expected).sum()
    return float(10 * np.log10(np.square(expected, dtype=np.float64).sum() / noise)) if noise else np.inf


def save_checkpoint(folder: Path, *, classes: int = 0, pooler: bool = True, seed: int = 0, **config: Any) -> Path:
    """Writes a random checkpoint as transformers 5 does; biases and norms are random too, so that mix-ups show."""
    torch.manual_seed(seed)
    vit_config = ViTConfig(**(CONFIG | config), **({"num_labels": classes} if classes else {}))
    model = ViTForImageClassification(vit_config) if classes else ViTModel(vit_config, add_pooling_layer=pooler)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(5)
    model.save_pretrained(folder)
    contract = {"size": {"height": vit_config.image_size, "width": vit_config.image_size}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(contract | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )
    return folder


def rename_weights(folder: Path, rename: dict[str, str]) -> None:
    """Rewrites a checkpoint's key names by replacing substrings, in order."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        new_name = name
        for old, new in rename.items():
            new_name = new_name.replace(old, new)
        renamed[new_name] = tensor.contiguous()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def save_images(folder: Path, count: int, *, classes: int = 1, seed: int = 0, size: int = 40) -> Path:
    """Writes smooth random PNGs, each class with a tint of its own, in a sub-folder per class if there are several."""
    generator = np.random.default_rng(seed)
    for index in range(count):
        label = index % classes
        coarse = generator.integers(0, 160, (5, 5, 3)).astype(np.uint8)
        image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_LINEAR)
        image[..., label % 3] = np.minimum(image[..., label % 3] + 90.0, 255).astype(np.uint8)
        target = folder / f"class{label}" if classes > 1 else folder
        target.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target / f"image{index:03}.png"), image)
    return folder


def variants() -> dict[str, EncoderShape]:
    """Shapes that differ in everything a ViTConfig can vary."""
    return {
        "pooler": SHAPE,
        "no pooler": replace(SHAPE, pooler=0),
        "classifier": replace(SHAPE, pooler=0, classes=7),
        "border": replace(SHAPE, image_height=45, image_width=37),
        "one layer, one head": replace(SHAPE, layers=1, heads=1),
        **{
            activation: replace(SHAPE, activation=activation)
            for activation in ("gelu_tanh", "quick_gelu", "relu", "silu")
        },
    }
