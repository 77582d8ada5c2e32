"""Which linears must give up one fixed input range, and which their integers, for a budget; found by measured error.

A linear climbs a ladder: static; dynamic, a range per row, still integer and a little slower; float.

1. Each linear is quantized alone, everything else in float, and the noise that this adds to `last_hidden_state` is
   measured by fake quantization, on each of its integer rungs: its sensitivity. Noise of different linears is nearly
   independent, so that a step takes away what lies between two rungs, whatever the other linears do.
2. First linears turn dynamic, which keeps every integer, in the order of the noise that this takes away. Then they turn
   float, in the order of the noise that this takes away per multiply-accumulate: that gives up the fewest of those.
3. The shortest prefix of these steps that meets the budget is found by bisection, predicted anew each time.

The images are calibration images, on which errors are a little smaller than on others. So the budget is met with a
margin; whether it holds is for the evaluation images to say.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from vitedge.quantization.encoder import Encoder
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import Plan, QuantizedLinear
from vitedge.quantization.prediction import Prediction
from vitedge.quantization.recipe import WITHOUT_ROWS, Precision
from vitedge.runtimes.errors import PlanError

# Calibration images flatter, as the weights were rounded on them: by 0.0 to 0.9 dB on vit-s14-real.
MARGIN_DB = 1.0
# Sensitivities only order the steps; what is chosen is predicted on all images.
_SENSITIVITY_IMAGES = 8
CURVE_POINTS = 12
# They read last_hidden_state and cannot harm it; they stay as they are, and do not count as what is left of INT8.
HEADS = ("pooler.dense", "classifier")


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

    @classmethod
    def above(cls, found: Predicted, by_db: float, best: Predicted) -> "Budget":
        """What asks for so much more SQNR than was found, or for the best there is if that is less, but more."""
        more = found.sqnr_db + by_db
        return cls((min(more, best.sqnr_db) if best.sqnr_db > found.sqnr_db else more) - MARGIN_DB)


@dataclass(frozen=True)
class TradeOff:
    """After so many steps: how many linears are dynamic and float then, and what is predicted."""

    steps: int
    dynamic_linears: int
    float_linears: int
    integer_macs_share: float
    sqnr_db: float
    cosine_mean: float


def climb(
    plan: Plan,
    runtime: str,
    smoothed: Encoder,
    prediction: Prediction,
    progress: Callable[[str], None] = lambda _: None,
    *,
    allow_dynamic: bool = True,
) -> "Climb":
    """Measures each linear alone, and so puts the steps in order; the result serves any budget.

    Args:
        plan: Where to start from; no linear goes down the ladder.
        runtime: A key of `plan.recipes`.
        smoothed: The encoder of the plan.
        prediction: Predicts; sensitivities on 8 of its images.
        progress: Called with each linear's name when its sensitivity is known.
        allow_dynamic: Whether a static linear may turn dynamic; else it turns float at once.
    """

    def alone_db(name: str, linear: QuantizedLinear) -> float:
        return prediction(smoothed, fake_quantized_linear(smoothed, {name: linear}), _SENSITIVITY_IMAGES).sqnr_db

    sensitivity = {}
    for name, rungs in _integer_rungs(plan, runtime, allow_dynamic).items():
        sensitivity[name] = {precision: alone_db(name, linear) for precision, linear in rungs.items()}
        progress(name)
    macs = {name: rows * smoothed.tensors[f"{name}.weight"].size for name, rows in smoothed.shape.linears.items()}
    steps = _steps({name: levels for name, levels in sensitivity.items() if name not in HEADS}, macs)
    total = sum(macs.values()) + smoothed.shape.attention_macs
    return Climb(plan, runtime, sensitivity, steps, macs, total, smoothed, prediction)


@dataclass(frozen=True)
class Climb:
    """The SQNR of each linear quantized alone, by its integer precisions; the steps that follow, in order; and what was
    predicted after some of them.
    """

    plan: Plan
    runtime: str
    sensitivity_db: Mapping[str, Mapping[Precision, float]]
    steps: tuple[tuple[str, Precision], ...]
    macs: Mapping[str, int]
    total_macs: int
    smoothed: Encoder
    prediction: Prediction
    points: dict[int, TradeOff] = field(default_factory=dict)

    def at(self, count: int) -> TradeOff:
        if count not in self.points:
            integer = self.plan_after(count).linears(self.runtime)
            found = self.prediction(self.smoothed, fake_quantized_linear(self.smoothed, integer))
            self.points[count] = TradeOff(
                count,
                sum(linear.input is None for linear in integer.values()),
                len(self.plan.modules) - len(integer),
                sum(self.macs[name] for name in integer) / self.total_macs,
                found.sqnr_db,
                found.cosine_mean,
            )
        return self.points[count]

    @property
    def top(self) -> TradeOff:
        """After all steps but the last, which would leave no integer."""
        return self.at(max(len(self.steps) - 1, 0))

    def plan_after(self, count: int) -> Plan:
        return _changed(self.plan, self.runtime, dict(self.steps[:count]))


@dataclass(frozen=True)
class SearchResult:
    """What was found, as a point of its climb."""

    climb: Climb
    found: TradeOff

    @property
    def plan(self) -> Plan:
        return self.climb.plan_after(self.found.steps)

    @property
    def curve(self) -> tuple[TradeOff, ...]:
        """Every point predicted on the way."""
        return tuple(self.climb.points[count] for count in sorted(self.climb.points))

    @property
    def sensitivity_db(self) -> Mapping[str, Mapping[Precision, float]]:
        return self.climb.sensitivity_db


def search(climb: Climb, budget: Budget, progress: Callable[[str], None] = lambda _: None) -> SearchResult:
    """The fewest steps that meet the budget.

    Args:
        climb: From `climb`; what it predicted for an earlier budget is not predicted again.
        budget: To meet.
        progress: Called `CURVE_POINTS` times for plans predicted.

    Raises:
        PlanError: All of them, one linear left in integers, do not; says the best that was reached.
    """
    last = max(len(climb.steps) - 1, 0)
    for count in np.linspace(0, last, CURVE_POINTS).round().astype(int).tolist():
        climb.at(count)
        progress(f"{count} steps")
    curve = SearchResult(climb, climb.top).curve
    if not budget.met_by(climb.top):
        best = max(curve, key=lambda point: point.sqnr_db)
        left = [name for name, precision in climb.steps[best.steps :] if precision == "float"]
        named = ", ".join(left[:3]) + (", …" if len(left) > 3 else "")
        raise PlanError(
            f"{climb.runtime}: the budget cannot be met: the best plan with an integer linear ({named}) keeps"
            f" {best.float_linears} of {len(climb.plan.modules)} linears float and {best.dynamic_linears} dynamic;"
            f" it reaches {best.sqnr_db:.2f} dB and a mean cosine of {best.cosine_mean:.5f} (with a margin of"
            f" {MARGIN_DB} dB asked for); lower the budget, or calibrate on more images"
        )
    # Predictions scatter: where a longer prefix fails, a shorter one that passes was lucky.
    low = 1 + max((point.steps for point in curve if not budget.met_by(point)), default=-1)
    high = min(point.steps for point in curve if point.steps >= low)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if budget.met_by(climb.at(middle)) else (middle + 1, high)
    return SearchResult(climb, climb.at(low))


def _integer_rungs(plan: Plan, runtime: str, allow_dynamic: bool) -> Mapping[str, Mapping[Precision, QuantizedLinear]]:
    """Each integer linear as the plan has it and, where a step may lead there, dynamic; by precision."""
    linears, precision = plan.linears(runtime), plan.recipes[runtime].precision
    able = [name for name in linears if name not in (*HEADS, *WITHOUT_ROWS.get(runtime, ()))] if allow_dynamic else []
    dynamic = _changed(plan, runtime, dict.fromkeys(able, "dynamic")).linears(runtime)
    return {
        name: {precision(name): linear} | ({"dynamic": dynamic[name]} if name in able else {})
        for name, linear in linears.items()
    }


def _steps(
    sensitivity_db: Mapping[str, Mapping[Precision, float]], macs: Mapping[str, int]
) -> tuple[tuple[str, Precision], ...]:
    """Linears and the precisions that they turn to, in order."""
    noise = {name: {rung: 10 ** (-db / 10) for rung, db in levels.items()} for name, levels in sensitivity_db.items()}
    gain = {name: found["static"] - found["dynamic"] for name, found in noise.items() if len(found) == 2}
    dynamic = sorted((name for name in gain if gain[name] > 0), key=lambda name: -gain[name])
    # Where dynamic is no better than static, the linear never turned dynamic; so what is left is the smaller noise.
    floating = sorted(noise, key=lambda name: -min(noise[name].values()) / macs[name])
    return *((name, "dynamic") for name in dynamic), *((name, "float") for name in floating)


def _changed(plan: Plan, runtime: str, precisions: Mapping[str, Precision]) -> Plan:
    recipe = plan.recipes[runtime].with_precisions(precisions)
    return replace(plan, recipes={**plan.recipes, runtime: recipe})
