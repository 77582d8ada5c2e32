"""Makes the plan: observe, smooth, round, fix ranges. Nothing here knows a runtime's file format."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from vitedge.calibration.observers import InputStatistics, Observer
from vitedge.quantization.encoder import Encoder, FloatArray, float_linear, forward
from vitedge.quantization.plan import ModulePlan, Plan, Recipe
from vitedge.quantization.rounding import Rounding, covering_input, round_to_nearest
from vitedge.quantization.smoothing import smooth, smoothing_factors

SMOOTHING_STRENGTH = 0.5


def observe(encoder: Encoder, batches: Iterable[FloatArray]) -> Mapping[str, InputStatistics]:
    """Runs the FP32 encoder over batches of pixel values and returns what its linears were given.

    Memory is that of one batch, whatever the number of batches.
    """
    observer = Observer(float_linear(encoder))
    for pixel_values in batches:
        forward(encoder, pixel_values, observer)
    return observer.statistics()


def make_plan(
    encoder: Encoder,
    statistics: Mapping[str, InputStatistics],
    *,
    pixel_range: tuple[float, float],
    recipes: Mapping[str, Recipe],
    target: str,
    checkpoint_digest: str,
    calibration_digest: str,
    rounding: Rounding = round_to_nearest,
    progress: Callable[[str], None] = lambda _: None,
) -> tuple[Plan, Encoder]:
    """Decides everything once.

    Args:
        encoder: The FP32 encoder as loaded.
        statistics: From `observe`, of that encoder.
        pixel_range: Smallest and largest normalized pixel value that preprocessing can produce; the input range of
            the patch embedding, so that no unseen image clips there.
        recipes: By runtime; weights are rounded once for every width in them.
        target: Recorded in the plan.
        checkpoint_digest: Recorded in the plan.
        calibration_digest: Recorded in the plan.
        rounding: How weights become integers.
        progress: Called with each linear's name when it is done.

    Returns:
        The plan, and the smoothed encoder that its integers belong to.
    """
    factors = smoothing_factors(encoder, statistics, SMOOTHING_STRENGTH)
    smoothed = smooth(encoder, factors)
    widths = sorted({recipe.weight_bits for recipe in recipes.values()})
    modules = {}
    for name in smoothed.shape.linears:
        seen = statistics[name].divided_by(factors[name]) if name in factors else statistics[name]
        weight, bias = smoothed.tensors[name + ".weight"], smoothed.tensors[name + ".bias"]
        low, high = pixel_range if name == "patch_embedding" else (float(seen.minimum.min()), float(seen.maximum.max()))
        modules[name] = ModulePlan(
            precision="int8",
            reason="linear: integer by default",
            input=covering_input(low, high),
            weights={bits: rounding(weight, bias, seen, bits) for bits in widths},
        )
        progress(name)
    plan = Plan(checkpoint_digest, calibration_digest, target, recipes, factors, modules)
    return plan, smoothed


def apply_smoothing(encoder: Encoder, plan: Plan) -> Encoder:
    """The encoder that a loaded plan's integers belong to."""
    return smooth(encoder, {name: np.asarray(factor) for name, factor in plan.smoothing.items()})
