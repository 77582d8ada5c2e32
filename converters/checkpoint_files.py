"""The files of a checkpoint: config, preprocessing and weights, read without trust, from a folder or from the hub.

Only safetensors files are read; pickles can run code and are refused. Both generations of key names are accepted:
`encoder.layer.0.attention.attention.query` (before transformers 5) and `layers.0.attention.q_proj`.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import ViTConfig

from vitedge.runtimes.errors import CheckpointError

_ARCHITECTURES = ("ViTModel", "ViTForImageClassification")
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_LICENSE_FILES = ("README.md", "LICENSE*")  # what `license.py` reads
_HUB_FILES = ("config.json", "preprocessor_config.json", *_WEIGHT_FILES, *_LICENSE_FILES)
_MAX_JSON_BYTES = 64 << 20
# Far beyond any ViT, and small enough that nothing made from one of them alone exhausts the machine.
_LARGEST = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_attention_heads": 1 << 10,
    "num_hidden_layers": 512,
}
_LARGEST_SIDE = 1 << 14
_MOST_LABELS = 1 << 20

# Old key names to new ones, applied in order to names without the "vit." prefix.
_RENAMES = (
    (r"^encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"\.attention\.attention\.(query|key|value)\.", lambda m: f".attention.{m[1][0]}_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"^(layers\.\d+)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)


def download(hub_id: str, revision: str | None) -> Path:
    """The folder of a hub id's files; raises `CheckpointError` where the hub does not deliver."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and needed only for hub ids

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors and those of its HTTP client derive from these
        raise _unreachable(hub_id, error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpcore", "requests", "huggingface_hub"):
            raise _unreachable(hub_id, error) from error
        raise


def _unreachable(hub_id: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{hub_id}: not a folder here, and the hub could not deliver it ({type(error).__name__}). Without a network,"
        " download config.json, preprocessor_config.json and model.safetensors elsewhere and pass their folder"
    )


def read_json(path: Path, *, required: bool = True) -> dict[str, Any]:
    """A JSON object; empty if the file is missing and not required."""
    if not path.exists() and not required:
        return {}
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: expected at most {_MAX_JSON_BYTES} bytes, found {path.stat().st_size}")
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON file ({error})") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def read_config(folder: Path) -> ViTConfig:
    """The configuration of a ViT; raises `CheckpointError` for any other architecture."""
    document = read_json(folder / "config.json")
    architectures = document.get("architectures") or list(_ARCHITECTURES[:1])
    known = isinstance(architectures, list) and any(name in _ARCHITECTURES for name in architectures)
    if document.get("model_type") != "vit" or not known:
        raise CheckpointError(
            f"{folder / 'config.json'}: expected model_type vit and one of {', '.join(_ARCHITECTURES)}, found"
            f" model_type {document.get('model_type')} and {architectures}"
        )
    labels = document.get("num_labels")
    if labels is not None and not _is_size(labels, _MOST_LABELS):  # transformers makes a name for each
        raise CheckpointError(
            f"{folder / 'config.json'}: expected num_labels to be a number from 1 to {_MOST_LABELS}, found {labels!r}"
        )
    try:
        config = ViTConfig.from_dict(document)
        config.hidden_act, config.pooler_act  # noqa: B018 - both must exist
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'}: not a valid ViT configuration ({error})") from error
    _check_values(folder / "config.json", config)
    return config


def _check_values(path: Path, config: ViTConfig) -> None:
    """Refuses values that transformers takes, and fails with later or allocates without end."""
    for name, most in _LARGEST.items():
        value = getattr(config, name)
        if not _is_size(value, most):
            raise CheckpointError(f"{path}: expected {name} to be a number from 1 to {most}, found {value!r}")
    for name in ("image_size", "patch_size"):
        value = getattr(config, name)
        sides = value if isinstance(value, list | tuple) else (value, value)
        if len(sides) != 2 or not all(_is_size(side, _LARGEST_SIDE) for side in sides):
            raise CheckpointError(
                f"{path}: expected {name} to be one or two numbers from 1 to {_LARGEST_SIDE}, found {value!r}"
            )
    epsilon = config.layer_norm_eps
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:  # NaN is in no range
        raise CheckpointError(f"{path}: expected layer_norm_eps between 0 and 1, found {epsilon!r}")
    classes = sorted(config.id2label)
    if classes != list(range(len(classes))):
        raise CheckpointError(f"{path}: expected id2label to number {len(classes)} classes from 0, found {classes[:9]}")


def _is_size(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def read_weights(folder: Path) -> tuple[dict[str, torch.Tensor], "hashlib._Hash"]:
    """All tensors as float32 by their name in the files, and the running hash of those files."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not shards or any(not isinstance(name, str) or Path(name).name != name for name in shards):
            raise CheckpointError(f"{index}: expected a weight_map to files beside it")
        names = sorted(set(shards))
    else:
        names = ["model.safetensors"]
    if not all((folder / name).is_file() for name in names):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        found = f"found only {', '.join(pickles)}: pickles can run code and are never loaded; " if pickles else ""
        raise CheckpointError(f"{folder}: expected weights in {', '.join(names)}; {found}save them as safetensors")
    tensors: dict[str, torch.Tensor] = {}
    sha = hashlib.sha256()
    for name in names:
        try:
            tensors |= load_file(folder / name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder / name}: not a readable safetensors file ({error})") from error
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 22):
                sha.update(block)
    return {name: tensor.float() for name, tensor in tensors.items()}, sha


def renamed(folder: Path, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights by the names of transformers 5, without the prefix of classifiers.

    Raises:
        CheckpointError: Two come to one name.
    """
    renamed: dict[str, torch.Tensor] = {}
    names: dict[str, str] = {}
    for name, tensor in weights.items():
        new_name = name.removeprefix("vit.")
        for pattern, replacement in _RENAMES:
            new_name = re.sub(pattern, replacement, new_name)
        if new_name in renamed:
            raise CheckpointError(f"{folder}: two weights are {new_name}: {names[new_name]} and {name}")
        names[new_name] = name
        renamed[new_name] = tensor
    renamed.pop("embeddings.mask_token", None)  # used only in masked pretraining
    return renamed


def check_weights(folder: Path, weights: Mapping[str, torch.Tensor], model: Any) -> None:
    """Refuses weights that are missing, superfluous, misshapen or not finite for transformers' `model`."""
    expected = {name.removeprefix("vit."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = sorted(expected.keys() - weights.keys())
    unexpected = sorted(weights.keys() - expected.keys())
    misshapen = [n for n in expected if n in weights and tuple(weights[n].shape) != expected[n]]
    if missing:
        raise CheckpointError(f"{folder}: {len(missing)} weights that config.json implies are missing: {missing[:3]}")
    if misshapen:
        name = misshapen[0]
        raise CheckpointError(
            f"{folder}: weight {name}: expected shape {list(expected[name])} from config.json, found"
            f" {list(weights[name].shape)} ({len(misshapen)} misshapen in all)"
        )
    if unexpected:
        raise CheckpointError(
            f"{folder}: {len(unexpected)} weights have no place in a {type(model).__name__} of this config:"
            f" {unexpected[:3]}; is it another architecture?"
        )
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{folder}: weights hold NaN or infinity: {broken[:3]}")
