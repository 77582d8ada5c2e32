"""What a build is asked for, and which requests make no sense."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitedge.quantization.gates import NO_GATES, Gates
from vitedge.quantization.recipe import TARGETS, RangeMethod
from vitedge.quantization.search import Budget
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.manifest import RUNTIMES

NPU = "npu"
Activations = Literal["auto", "static", "dynamic", "int8", "int16"]
BATCHES = ("auto", "dynamic")
_CPU_ACTIVATIONS, _NPU_ACTIVATIONS = ("auto", "static", "dynamic"), ("auto", "int8", "int16")


@dataclass(frozen=True)
class BuildRequest:
    """What to build. `source` is a checkpoint folder or hub id, or a preset if `random_weights`.

    `plan` is a `plan.json` whose decisions replace the target's own; `activations` dynamic gives every linear a range
    per row, static none; int8 and int16 are for target npu, which makes TFLite files only, with `integer_io` ones
    whose input and outputs are integers. With `input` uint8 the encoder takes pixels as they are. `portable` ONNX files
    have standard operators only. Without `evaluation`, images of `images` that calibration did not take are held out to
    judge on. `batch` is a number or one of `BATCHES`, see `batch_for`. `bench_seconds` 0 skips the benchmark, as target
    npu does.
    """

    source: str
    images: Path
    out: Path
    evaluation: Path | None = None
    runtimes: tuple[str, ...] = RUNTIMES
    target: str = "avx2"
    plan: Path | None = None
    activations: Activations = "auto"
    integer_io: bool = False
    portable: bool = False
    input: Literal["float32", "uint8"] = "float32"
    ranges: RangeMethod = "min-max"
    calibration_images: int = 128
    image_size: int | None = None
    revision: str | None = None
    random_weights: bool = False
    seed: int = 0
    batch: int | str = "auto"
    keep_fp32: bool = False
    keep_failing: bool = False
    gates: Gates = NO_GATES
    bench_seconds: float = 8.0
    threads: int = 1

    def __post_init__(self) -> None:
        unknown = [runtime for runtime in self.runtimes if runtime not in RUNTIMES]
        if unknown or not self.runtimes:
            raise PlanError(f"--runtime: expected some of {', '.join(RUNTIMES)}, found {', '.join(unknown) or 'none'}")
        if self.target not in (*TARGETS, NPU):
            raise PlanError(f"--target: expected one of {', '.join((*TARGETS, NPU))}, found {self.target}")
        if self.target == NPU and self.runtimes != ("tflite",):
            raise PlanError(f"--target {NPU} makes TFLite files only: pass --runtime tflite, or no --runtime")
        if self.integer_io and self.target != NPU:
            raise PlanError(f"--integer-io is for --target {NPU}; the input and outputs of CPU artifacts are float")
        if self.input == "uint8" and self.target == NPU:
            raise PlanError(f"--input uint8 is for CPU targets; for --target {NPU} there is --integer-io")
        if self.portable and "onnx" not in self.runtimes:
            advice = "" if self.target == NPU else ", or add --runtime onnx"
            raise PlanError(f"--portable is for ONNX artifacts; leave it out{advice}")
        self._check_inputs()
        if self.random_weights and (self.gates.any or self.evaluation is not None):
            raise PlanError("--random-weights: there is no accuracy to judge; leave --eval and the gates out")
        if self.calibration_images < 1:
            raise PlanError(f"--calibration-images: expected at least 1, found {self.calibration_images}")
        if self.batch not in BATCHES and (not isinstance(self.batch, int) or self.batch < 1):
            raise PlanError(f"--batch: expected at least 1, or one of {', '.join(BATCHES)}, found {self.batch}")
        if not math.isfinite(self.bench_seconds):
            raise PlanError(f"--bench-seconds: expected a finite number, found {self.bench_seconds}")

    def _check_inputs(self) -> None:
        """Refuses what cannot be asked of how the inputs of linears are quantized."""
        known = _NPU_ACTIVATIONS if self.target == NPU else _CPU_ACTIVATIONS
        if self.activations not in known:
            expected = f"expected {', '.join(known)} for target {self.target}"
            raise PlanError(f"--activations: {expected}, found {self.activations}")
        if self.activations == "static" and "tflite" in self.runtimes:
            raise PlanError("--activations static: TFLite has no fixed input ranges; pass --runtime onnx,openvino")
        if self.plan is not None and (self.activations, self.ranges) != ("auto", "min-max"):
            raise PlanError("--plan decides how inputs are quantized; leave --activations and --ranges out, or edit it")
        if self.target == NPU and self.ranges != "min-max":
            raise PlanError(f"--ranges: target {NPU} has min-max ranges only; clipping is ruinous there")

    def batch_for(self, runtime: str) -> int | None:
        """The batch size of a runtime's files, or None for any; the bench's is 1 then.

        OpenVINO merges its transposes and reorders only where all sizes are known, which makes target avx2 faster.
        ONNX Runtime gains nothing, and TFLite has no other.
        """
        if isinstance(self.batch, int):
            return self.batch
        return None if runtime == "onnx" or (self.batch == "dynamic" and runtime != "tflite") else 1

    @property
    def budget(self) -> Budget | None:
        """What to search for before anything is judged. A drop of accuracy can only be judged."""
        gates = self.gates
        asked = gates.min_sqnr_db is not None or gates.min_cosine is not None
        return Budget(gates.min_sqnr_db, gates.min_cosine) if asked and self.may_search else None

    @property
    def may_search(self) -> bool:
        """A plan, or one precision throughout, is taken as it was asked for."""
        return self.plan is None and self.activations not in ("int8", "int16")
