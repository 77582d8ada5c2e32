"""Makes the plan: observe, center, smooth, fix ranges, round. Nothing here knows a runtime's file format.

The strength of smoothing is measured, not assumed: the plan is made for each of a few strengths, and the one whose
fake-quantized model is nearest to FP32 on calibration images is kept (`benchmarks/ablation.py` shows more of them).
"Nearest" is the mean of the images' own SQNR: over all values of a few dozen images two or three of them decide, and
plans that differ in the rounding of floats alone made that choose one strength or another.
Those that are tried end where calibration images begin to flatter: the stronger, the closer all channels come to the
end of the range, and unseen images exceed it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitedge.calibration.observers import InputStatistics, Observer
from vitedge.quantization.centering import center, channel_centers
from vitedge.quantization.encoder import Encoder, FloatArray, float_linear, forward
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import IntegerWeight, ModulePlan, Plan, StaticInput
from vitedge.quantization.prediction import Prediction
from vitedge.quantization.ranges import HistogramObserver, best_input, covering_input
from vitedge.quantization.recipe import WEIGHT_FORMATS, RangeMethod, Recipe, WeightFormat
from vitedge.quantization.rounding import factorize, round_weights
from vitedge.quantization.saturation import pairings
from vitedge.quantization.scores import (
    ScoreBalance,
    ScoreGrids,
    balance_scores,
    choose_balances,
    plain_grids,
    qkv_linears,
)
from vitedge.quantization.smoothing import explicitly_smoothed, smooth, smoothable, smoothing_factors
from vitedge.runtimes.preprocess import PixelValues

STRENGTHS = (0.5, 0.6, 0.7)
# Of inputs that are divided at run time.
EXPLICIT_STRENGTH = 0.4
_PATCHES = "patch_embedding"


def observe(encoder: Encoder, batches: Iterable[PixelValues]) -> Mapping[str, InputStatistics]:
    """Runs the FP32 encoder over batches of pixel values and returns what its linears were given.

    Memory is that of one batch and of the statistics, whatever the number of batches.

    Raises:
        PlanError: An input held NaN or infinity, or never changed.
    """
    observer = Observer(float_linear(encoder))
    for pixel_values in batches:
        forward(encoder, pixel_values, observer)
    return observer.statistics()


@dataclass(frozen=True)
class Calibration:
    """What the images said.

    Attributes:
        statistics: From `observe`, of the encoder as loaded.
        batches: The images again, to fill histograms with range method mse and to balance scores: a call starts over.
        judging: Those of them that judge strengths: few, and spread over all, as folders are sorted, often by class.
        pixel_range: Smallest and largest normalized pixel value that preprocessing can produce; the input range of the
            patch embedding, so that no unseen image clips there.
        digest: Of the images.
    """

    statistics: Mapping[str, InputStatistics]
    batches: Callable[[], Iterable[PixelValues]]
    judging: Callable[[], Iterable[PixelValues]]
    pixel_range: tuple[float, float]
    digest: str


def make_plan(
    encoder: Encoder,
    calibration: Calibration,
    *,
    recipes: Mapping[str, Recipe],
    target: str,
    checkpoint_digest: str,
    strengths: Sequence[float] = STRENGTHS,
    explicit_strength: float | None = EXPLICIT_STRENGTH,
    range_method: RangeMethod = "min-max",
    balanced_scores: bool = True,
    centered: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Plan, Encoder]:
    """Decides everything once.

    Args:
        encoder: The FP32 encoder as loaded.
        calibration: Of that encoder.
        recipes: By runtime.
        target: Recorded in the plan.
        checkpoint_digest: Recorded in the plan.
        strengths: Of smoothing, to be tried.
        explicit_strength: That of inputs which are divided at run time; None divides none.
        range_method: How fixed input ranges are chosen (see `ranges.py`).
        balanced_scores: Whether keys are centered and channels balanced where scores are integer (see `scores.py`).
        centered: Whether input channels are centered (see `centering.py`).
        progress: Called with each linear's name when its weights are rounded, for each strength.

    Returns:
        The plan, and the smoothed encoder that its integers belong to.

    Raises:
        PlanError: A recipe does not fit the encoder's linears.
    """
    for recipe in recipes.values():
        recipe.check(encoder.shape.linears)
    balances, grids = _scores(encoder, calibration, recipes, balanced_scores)
    smoothed_names = tuple(name for name in smoothable(encoder) if _is_integer(name, recipes))
    centers = channel_centers(calibration.statistics, smoothed_names if centered else ())
    original, encoder = encoder, center(balance_scores(encoder, balances), centers)
    statistics = _shifted(calibration.statistics, centers)
    empty = Plan(checkpoint_digest, calibration.digest, target, recipes, 0.0, {}, {}, balances, centers, range_method)
    rounder = _Rounder(encoder, statistics, recipes, explicit_strength)
    prediction = None
    if len(strengths) > 1:
        prediction = Prediction(original, np.concatenate(list(calibration.judging())))
    best: tuple[float, Plan, Encoder] | None = None
    for strength in strengths:
        factors = smoothing_factors(statistics, smoothed_names, strength)
        smoothed = smooth(encoder, factors)
        divisors = {**factors, **rounder.divisors}
        inputs = _inputs(smoothed, calibration, statistics, divisors, recipes, range_method)
        modules = {}
        for name in encoder.shape.linears:
            module = rounder(name, smoothed, factors.get(name), inputs[name])
            modules[name] = replace(module, scores=grids.get(name))
            progress(name)
        plan = replace(empty, strength=strength, smoothing=factors, modules=modules)
        score = 0.0 if prediction is None else _typical_sqnr_db(prediction, plan, smoothed)
        if best is None or score > best[0]:
            best = score, plan, smoothed
    assert best is not None, "at least one strength"
    return best[1:]


def _typical_sqnr_db(prediction: Prediction, plan: Plan, smoothed: Encoder) -> float:
    """Over the runtimes, which share the strength."""
    linears = [fake_quantized_linear(smoothed, plan.linears(runtime)) for runtime in plan.recipes]
    return float(np.mean([prediction.typical_sqnr_db(smoothed, linear) for linear in linears]))


def apply_rewrites(encoder: Encoder, plan: Plan) -> Encoder:
    """The encoder that a loaded plan's integers belong to."""
    return smooth(center(balance_scores(encoder, plan.balances), plan.centers), plan.smoothing)


def _is_integer(name: str, recipes: Mapping[str, Recipe]) -> bool:
    """Whether a linear is integer in any runtime."""
    return any(recipe.precision(name) != "float" for recipe in recipes.values())


def _shifted(
    statistics: Mapping[str, InputStatistics], centers: Mapping[str, FloatArray]
) -> Mapping[str, InputStatistics]:
    return {name: seen.shifted_by(centers[name]) if name in centers else seen for name, seen in statistics.items()}


def _scores(
    encoder: Encoder, calibration: Calibration, recipes: Mapping[str, Recipe], balanced: bool
) -> tuple[Mapping[str, ScoreBalance], Mapping[str, ScoreGrids]]:
    """Balances and grids by qkv; none if no recipe has scores in integers."""
    if all(recipe.scores == "float" for recipe in recipes.values()):
        return {}, {}
    if balanced:
        return choose_balances(encoder, calibration.batches)
    ones, zeros = np.ones(encoder.shape.hidden, np.float32), np.zeros(encoder.shape.hidden, np.float32)
    return dict.fromkeys(qkv_linears(encoder), ScoreBalance(ones, zeros)), plain_grids(encoder, calibration.batches)


class _Rounder:
    """Rounds linears, and only once those whose weights no smoothing changes.

    `divisors` are those of inputs that are divided at run time: where a recipe has a fixed range for them.
    """

    def __init__(
        self,
        encoder: Encoder,
        statistics: Mapping[str, InputStatistics],
        recipes: Mapping[str, Recipe],
        explicit_strength: float | None,
    ) -> None:
        self._statistics = statistics
        self._formats = {
            name: {
                recipe.weights: _format(recipe.weights, name, encoder)
                for recipe in recipes.values()
                if recipe.precision(name) != "float"
            }
            for name in encoder.shape.linears
        }
        self._static_formats = {
            name: {
                recipe.weights: self._formats[name][recipe.weights]
                for recipe in recipes.values()
                if recipe.precision(name) == "static"
            }
            for name in explicitly_smoothed(encoder)
        }
        divided = [name for name, formats in self._static_formats.items() if formats]
        self.divisors: Mapping[str, FloatArray] = {}
        if explicit_strength is not None:
            self.divisors = smoothing_factors(statistics, divided, explicit_strength)
        # Smoothing changes what reads a smoothed input, and what produces one (qkv, for o_proj).
        self._changed = set(smoothable(encoder))
        self._done: dict[str, ModulePlan] = {}

    def __call__(self, name: str, smoothed: Encoder, divisor: FloatArray | None, static: StaticInput) -> ModulePlan:
        """The plan of a linear whose input smoothing divided by `divisor`; `static` is its fixed quantization."""
        if name in self._done:
            return replace(self._done[name], input=static)
        weight, bias = smoothed.tensors[f"{name}.weight"], smoothed.tensors[f"{name}.bias"]
        seen = self._statistics[name] if divisor is None else self._statistics[name].divided_by(divisor)
        module = ModulePlan(static, self._rounded(weight, bias, seen, self._formats[name]))
        if name in self.divisors:
            explicit = self.divisors[name]
            formats = self._static_formats[name]
            multiplied = self._rounded(weight * explicit, bias, seen.divided_by(explicit), formats)
            module = replace(module, multiplier=np.float32(1) / explicit, multiplied=multiplied)
        if name not in self._changed:
            self._done[name] = module
        return module

    def _rounded(
        self, weight: FloatArray, bias: FloatArray, seen: InputStatistics, formats: Mapping[str, WeightFormat]
    ) -> dict[str, IntegerWeight]:
        return round_weights(weight, bias, factorize(seen), formats) if formats else {}


def _inputs(
    smoothed: Encoder,
    calibration: Calibration,
    statistics: Mapping[str, InputStatistics],
    divisors: Mapping[str, FloatArray],
    recipes: Mapping[str, Recipe],
    method: RangeMethod,
) -> Mapping[str, StaticInput]:
    """The fixed input of every linear; with method mse narrowed by a histogram, but for pixels, whose range is known,
    and what is divided at run time, which has no outliers left. `statistics` are of the encoder before smoothing.
    """
    ranges, explicit = {}, explicitly_smoothed(smoothed)
    for name, seen in statistics.items():
        divisor = divisors.get(name, np.float32(1))
        ranges[name] = float((seen.minimum / divisor).min()), float((seen.maximum / divisor).max())
    ranges[_PATCHES] = calibration.pixel_range
    inputs = {name: covering_input(*ends) for name, ends in ranges.items()}
    if method == "mse":
        searched = {
            name: ends
            for name, ends in ranges.items()
            if name not in (_PATCHES, *explicit) and any(r.precision(name) == "static" for r in recipes.values())
        }
        observer = HistogramObserver(float_linear(smoothed), smoothed, searched)
        for pixel_values in calibration.batches():
            forward(smoothed, pixel_values, observer)
        for name, histogram in observer.histograms.items():
            inputs[name] = best_input(histogram.numpy(), *searched[name])
    return inputs


def _format(name: str, linear: str, encoder: Encoder) -> WeightFormat:
    """The format's definition; pair-safe weights that kernels pair in several ways keep to what is safe in any."""
    weight_format = WEIGHT_FORMATS[name]
    if weight_format.pair_safe and len(pairings(linear, encoder.shape)) > 1:
        return WEIGHT_FORMATS["int7"]
    return weight_format
