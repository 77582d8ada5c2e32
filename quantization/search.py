"""Which linears must stay float for a budget: the smallest number of them, found by measured error.

1. Each linear is quantized alone, everything else in float, and the noise that this adds to `last_hidden_state` is
   measured by fake quantization: its sensitivity.
2. Linears turn float in the order of that noise, the most harmful first. Noise of different linears is nearly
   independent, so that each step takes away the most that one linear can.
3. The shortest prefix of that order that meets the budget is found by bisection, predicted anew each time.

The images are calibration images, on which errors are a little smaller than on others. So the budget is met with a
margin; whether it holds is for the evaluation images to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from vitedge.quantization.encoder import Encoder, FloatArray, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.fidelity import cosine, sqnr_db
from vitedge.quantization.plan import Plan, QuantizedLinear
from vitedge.runtimes.errors import PlanError

# Calibration images flatter by 0.3 dB on vit-s14-real.
MARGIN_DB = 0.5
_CURVE_POINTS = 8
_HEADS = ("pooler.dense", "classifier")


class Predicted(Protocol):
    """What is predicted with a plan."""

    @property
    def sqnr_db(self) -> float: ...

    @property
    def cosine_mean(self) -> float: ...


@dataclass(frozen=True)
class Budget:
    """What must be kept: SQNR of `last_hidden_state`, mean cosine of the class token; None asks for nothing."""

    min_sqnr_db: float | None = None
    min_cosine: float | None = None

    def met_by(self, point: Predicted) -> bool:
        """With the margin: the same factor on noise and on the distance of the cosine from 1."""
        noise = 10 ** (MARGIN_DB / 10)
        return (self.min_sqnr_db is None or point.sqnr_db >= self.min_sqnr_db + MARGIN_DB) and (
            self.min_cosine is None or (1 - point.cosine_mean) * noise <= 1 - self.min_cosine
        )


@dataclass(frozen=True)
class TradeOff:
    """So many linears in float, and what is predicted with them."""

    float_linears: int
    integer_macs_share: float
    sqnr_db: float
    cosine_mean: float


@dataclass(frozen=True)
class SearchResult:
    """The plan found for a runtime, every point predicted on the way, and the SQNR of each linear quantized alone."""

    plan: Plan
    curve: tuple[TradeOff, ...]
    sensitivity_db: Mapping[str, float]


def search(
    plan: Plan,
    runtime: str,
    encoder: Encoder,
    smoothed: Encoder,
    pixel_values: FloatArray,
    budget: Budget,
    progress: Callable[[str], None] = lambda _: None,
) -> SearchResult:
    """The plan with the fewest float linears that meets the budget.

    Args:
        plan: Where to start from; what it has in float stays so.
        runtime: A key of `plan.recipes`.
        encoder: FP32, as loaded.
        smoothed: That of the plan.
        pixel_values: float32 [images, channels, height, width]; run in one batch.
        budget: To meet.
        progress: Called with each linear's name when its sensitivity is known.

    Raises:
        PlanError: Even a single integer linear is too many; says the best that was reached.
    """
    linears = plan.linears(runtime)
    expected = forward(encoder, pixel_values, float_linear(encoder))["last_hidden_state"]

    def predict(integer: Mapping[str, QuantizedLinear]) -> TradeOff:
        found = forward(smoothed, pixel_values, fake_quantized_linear(smoothed, integer))["last_hidden_state"]
        noise = float(np.square(found - expected, dtype=np.float64).sum())
        return TradeOff(
            len(plan.modules) - len(integer),
            _integer_share(encoder, integer),
            sqnr_db(float(np.square(expected, dtype=np.float64).sum()), noise),
            float(cosine(expected[:, 0], found[:, 0]).mean()),
        )

    sensitivity = {}
    for name, linear in linears.items():
        sensitivity[name] = predict({name: linear}).sqnr_db
        progress(name)
    # The heads read last_hidden_state and cannot harm it; they stay integer, and do not count as what is left of INT8.
    order = sorted(linears, key=lambda name: (name in _HEADS, sensitivity[name]))
    points: dict[int, TradeOff] = {}

    def at(count: int) -> TradeOff:
        """With the `count` most harmful linears in float."""
        if count not in points:
            points[count] = predict({name: linears[name] for name in order[count:]})
        return points[count]

    last = sum(name not in _HEADS for name in order) - 1
    if last < 0:
        return SearchResult(plan, (at(0),), sensitivity)
    for count in np.linspace(0, last, min(_CURVE_POINTS, last + 1)).round().astype(int).tolist():
        at(count)
    if not budget.met_by(at(last)):
        best = max(points.values(), key=lambda point: point.sqnr_db)
        raise PlanError(
            f"{runtime}: the budget cannot be met: the best plan with an integer linear keeps {best.float_linears} of"
            f" {len(plan.modules)} linears float, all but {', '.join(order[best.float_linears :][:3])}, and reaches"
            f" {best.sqnr_db:.2f} dB and a mean cosine of {best.cosine_mean:.5f} (with a margin of {MARGIN_DB} dB asked"
            " for); lower the budget, or calibrate on more images"
        )
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.met_by(at(middle)) else (middle + 1, high)
    recipe = plan.recipes[runtime].with_precisions(dict.fromkeys(order[:low], "float"))
    found = replace(plan, recipes={**plan.recipes, runtime: recipe})
    return SearchResult(found, tuple(points[count] for count in sorted(points)), sensitivity)


def _integer_share(encoder: Encoder, integer: Mapping[str, QuantizedLinear]) -> float:
    macs = {name: rows * encoder.tensors[f"{name}.weight"].size for name, rows in encoder.shape.linears.items()}
    return sum(macs[name] for name in integer) / (sum(macs.values()) + encoder.shape.attention_macs)
