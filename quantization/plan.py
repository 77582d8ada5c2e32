"""The quantization plan: every decision about integers, made once, keyed by module name, lowered by all converters.

A plan has two halves. The **recipes** (`recipe.py`) say, for each runtime, in which format weights are kept and how
each linear is computed. The **modules** hold what follows from them and from the calibration images: integer weights by
format, and the range of each input. `Plan.linears(runtime)` resolves the two into what a converter lowers; a linear
that is absent there is float.

On disk a plan is `plan.json` (readable, diffable) beside `plan.safetensors` (the arrays).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vitedge.quantization.decisions import FORMAT, KEYS, load_decisions
from vitedge.quantization.recipe import WEIGHT_FORMATS, RangeMethod, Recipe
from vitedge.quantization.saved_plan import ARRAYS_FILE, PLAN_FILE, digest_of, read_document, unreadable, write
from vitedge.quantization.scores import ScoreBalance, ScoreGrids
from vitedge.runtimes.errors import PlanError

# Where the 256 steps of a row lie. "zero-point": over its range and 0, which is one of them, as XNNPACK has it;
# "minimum": they begin at the row's minimum, as the ONNX and OpenVINO lowerings have it.
RowGrid = Literal["zero-point", "minimum"]
_ROW_GRIDS: Mapping[str, RowGrid] = MappingProxyType({"onnx": "minimum", "openvino": "minimum", "tflite": "zero-point"})


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

    def split(self, parts: int) -> "tuple[IntegerWeight, ...]":
        """So many weights of equally many outputs each."""
        arrays = (np.split(array, parts) for array in (self.values, self.scale, self.bias))
        return tuple(IntegerWeight(*part) for part in zip(*arrays, strict=True))


@dataclass(frozen=True)
class QuantizedLinear:
    """What a converter lowers: integer weights and the input's fixed quantization, or None for a range per row, whose
    steps lie as `rows` says. Where there is a `multiplier` float32 [in], the input is multiplied by it first. Where a
    qkv has `scores`, its queries and keys are rounded to these grids.
    """

    weight: IntegerWeight
    input: StaticInput | None
    rows: RowGrid = "zero-point"
    multiplier: NDArray[np.float32] | None = None
    scores: ScoreGrids | None = None


@dataclass(frozen=True)
class ModulePlan:
    """What calibration made of one linear: the fixed quantization of its input, and its weights by format.

    Where a fixed input is multiplied at run time (`explicitly_smoothed`), by `multiplier` float32 [in], `input` is that
    of the product, and `multiplied` holds the weights that belong to it; `weights` are for a range per row. A qkv has
    `scores` if a recipe asks for them in integers.
    """

    input: StaticInput
    weights: Mapping[str, IntegerWeight] = field(default_factory=dict)
    multiplier: NDArray[np.float32] | None = None
    multiplied: Mapping[str, IntegerWeight] = field(default_factory=dict)
    scores: ScoreGrids | None = None

    def __post_init__(self) -> None:
        for name, weight in (*self.weights.items(), *self.multiplied.items()):
            limit = WEIGHT_FORMATS[name].limit
            if weight.values.min() < -limit or weight.values.max() > limit:
                raise PlanError(f"{name} weights must lie within [-{limit}, {limit}]")


@dataclass(frozen=True)
class Plan:
    """The whole plan. `smoothing` maps a linear to the factors [in] that its input is divided by (`smoothing.py`); they
    were made with `strength`. `centers` maps one to what is subtracted from them before that (`centering.py`).
    `balances` are those of attention scores by qkv (`scores.py`), if a recipe has them in integers. `ranges` says how
    fixed input ranges were chosen.
    """

    checkpoint_digest: str
    calibration_digest: str
    target: str
    recipes: Mapping[str, Recipe]
    strength: float
    smoothing: Mapping[str, NDArray[np.float32]]
    modules: Mapping[str, ModulePlan]
    balances: Mapping[str, ScoreBalance] = field(default_factory=dict)
    centers: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    ranges: RangeMethod = "min-max"

    def linears(self, runtime: str) -> Mapping[str, QuantizedLinear]:
        """The integer linears of one runtime, by module name.

        Raises:
            PlanError: The recipe asks for weights that the plan does not hold, as after an edit.
        """
        recipe = self.recipes[runtime]
        linears = {}
        for name, module in self.modules.items():
            precision = recipe.precision(name)
            if precision == "float":
                continue
            static = module.input if precision == "static" else None
            multiplier = module.multiplier if static else None
            weights = module.weights if multiplier is None else module.multiplied
            if recipe.weights not in weights:
                raise PlanError(
                    f"{name}: the recipe of {runtime} asks for {recipe.weights} weights, the plan holds"
                    f" {', '.join(weights) or 'none'}; build again with --plan"
                )
            scores = module.scores if recipe.scores == "int8" else None
            linears[name] = QuantizedLinear(weights[recipe.weights], static, _ROW_GRIDS[runtime], multiplier, scores)
        if linears and recipe.scores == "int8" and not self.balances:
            raise PlanError(
                f"the recipe of {runtime} asks for int8 scores, the plan holds none; build again with --plan"
            )
        return linears

    def digest(self) -> str:
        """SHA-256 of everything in the plan."""
        # As pairs: the last pattern that matches counts, so that their order is a part of the plan.
        ordered = {runtime: list(recipe.precisions.items()) for runtime, recipe in self.recipes.items()}
        return digest_of([self._document(), ordered], self._arrays())

    def save(self, folder: Path) -> None:
        """Writes `plan.json` and `plan.safetensors` into the folder."""
        write(folder, self._document(), self._arrays())

    def _document(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "checkpoint_digest": self.checkpoint_digest,
            "target": self.target,
            "smoothing_strength": self.strength,
            "ranges": self.ranges,
            "recipes": {
                runtime: {"weights": recipe.weights, "precisions": dict(recipe.precisions), "scores": recipe.scores}
                for runtime, recipe in self.recipes.items()
            },
            # What follows from the above and the images; edits of it are not read.
            "results": {
                "calibration_digest": self.calibration_digest,
                "inputs": {name: asdict(module.input) for name, module in self.modules.items()},
                "scores": {name: asdict(module.scores) for name, module in self.modules.items() if module.scores},
            },
        }

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {f"smoothing/{k}": v for k, v in self.smoothing.items()}
        arrays |= {f"centers/{k}": v for k, v in self.centers.items()}
        for name, balance in self.balances.items():
            arrays |= {f"balances/{name}/{part}": np.ascontiguousarray(array) for part, array in vars(balance).items()}
        for name, module in self.modules.items():
            if module.multiplier is not None:
                arrays[f"{name}/multiplier"] = module.multiplier
            for kind in ("weights", "multiplied"):
                for weight_format, weight in getattr(module, kind).items():
                    for part, array in vars(weight).items():
                        arrays[f"{name}/{kind}/{weight_format}/{part}"] = np.ascontiguousarray(array)
        return arrays


def load_plan(folder: Path) -> Plan:
    """Reads a plan that `Plan.save` wrote.

    Raises:
        PlanError: A file is missing, not a plan, or contradicts itself.
    """
    path = folder / PLAN_FILE
    decisions, document = load_decisions(path), read_document(path, FORMAT, KEYS)
    try:
        results = document["results"]
        arrays = load_file(folder / ARRAYS_FILE)
        return Plan(
            checkpoint_digest=decisions.checkpoint_digest,
            calibration_digest=str(results["calibration_digest"]),
            target=decisions.target,
            recipes=decisions.recipes,
            ranges=decisions.ranges,
            strength=decisions.strength,
            smoothing={k.removeprefix("smoothing/"): v for k, v in arrays.items() if k.startswith("smoothing/")},
            centers={k.removeprefix("centers/"): v for k, v in arrays.items() if k.startswith("centers/")},
            modules={
                name: _module(name, entry, results["scores"].get(name), arrays)
                for name, entry in results["inputs"].items()
            },
            balances={
                name: ScoreBalance(*(arrays[f"balances/{name}/{part}"] for part in ("factors", "centers")))
                for name in sorted({key.split("/")[1] for key in arrays if key.startswith("balances/")})
            },
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise unreadable(path, error) from error


def _module(
    name: str, entry: Mapping[str, Any], scores: Mapping[str, Any] | None, arrays: Mapping[str, NDArray[np.generic]]
) -> ModulePlan:
    parts = {tuple(key.split("/")[1:]): value for key, value in arrays.items() if key.startswith(name + "/")}
    multiplier = parts.pop(("multiplier",), None)

    def weights(kind: str) -> dict[str, IntegerWeight]:
        return {
            weight_format: IntegerWeight(*(parts[kind, weight_format, part] for part in ("values", "scale", "bias")))  # type: ignore[arg-type]
            for weight_format in sorted({key[1] for key in parts if key[0] == kind})
        }

    static = StaticInput(float(entry["scale"]), int(entry["zero_point"]))
    grids = None if scores is None else ScoreGrids(float(scores["query"]), float(scores["key"]))
    return ModulePlan(static, weights("weights"), multiplier, weights("multiplied"), grids)  # type: ignore[arg-type]
