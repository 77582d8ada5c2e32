"""Checkpoints: every accepted form computes what transformers computes; every bad one says what is wrong."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import REAL_ENCODER, needs_shared, random_pixels, rename_weights, save_checkpoint
from vitedge.converters.checkpoint import load_checkpoint, random_checkpoint
from vitedge.quantization.encoder import float_linear, forward
from vitedge.runtimes.errors import CheckpointError

OLD_NAMES = {
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def assert_agrees(checkpoint, count=2, atol=2e-5):
    pixels = random_pixels(checkpoint.encoder.shape, count)
    expected = checkpoint.reference()(pixels)
    found = forward(checkpoint.encoder, pixels, float_linear(checkpoint.encoder))
    assert list(found) == list(expected) == list(checkpoint.encoder.shape.outputs)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=atol)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"patch_size": 32, "image_size": 96},
        {"qkv_bias": False},
        {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 64, "num_hidden_layers": 3},
        {"image_size": 45, "patch_size": 7},
        {"pooler_output_size": 12, "pooler_act": "relu"},
        *({"hidden_act": name} for name in ("gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")),
    ],
    ids=str,
)
def test_every_shape_agrees_with_transformers(tmp_path, config):
    assert_agrees(load_checkpoint(str(save_checkpoint(tmp_path / "m", **config))))


def test_image_size_384_by_position_interpolation(tmp_path):
    folder = save_checkpoint(tmp_path / "m", image_size=224, patch_size=32)
    checkpoint = load_checkpoint(str(folder), image_size=384)
    assert checkpoint.encoder.shape.tokens == 12 * 12 + 1
    assert (checkpoint.preprocessing.height, checkpoint.preprocessing.width) == (384, 384)
    assert_agrees(checkpoint)


def test_old_key_names_are_the_same_model(tmp_path):
    new = load_checkpoint(str(save_checkpoint(tmp_path / "new")))
    folder = save_checkpoint(tmp_path / "old")
    rename_weights(folder, OLD_NAMES)
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(folder / "model.safetensors")
    old = load_checkpoint(str(folder))
    for name, tensor in new.encoder.tensors.items():
        np.testing.assert_array_equal(tensor, old.encoder.tensors[name])


def test_a_classifier_has_logits_and_labels(tmp_path):
    checkpoint = load_checkpoint(str(save_checkpoint(tmp_path / "m", classes=7)))
    assert list(checkpoint.encoder.shape.outputs) == ["last_hidden_state", "logits"]
    assert len(checkpoint.labels) == 7
    assert_agrees(checkpoint)


def test_no_pooler_weights_no_pooler_output(tmp_path):
    checkpoint = load_checkpoint(str(save_checkpoint(tmp_path / "m", pooler=False)))
    assert list(checkpoint.encoder.shape.outputs) == ["last_hidden_state"]


def test_half_precision_weights_become_float32(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    path = folder / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    assert all(tensor.dtype == np.float32 for tensor in load_checkpoint(str(folder)).encoder.tensors.values())


def test_shards_are_read_and_paths_out_of_the_folder_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    expected = load_checkpoint(str(folder))
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: tensors[name] for name in held}, folder / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_checkpoint(str(folder))
    np.testing.assert_array_equal(loaded.encoder.tensors["cls_token"], expected.encoder.tensors["cls_token"])
    for wrong in ("../m/a.safetensors", ["a.safetensors"], 1):
        index.write_text(json.dumps({"weight_map": {**weight_map, names[0]: wrong}}))
        with pytest.raises(CheckpointError, match="files beside it"):
            load_checkpoint(str(folder))


def test_two_weights_of_one_name_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    old = {f"vit.{name}": tensor.clone() for name, tensor in tensors.items() if name == "layernorm.weight"}
    save_file({**tensors, **old}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"two weights are layernorm\.weight: (vit\.)?layernorm\.weight and (vit\.)?layer"
    ):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" " * (65 << 20), "expected at most 67108864 bytes"), (b"[" * 200_000, "expected a JSON")],
)
def test_config_that_no_parser_should_see(tmp_path, content, message):
    folder = save_checkpoint(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder))


def test_random_weights_are_seeded():
    first, again, other = (random_checkpoint("vit-tiny-patch32-64", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(
        first.encoder.tensors["layers.0.mlp.fc1.weight"], again.encoder.tensors["layers.0.mlp.fc1.weight"]
    )
    assert first.origin.digest == again.origin.digest != other.origin.digest
    assert first.origin.random_weights
    assert_agrees(first)


def test_the_base_preset_is_the_in21k_encoder():
    shape = random_checkpoint("vit-base-patch16-224").encoder.shape
    assert (shape.hidden, shape.layers, shape.heads, shape.intermediate, shape.tokens) == (768, 12, 12, 3072, 197)
    assert dict(shape.outputs) == {"last_hidden_state": (197, 768), "pooler_output": (768,)}


@pytest.mark.parametrize("preset", ["vit-giant-patch16-224", "base", "vit-base-patch16-0", "vit-base-patch64-32"])
def test_unknown_presets_are_refused(preset):
    with pytest.raises(CheckpointError, match="such as vit-base-patch16-224"):
        random_checkpoint(preset)


@needs_shared
def test_the_real_encoder_agrees_with_transformers():
    checkpoint = load_checkpoint(str(REAL_ENCODER))
    assert list(checkpoint.encoder.shape.outputs) == ["last_hidden_state"]
    assert checkpoint.preprocessing.mean == (0.485, 0.456, 0.406)
    assert_agrees(checkpoint, count=1, atol=5e-4)


def test_no_such_folder():
    with pytest.raises(CheckpointError, match=r"no such folder.*config\.json"):
        load_checkpoint("/nowhere/at/all")


def test_an_unreachable_hub_says_how_to_pass_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"google/vit-base-patch16-224-in21k.*pass their folder"):
        load_checkpoint("google/vit-base-patch16-224-in21k")


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "dinov2"}, "expected model_type vit"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
        ({"hidden_act": "mish"}, "activation mish"),
        ({"num_channels": 1}, "num_channels|misshapen"),
        ({"hidden_size": 96}, "expected shape"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "have no place"),
        ({"architectures": ["ViTForImageClassification"]}, r"classifier\.weight is missing"),
        ({"architectures": 5}, "expected model_type vit"),
        ({"architectures": [["ViTModel"]]}, "expected model_type vit"),
        ({"num_hidden_layers": 10**12}, "expected num_hidden_layers to be a number from 1 to 512, found 1000000000000"),
        ({"num_hidden_layers": 0}, "expected num_hidden_layers"),
        ({"num_attention_heads": 0}, "expected num_attention_heads"),
        ({"patch_size": 0}, "expected patch_size to be one or two numbers"),
        ({"image_size": [32]}, r"expected image_size to be one or two numbers from 1 to 16384, found .32"),
        ({"layer_norm_eps": float("nan")}, "expected layer_norm_eps between 0 and 1, found nan"),
        ({"layer_norm_eps": -1.0}, "expected layer_norm_eps"),
        ({"id2label": {"5": "cat", "7": "dog"}}, r"expected id2label to number 2 classes from 0, found \[5, 7\]"),
    ],
    ids=str,
)
def test_other_architectures_and_misfits_are_named(tmp_path, changes, message):
    folder = save_checkpoint(tmp_path / "m")
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder))


def test_pickles_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*never loaded"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_damaged_weights(tmp_path, content):
    folder = save_checkpoint(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_checkpoint(str(folder))


def test_weights_that_are_not_finite(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["layernorm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layernorm\.weight"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dropout_prob": 5.0}, "transformers cannot build this model"),
        ({"_attn_implementation": "foo"}, "transformers cannot build this model"),
        ({"num_channels": -1}, "transformers cannot build this model|num_channels|channels"),
        ({"num_labels": 10**12}, "expected num_labels to be a number from 1 to 1048576, found 1000000000000"),
    ],
)
def test_values_that_transformers_fails_with(tmp_path, changes, message):
    save_checkpoint(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(tmp_path))
