"""The recipes: in which integers each runtime keeps weights, and how it computes each linear.

They are the half of a plan that is short, and made to be read and edited by hand; `TARGETS` holds those to begin with.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, get_args

from vitedge.runtimes.errors import PlanError

# How a linear is computed: integers under one fixed input range, or under the range of each row (token); or in float.
Precision = Literal["static", "dynamic", "float"]
# How attention scores, query · key, are computed: in 8-bit integers under fixed ranges (see `scores.py`), or in float.
Scores = Literal["int8", "float"]
# How fixed input ranges are chosen (see `ranges.py`).
RangeMethod = Literal["min-max", "mse"]
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
