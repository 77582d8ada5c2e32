"""Writing artifacts: manifests, and folders that are replaced whole or not at all.

A build writes into a hidden folder beside its destination and renames at the end, so that a build that fails, is
interrupted or killed leaves what was there before. Only a folder that vitedge made (a build holds `report.json` of our
format, other folders their own mark) is ever replaced.
"""

import errno
import glob
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import vitedge
from vitedge.converters.checkpoint import Checkpoint
from vitedge.quantization.encoder import EncoderShape
from vitedge.quantization.integer_grid import Grid
from vitedge.quantization.saved_plan import SavedPlan
from vitedge.runtimes.errors import OutputError, VitedgeError
from vitedge.runtimes.manifest import FileRecord, Manifest, Operations, TensorRecord, sha256_of
from vitedge.runtimes.saturation import Saturation

REPORT_FILE, REPORT_FORMAT = "report.json", "vitedge-report/1"
_NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS)
_PROBE_BYTES = 1 << 20
_TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "openvino", "ai-edge-litert", "numpy")
# What integers that can saturate assume of the CPU; those that are proven safe assume nothing.
_EXACT_WITH = ("avx512_vnni", "avx_vnni", "asimd")


class Mark(NamedTuple):
    """What shows that vitedge made a folder: a JSON file in it, its format, and what the folder is called."""

    file: str
    format: str
    what: str


BUILD = Mark(REPORT_FILE, REPORT_FORMAT, "vitedge build")


@contextmanager
def replacing_folder(out: Path, mark: Mark = BUILD) -> Iterator[Path]:
    """Yields a fresh folder that becomes `out` when the block ends without an exception, and vanishes otherwise.

    Raises:
        OutputError: `out` exists and has no such mark, or cannot be written (a full disk, no permission).
    """
    _recover(out)
    check_replaceable(out, mark)
    old, new = (out.parent / f".{out.name}.{kind}-{os.getpid()}" for kind in ("old", "new"))
    try:
        new.mkdir(parents=True)
        yield new
        _sync(new)
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    except VitedgeError:
        raise
    except Exception as error:
        refusal = error if isinstance(error, OSError) and error.errno in _NOT_WRITABLE else _refused_write(new)
        if refusal is None:
            raise
        raise OutputError(
            f"{out}: cannot be written ({refusal.strerror or refusal}); what was there before is unchanged"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(out: Path, mark: Mark = BUILD) -> None:
    """Refuses a destination that holds something that vitedge did not build.

    Raises:
        OutputError: It does.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        found = json.loads((out / mark.file).read_text(encoding="utf-8"))
        ours = isinstance(found, dict) and found.get("format") == mark.format
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out}: exists and is not a {mark.what} (no {mark.file} of ours in it); pass another --out, or remove it"
        )


def build_manifest(
    folder: Path,
    files: tuple[str, ...],
    *,
    runtime: str,
    minimum_runtime: str,
    checkpoint: Checkpoint,
    plan: SavedPlan,
    operations: Operations,
    saturation: Saturation,
    batch: int | None,
    calibration: Mapping[str, Any],
    grids: Mapping[str, Grid] = MappingProxyType({}),
) -> Manifest:
    """The manifest of freshly converted model files; `grids` are those of inputs and outputs that are integers."""
    shape = checkpoint.encoder.shape
    layout = "NHWC" if runtime == "tflite" or shape.uint8_input else "NCHW"
    sizes = {"N": batch or "batch", "C": shape.channels, "H": shape.image_height, "W": shape.image_width}
    if runtime == "tflite":
        sizes["N"] = batch or 1
    records = tuple(FileRecord(name, sha256_of(folder / name), (folder / name).stat().st_size) for name in files)

    def tensor(name: str, dims: tuple[int | str, ...], layout: str, dtype: str = "float32") -> TensorRecord:
        grid = grids.get(name)
        if grid is None:
            return TensorRecord(name, dtype, dims, layout)
        return TensorRecord(name, f"int{grid.bits}", dims, layout, grid.scale, grid.zero_point)

    return Manifest(
        runtime=runtime,
        precision="int8" if operations.integer else "fp32",
        target=plan.target,
        instruction_sets=("any",) if saturation.proven_safe else _EXACT_WITH,
        minimum_runtime=minimum_runtime,
        files=records,
        inputs=(tensor("pixel_values", tuple(sizes[x] for x in layout), layout, checkpoint.preprocessing.dtype),),
        outputs=tuple(
            tensor(name, (sizes["N"], *dims), "NTD" if len(dims) == 2 else "ND") for name, dims in shape.outputs.items()
        ),
        preprocessing=checkpoint.preprocessing,
        labels=checkpoint.labels,
        operations=operations,
        saturation=saturation,
        source=asdict(checkpoint.origin),
        calibration=calibration,
        plan_digest=plan.digest(),
        tools={"vitedge": vitedge.__version__, **{name: importlib.metadata.version(name) for name in _TOOLS}},
    )


def operations_of(shape: EncoderShape, integer: tuple[str, ...], integer_scores: int = 0) -> Operations:
    """Integer modules, float ones with the reason, and multiply-accumulates per image of each kind; in so many layers
    attention scores are integer.
    """
    tensor_shapes = shape.tensor_shapes
    macs = {
        name: rows * tensor_shapes[f"{name}.weight"][0] * tensor_shapes[f"{name}.weight"][1]
        for name, rows in shape.linears.items()
    }
    reasons = {name: "float by the plan" if integer else "FP32 model" for name in macs if name not in integer}
    by_design = {
        **_float_attention(shape.layers, integer_scores),
        "softmax, LayerNorm, GELU, residual adds": "outliers live here, and the CPU kernels are float",
    }
    return Operations(
        integer=integer,
        floating={**reasons, **by_design},
        integer_macs=sum(macs[name] for name in integer) + shape.attention_macs // 2 // shape.layers * integer_scores,
        total_macs=sum(macs.values()) + shape.attention_macs,
    )


def _float_attention(layers: int, integer_scores: int) -> dict[str, str]:
    if integer_scores == 0:
        return {"attention scores and context": "two MatMuls of activations, a few percent of the work, around softmax"}
    reasons = {"attention context": "probabilities times values: 8 bits are too coarse for probabilities"}
    if integer_scores < layers:
        reasons["attention scores"] = f"in {layers - integer_scores} of {layers} layers, where qkv is float by the plan"
    return reasons


def _recover(out: Path) -> None:
    """Puts back what a build that was killed between its two renames had set aside."""
    set_aside = sorted(out.parent.glob(f".{glob.escape(out.name)}.old-*"))
    if set_aside and not out.exists():
        set_aside[-1].rename(out)


def _refused_write(folder: Path) -> OSError | None:
    """Why the disk takes nothing more, if so: the toolchains' writers hide it (OpenVINO says "iostream error")."""
    try:
        with (folder / "probe").open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            os.fsync(file.fileno())
    except OSError as error:
        return error
    return None


def _sync(folder: Path) -> None:
    """Flushes every file to the disk, so that a full disk is an error now and not an empty file later."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
