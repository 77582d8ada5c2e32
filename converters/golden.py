"""Writes golden vectors (`runtimes/golden.py`): a build writes images and FP32, bundles add what artifacts gave.

Tolerances are calibrated, not chosen: on another CPU floats round otherwise, and with them which integer a value
becomes, which is like a tiny change of the input. So an artifact runs on inputs that are changed a little, and each
output of a device may be as far from FP32 as twice the worst of these runs. That is one bound, calibrated here; it is
written down for each kind of CPU on which it holds (`runtimes/instruction_sets.py`); a kind that is missing has none:

- x86-vnni, arm64-dotprod, arm64: always. None adds in 16 bits, so the integer sums are the same, and what differs is
  how floats round: as if the input changed in its last bits, which is what was calibrated.
- x86: where the certificate proves that no pair saturates, or the wrapper takes kernels that cannot: the same sums.
  Else there is none, as how often pairs saturate depends on the image.
- any: for apps, and for CPUs that do not tell what they are.

A bound of its own for each kind would be nearly the same one: x86 without VNNI, a Cortex-A72 and a Neoverse-N1 are
within 0.1 dB of each other for the tests' model, and 0.4 for a real one (`docs/measurements.md`), where the bound
allows 3.

It does not allow for float16 or bfloat16 in particular, nor needs to: the noise of INT8 is larger. On a CPU that has
bfloat16 (Zen 4) OpenVINO's changed 38.7 dB of the tests' model to 38.3, less than the inputs' last bits do.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from vitedge.calibration.images import ImageSet, spread
from vitedge.runtimes.errors import ArtifactError
from vitedge.runtimes.file_records import files_below, files_to_json
from vitedge.runtimes.golden import (
    FORMAT,
    GOLDEN_FILE,
    REFERENCE,
    ArrayRecord,
    Golden,
    GoldenImage,
    Tolerance,
    load_golden,
)
from vitedge.runtimes.image import read_image
from vitedge.runtimes.instruction_sets import ANY, X86
from vitedge.runtimes.load import load_encoder
from vitedge.runtimes.manifest import load_manifest
from vitedge.runtimes.resize import Pixels, resize
from vitedge.runtimes.selftest import Fidelity, fidelity

if TYPE_CHECKING:  # a bundle is made without torch
    from vitedge.converters.checkpoint import Checkpoint

IMAGES = 8
_LONGEST_SIDE = 1024  # a bundle travels; larger photographs are reduced first
_NOISE_RUNS = 4
# What floats of another CPU differ by, even where an artifact is as good as FP32.
_MAX_COSINE, _MAX_SQNR_DB = 1 - 1e-4, 60.0


def write_reference(folder: Path, checkpoint: "Checkpoint", images: ImageSet) -> None:
    """Writes up to 8 images, taken evenly, and what PyTorch makes of them in FP32, into a folder to make.

    Args:
        folder: Folder to make.
        checkpoint: The encoder, and its preprocessing.
        images: Where to take them from.
    """
    (folder / "images").mkdir(parents=True)
    (folder / "pixels").mkdir()
    contract = checkpoint.preprocessing
    pictures, arrays = [], []
    for index, path in enumerate(spread(images.paths, IMAGES)):
        pixels = _reduced(read_image(path))
        picture = GoldenImage(path.name, f"images/{index}.png", f"pixels/{index}.bin", *pixels.shape[:2])
        encoded, data = cv2.imencode(".png", pixels[:, :, ::-1])
        assert encoded, "8-bit RGB is a PNG"
        (folder / picture.file).write_bytes(data.tobytes())
        (folder / picture.pixels).write_bytes(pixels.tobytes())
        pictures.append(picture)
        arrays.append(pixels)
    given = {
        "resized": replace(contract, dtype="uint8").batch(arrays),
        "pixel_values": replace(contract, dtype="float32").batch(arrays),
    }
    layouts = {"resized": "NHWC", "pixel_values": "NCHW"}
    inputs = {name: _write(folder, f"{name}.bin", array, layouts[name]) for name, array in given.items()}
    outputs = checkpoint.reference()(given["resized" if contract.dtype == "uint8" else "pixel_values"])
    golden = Golden(
        folder=folder,
        preprocessing=contract,
        source_digest=checkpoint.origin.digest,
        images=tuple(pictures),
        inputs=inputs,
        outputs={REFERENCE: _write_outputs(folder, REFERENCE, outputs)},
        tolerances={},
        files={},
    )
    _save(golden)


def write_with_artifacts(source: Path, artifacts: Mapping[str, Path], folder: Path, *, kind: str) -> Golden:
    """Copies a build's golden vectors into a folder to make, and adds outputs and tolerances of its artifacts.

    Args:
        source: A build's `golden` folder.
        artifacts: Artifact folders by the name that they get in the golden vectors, such as `onnx`.
        folder: Folder to make.
        kind: Of this CPU (`instruction_sets.kind_of`).

    Raises:
        ArtifactError: Damaged golden vectors, an artifact that is not of their encoder, or one that can saturate on
            this CPU, whose outputs here are nothing to compare a device with.
        RuntimeMissingError: The runtime of an artifact is not installed.
    """
    golden = load_golden(source)
    for path in artifacts.values():
        _check_origin(golden, path)
        _check_exact(path, kind)
    shutil.copytree(source, folder)
    golden = replace(golden, folder=folder)
    expected = golden.expected()
    outputs, tolerances = {}, {}
    for name, path in artifacts.items():
        encoder = load_encoder(path)
        found = encoder(golden.encoder_input())
        outputs[name] = _write_outputs(folder, name, {key: found[key] for key in expected})
        runs = [found, *(encoder(noisy) for noisy in _noisy(golden.encoder_input()))]
        bounds = {key: tolerance([fidelity(wanted, run[key]) for run in runs]) for key, wanted in expected.items()}
        tolerances[name] = dict.fromkeys((*encoder.manifest.exact_in_wrapper, ANY), bounds)
    golden = replace(golden, outputs={**golden.outputs, **outputs}, tolerances=tolerances)
    _save(golden)
    return load_golden(folder)


def tolerance(runs: list[Fidelity]) -> Tolerance:
    """Twice as far from FP32 as the worst of some runs on the host: in cosine, and in noise (3 dB)."""
    cosine = min(run.cosine_worst for run in runs)
    sqnr_db = min(run.sqnr_db for run in runs)
    return Tolerance(min(1 - 2 * (1 - cosine), _MAX_COSINE), min(sqnr_db - 10 * np.log10(2).item(), _MAX_SQNR_DB))


def _noisy(inputs: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Inputs changed as rounding changes them: floats by a few of their last bits, pixels by a level in a thousand."""
    generator = np.random.default_rng(0)
    for _ in range(_NOISE_RUNS):
        if inputs.dtype == np.uint8:
            steps = (generator.random(inputs.shape) < 1e-3) * generator.choice([-1, 1], inputs.shape)
            yield np.clip(inputs.astype(np.int16) + steps, 0, 255).astype(np.uint8)
        else:
            yield inputs + generator.normal(0, 1e-6, inputs.shape).astype(np.float32)


def _check_origin(golden: Golden, path: Path) -> None:
    manifest = load_manifest(path)
    if manifest.source.digest != golden.source_digest or manifest.preprocessing != golden.preprocessing:
        raise ArtifactError(
            f"{path}: not of the encoder, or not of the preprocessing, that {golden.folder} was made with; take both"
            " from one build"
        )


def _check_exact(path: Path, kind: str) -> None:
    manifest = load_manifest(path)
    if kind in (X86, ANY) and X86 not in manifest.exact_in_wrapper:
        what = "x86 without VNNI" if kind == X86 else "which may be x86 without VNNI"
        raise ArtifactError(
            f"{path}: made for {manifest.target}; on this CPU, {what}, {len(manifest.saturation.unsafe)} of"
            " its integer products can saturate, so that what it gives here is no measure for a device; leave it out,"
            " do this on a host with VNNI or on ARM64, or build with --target avx2"
        )


def _reduced(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    factor = _LONGEST_SIDE / max(height, width)
    if factor >= 1:
        return np.ascontiguousarray(pixels)
    return resize(pixels, max(1, round(height * factor)), max(1, round(width * factor)), "bilinear")


def _write(folder: Path, name: str, array: NDArray[Any], layout: str) -> ArrayRecord:
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    (folder / name).write_bytes(little.tobytes())
    return ArrayRecord(name, array.dtype.name, array.shape, layout)


def _write_outputs(folder: Path, source: str, outputs: Mapping[str, NDArray[Any]]) -> dict[str, ArrayRecord]:
    (folder / source).mkdir()
    return {
        name: _write(folder, f"{source}/{name}.bin", values.astype(np.float32), "NTD" if values.ndim == 3 else "ND")
        for name, values in outputs.items()
    }


def _save(golden: Golden) -> None:
    """Writes `golden.json`, with the hashes of all files as they are now."""
    files = files_below(golden.folder)
    files.pop(GOLDEN_FILE, None)
    document = {
        "format": FORMAT,
        "preprocessing": golden.preprocessing.to_json(),
        "source_digest": golden.source_digest,
        "images": [asdict(image) for image in golden.images],
        "inputs": {name: asdict(record) for name, record in golden.inputs.items()},
        "outputs": {
            source: {name: asdict(record) for name, record in named.items()} for source, named in golden.outputs.items()
        },
        "tolerances": {
            runtime: {kind: {name: asdict(bound) for name, bound in bounds.items()} for kind, bounds in named.items()}
            for runtime, named in golden.tolerances.items()
        },
        "files": files_to_json(files),
    }
    text = json.dumps(document, indent=1, allow_nan=False)
    (golden.folder / GOLDEN_FILE).write_text(text + "\n", encoding="utf-8")
