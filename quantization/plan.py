"""The quantization plan: every decision about integers, made once, keyed by module name, lowered by all converters.

A plan has two halves. The **recipes** say, for each runtime, in which format weights are kept and how each linear is
computed; they are short, and made to be read and edited by hand. The **modules** hold what follows from them and from
the calibration images: integer weights by format, and the range of each input. `Plan.linears(runtime)` resolves the two
into what a converter lowers; a linear that is absent there is float.

On disk a plan is `plan.json` (readable, diffable) beside `plan.safetensors` (the arrays).
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vitedge.quantization.saved_plan import (
    ARRAYS_FILE,
    PLAN_FILE,
    check_checkpoint,
    digest_of,
    read_document,
    unreadable,
    write,
)
from vitedge.quantization.scores import ScoreBalance, ScoreGrids
from vitedge.runtimes.errors import PlanError

FORMAT = "vitedge-plan/5"
# How a linear is computed: integers under one fixed input range, or under the range of each row (token); or in float.
Precision = Literal["static", "dynamic", "float"]
# How attention scores, query · key, are computed: in 8-bit integers under fixed ranges (see `scores.py`), or in float.
Scores = Literal["int8", "float"]
# Where the 256 steps of a row lie. "zero-point": over its range and 0, which is one of them, as XNNPACK has it;
# "minimum": they begin at the row's minimum, as the ONNX and OpenVINO lowerings have it.
RowGrid = Literal["zero-point", "minimum"]
_ROW_GRIDS: Mapping[str, RowGrid] = MappingProxyType({"onnx": "minimum", "openvino": "minimum", "tflite": "zero-point"})
# OpenVINO convolves whole images, which have no rows.
WITHOUT_ROWS: Mapping[str, tuple[str, ...]] = MappingProxyType({"openvino": ("patch_embedding",)})


@dataclass(frozen=True)
class WeightFormat:
    """Which integers a weight may hold: magnitudes up to `limit`; if `pair_safe`, also |v + w| ≤ 128 for every two
    inputs that a kernel may add in 16 bits (see `saturation.py`).
    """

    limit: int
    pair_safe: bool = False


# int8-pair-safe is what x86 CPUs without VNNI compute exactly, and nearly as accurate as all 8 bits.
WEIGHT_FORMATS: Mapping[str, WeightFormat] = MappingProxyType(
    {"int8": WeightFormat(127), "int8-pair-safe": WeightFormat(127, pair_safe=True), "int7": WeightFormat(64)}
)


@dataclass(frozen=True)
class Recipe:
    """How one runtime computes the linears.

    Attributes:
        weights: A key of `WEIGHT_FORMATS`.
        precisions: `Precision` by module name or pattern (`layers.*.mlp.fc2`); the last one that matches counts.
        scores: How layers whose qkv is integer compute attention scores; int8 is for OpenVINO on CPUs with VNNI.
    """

    weights: str
    precisions: Mapping[str, Precision]
    scores: Scores = "float"

    def __post_init__(self) -> None:
        if self.scores not in get_args(Scores):
            raise PlanError(f"recipe: expected scores to be one of {', '.join(get_args(Scores))}, found {self.scores}")
        if self.weights not in WEIGHT_FORMATS:
            raise PlanError(f"recipe: expected weights to be one of {', '.join(WEIGHT_FORMATS)}, found {self.weights}")
        for pattern, precision in self.precisions.items():
            if precision not in get_args(Precision):
                expected = ", ".join(get_args(Precision))
                raise PlanError(f"recipe: {pattern}: expected one of {expected}, found {precision}")

    def precision(self, name: str) -> Precision:
        """That of a linear.

        Raises:
            PlanError: No pattern matches it.
        """
        found = [precision for pattern, precision in self.precisions.items() if fnmatchcase(name, pattern)]
        if not found:
            raise PlanError(f'recipe: nothing matches {name}; begin with a pattern for all, such as "*": "static"')
        return found[-1]

    def check(self, names: Iterable[str]) -> None:
        """Refuses a recipe that does not fit an encoder's linears.

        Raises:
            PlanError: A pattern matches no linear, or a linear no pattern.
        """
        names = tuple(names)
        for pattern in self.precisions:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise PlanError(
                    f"recipe: {pattern} matches no linear of this encoder; it has {', '.join(names[:6])}, …"
                )
        for name in names:
            self.precision(name)

    def with_precisions(self, changed: Mapping[str, Precision]) -> "Recipe":
        """The same recipe with some linears decided anew; they come last, so that they count."""
        kept = {pattern: precision for pattern, precision in self.precisions.items() if pattern not in changed}
        return replace(self, precisions={**kept, **changed})


# The input of fc2 comes out of GELU, which smoothing cannot be folded through; a range per row costs 2 % of the time
# in ONNX Runtime and in OpenVINO's MatMul, and gains several dB. In front of OpenVINO's 1×1 convolution it costs 15 %.
_STATIC: Mapping[str, Precision] = MappingProxyType({"*": "static"})
_ROWS_FOR_FC2: Mapping[str, Precision] = MappingProxyType({"*": "static", "layers.*.mlp.fc2": "dynamic"})
_DYNAMIC: Mapping[str, Precision] = MappingProxyType({"*": "dynamic"})
# XNNPACK, which runs TFLite, quantizes rows at run time and widens before it adds: all 8 bits are safe everywhere.
_TFLITE = Recipe("int8", _DYNAMIC)
TARGETS: Mapping[str, Mapping[str, Recipe]] = MappingProxyType(
    {
        "avx2": {
            "onnx": Recipe("int8-pair-safe", _ROWS_FOR_FC2),
            "openvino": Recipe("int8-pair-safe", _STATIC),
            "tflite": _TFLITE,
        },
        "vnni": {
            "onnx": Recipe("int8", _ROWS_FOR_FC2),
            "openvino": Recipe("int8", _ROWS_FOR_FC2, scores="int8"),
            "tflite": _TFLITE,
        },
        "arm64": {
            "onnx": Recipe("int8", _ROWS_FOR_FC2),
            "openvino": Recipe("int8", _ROWS_FOR_FC2),
            "tflite": _TFLITE,
        },
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
    `balances` are those of attention scores by qkv (`scores.py`), if a recipe has them in integers.
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
            "calibration_digest": self.calibration_digest,
            "target": self.target,
            "smoothing_strength": self.strength,
            "recipes": {
                runtime: {"weights": recipe.weights, "precisions": dict(recipe.precisions), "scores": recipe.scores}
                for runtime, recipe in self.recipes.items()
            },
            "inputs": {name: asdict(module.input) for name, module in self.modules.items()},
            "scores": {name: asdict(module.scores) for name, module in self.modules.items() if module.scores},
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


@dataclass(frozen=True)
class PlanDecisions:
    """The half of a plan that people edit. The other half follows from it and the calibration images."""

    path: Path
    checkpoint_digest: str
    target: str
    recipes: Mapping[str, Recipe]

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise PlanError(f"target: expected one of {', '.join(TARGETS)}, found {self.target}")
        if unknown := [runtime for runtime in self.recipes if runtime not in TARGETS[self.target]]:
            raise PlanError(f"recipes: expected some of {', '.join(TARGETS[self.target])}, found {', '.join(unknown)}")

    def check(self, checkpoint_digest: str, linears: Iterable[str]) -> None:
        """Refuses a plan of another checkpoint, and one that does not fit its linears.

        Raises:
            PlanError: It is one.
        """
        check_checkpoint(self.path, self.checkpoint_digest, checkpoint_digest)
        names = tuple(linears)
        for runtime, recipe in self.recipes.items():
            if recipe.scores == "int8" and TARGETS[self.target][runtime].scores != "int8":
                raise PlanError(
                    f"{self.path}: {runtime}: int8 scores are for OpenVINO with target vnni, found target"
                    f' {self.target}; make them "float"'
                )
            try:
                recipe.check(names)
                for name in names:
                    _check_precision(runtime, name, recipe.precision(name))
            except PlanError as error:
                raise PlanError(f"{self.path}: {runtime} {error}") from error


def _check_precision(runtime: str, name: str, precision: Precision) -> None:
    """Refuses what the runtime's lowering has no form for, before calibration instead of after it."""
    if runtime == "tflite" and precision == "static":
        raise PlanError(f'recipe: {name}: TFLite has no fixed input ranges; make it "dynamic" or "float"')
    if precision == "dynamic" and name in WITHOUT_ROWS.get(runtime, ()):
        raise PlanError(f'recipe: {name}: its input has no rows there; make it "static" or "float"')


def load_decisions(path: Path) -> PlanDecisions:
    """Reads the decisions of a `plan.json`, as `Plan.save` wrote it or edited since; a build's folder will do.

    Raises:
        PlanError: No such file, not a plan, or a decision that does not exist.
    """
    path = path / PLAN_FILE if path.is_dir() else path
    document = read_document(path, FORMAT)
    try:
        recipes = {
            runtime: Recipe(entry["weights"], entry["precisions"], entry["scores"])
            for runtime, entry in document["recipes"].items()
        }
        return PlanDecisions(path, str(document["checkpoint_digest"]), str(document["target"]), recipes)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error


def load_plan(folder: Path) -> Plan:
    """Reads a plan that `Plan.save` wrote.

    Raises:
        PlanError: A file is missing, not a plan, or contradicts itself.
    """
    path = folder / PLAN_FILE
    decisions, document = load_decisions(path), read_document(path, FORMAT)
    try:
        arrays = load_file(folder / ARRAYS_FILE)
        return Plan(
            checkpoint_digest=decisions.checkpoint_digest,
            calibration_digest=str(document["calibration_digest"]),
            target=decisions.target,
            recipes=decisions.recipes,
            strength=float(document["smoothing_strength"]),
            smoothing={k.removeprefix("smoothing/"): v for k, v in arrays.items() if k.startswith("smoothing/")},
            centers={k.removeprefix("centers/"): v for k, v in arrays.items() if k.startswith("centers/")},
            modules={
                name: _module(name, entry, document["scores"].get(name), arrays)
                for name, entry in document["inputs"].items()
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
