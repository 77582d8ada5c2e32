"""The quantization plan: every decision about integers, made once, keyed by module name, lowered by all converters.

A plan holds the smoothed float tensors' factors, and for every linear its integer weights per weight width, its input
range, and whether it stays float and why. What differs between runtimes is only a `Recipe`: how wide the weights are
and whether inputs are quantized with a fixed or a per-row scale. `Plan.linears(runtime)` resolves the two into what a
converter lowers; a linear that is absent there is float.

On disk a plan is `plan.json` (readable, diffable) beside `plan.safetensors` (the arrays).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vitedge.runtimes.errors import PlanError

FORMAT = "vitedge-plan/1"
WEIGHT_RANGES: Mapping[int, tuple[int, int]] = MappingProxyType({7: (-64, 63), 8: (-127, 127)})


@dataclass(frozen=True)
class Recipe:
    """How a runtime computes its integer linears: weight width in bits, and fixed or per-row input scales."""

    weight_bits: int
    activations: Literal["static", "dynamic"]

    def __post_init__(self) -> None:
        if self.weight_bits not in WEIGHT_RANGES or self.activations not in ("static", "dynamic"):
            raise PlanError(f"recipe: expected 7 or 8 weight bits and static or dynamic activations, found {self}")


# 7-bit weights cannot saturate the 16-bit sums of CPUs without VNNI: 2 · 255 · 64 = 32640 < 32768. TFLite's CPU
# kernels widen before they add, so its weights use 8 bits everywhere.
_TFLITE = Recipe(8, "dynamic")
TARGETS: Mapping[str, Mapping[str, Recipe]] = MappingProxyType(
    {
        "avx2": {"onnx": Recipe(7, "static"), "openvino": Recipe(7, "static"), "tflite": _TFLITE},
        "vnni": {"onnx": Recipe(8, "static"), "openvino": Recipe(8, "static"), "tflite": _TFLITE},
        "arm64": {"onnx": Recipe(8, "static"), "openvino": Recipe(8, "static"), "tflite": _TFLITE},
    }
)


@dataclass(frozen=True)
class StaticInput:
    """Fixed quantization of a linear's input: real = scale · (q - zero_point), q in [0, 255]."""

    scale: float
    zero_point: int

    def __post_init__(self) -> None:
        if not (np.isfinite(self.scale) and self.scale > 0 and 0 <= self.zero_point <= 255):
            raise PlanError(f"input quantization: expected scale > 0 and zero point in [0, 255], found {self}")


@dataclass(frozen=True)
class IntegerWeight:
    """Per-channel symmetric weights: real [out, in] = scale [out] · values int8 [out, in]; `bias` float32 [out].

    The bias may differ from the float one: rounding shifts a linear's mean output, and the bias takes the shift back.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]

    def dequantized(self) -> NDArray[np.float32]:
        return self.values.astype(np.float32) * self.scale[:, None]


@dataclass(frozen=True)
class QuantizedLinear:
    """What a converter lowers: integer weights and the input's fixed quantization, or None for a scale per row."""

    weight: IntegerWeight
    input: StaticInput | None


@dataclass(frozen=True)
class ModulePlan:
    """The decision for one linear: float, with the reason, or integer, with its weights by width and its input."""

    precision: Literal["int8", "float"]
    reason: str
    input: StaticInput | None = None
    weights: Mapping[int, IntegerWeight] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.precision == "int8" and (self.input is None or not self.weights):
            raise PlanError("an int8 module needs an input quantization and weights")
        for bits, weight in self.weights.items():
            low, high = WEIGHT_RANGES[bits]
            if weight.values.min() < low or weight.values.max() > high:
                raise PlanError(f"{bits}-bit weights must lie within [{low}, {high}]")


@dataclass(frozen=True)
class Plan:
    """The whole plan. `smoothing` maps a folding point to its per-channel factors (see `smoothing.py`)."""

    checkpoint_digest: str
    calibration_digest: str
    target: str
    recipes: Mapping[str, Recipe]
    smoothing: Mapping[str, NDArray[np.float32]]
    modules: Mapping[str, ModulePlan]

    def linears(self, runtime: str) -> Mapping[str, QuantizedLinear]:
        """The integer linears of one runtime, by module name."""
        recipe = self.recipes[runtime]
        return {
            name: QuantizedLinear(
                module.weights[recipe.weight_bits], module.input if recipe.activations == "static" else None
            )
            for name, module in self.modules.items()
            if module.precision == "int8"
        }

    def digest(self) -> str:
        """SHA-256 of everything in the plan."""
        sha = hashlib.sha256(json.dumps(self._document(), sort_keys=True).encode())
        for name, array in sorted(self._arrays().items()):
            sha.update(name.encode() + array.tobytes())
        return sha.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes `plan.json` and `plan.safetensors` into the folder."""
        (folder / "plan.json").write_text(json.dumps(self._document(), indent=1) + "\n")
        save_file(self._arrays(), folder / "plan.safetensors")

    def _document(self) -> dict[str, object]:
        modules = {
            name: {"precision": m.precision, "reason": m.reason, "input": asdict(m.input) if m.input else None}
            for name, m in self.modules.items()
        }
        return {
            "format": FORMAT,
            "checkpoint_digest": self.checkpoint_digest,
            "calibration_digest": self.calibration_digest,
            "target": self.target,
            "recipes": {runtime: asdict(recipe) for runtime, recipe in self.recipes.items()},
            "modules": modules,
        }

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {f"smoothing/{k}": v for k, v in self.smoothing.items()}
        for name, module in self.modules.items():
            for bits, weight in module.weights.items():
                for part, array in vars(weight).items():
                    arrays[f"{name}/{bits}/{part}"] = np.ascontiguousarray(array)
        return arrays


def load_plan(folder: Path) -> Plan:
    """Reads a plan that `Plan.save` wrote.

    Raises:
        PlanError: A file is missing, not a plan, or contradicts itself.
    """
    path = folder / "plan.json"
    try:
        document = json.loads(path.read_text())
        arrays = load_file(folder / "plan.safetensors")
        if document["format"] != FORMAT:
            raise PlanError(f"{path}: expected a plan of format {FORMAT}, found {document['format']}")
        return Plan(
            checkpoint_digest=str(document["checkpoint_digest"]),
            calibration_digest=str(document["calibration_digest"]),
            target=str(document["target"]),
            recipes={runtime: Recipe(**recipe) for runtime, recipe in document["recipes"].items()},
            smoothing={k.removeprefix("smoothing/"): v for k, v in arrays.items() if k.startswith("smoothing/")},
            modules={name: _module(name, entry, arrays) for name, entry in document["modules"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise PlanError(f"{path} is not a readable plan ({type(error).__name__}: {error}); build it again") from error


def _module(name: str, entry: Mapping[str, object], arrays: Mapping[str, NDArray[np.generic]]) -> ModulePlan:
    fields = {k.removeprefix(name + "/"): v for k, v in arrays.items() if k.startswith(name + "/")}
    weights = {
        int(bits): IntegerWeight(**{field: fields[f"{bits}/{field}"] for field in ("values", "scale", "bias")})  # type: ignore[arg-type]
        for bits in sorted({key.split("/")[0] for key in fields})
    }
    static = cast("Mapping[str, float] | None", entry["input"])
    return ModulePlan(
        precision=cast("Literal['int8', 'float']", entry["precision"]),
        reason=str(entry["reason"]),
        input=StaticInput(float(static["scale"]), int(static["zero_point"])) if static else None,
        weights=weights,
    )
