"""Planning for target npu: observe the integer program, round its linears, choose which activations have 16 bits."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from vitedge.calibration.images import ImageSet, batches, spread
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint
from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.integer_float import Observation, observe
from vitedge.quantization.integer_grid import IntegerPrecision
from vitedge.quantization.integer_operations import IntegerEncoder, round_linears
from vitedge.quantization.integer_plan import PIXELS, IntegerPlan, load_integer_decisions
from vitedge.quantization.integer_search import (
    ORDER_IMAGES,
    POINT_IMAGES,
    IntegerSearchResult,
    Judge,
    search_integers,
)
from vitedge.quantization.plan import WEIGHT_FORMATS, IntegerWeight
from vitedge.quantization.rounding import Factor, factorize, round_weights
from vitedge.quantization.search import Budget
from vitedge.runtimes.image import read_image

IntegerActivations = Literal["auto", "int8", "int16"]
# What the search keeps if no gate asks for something: about what the CPU targets' static inputs keep.
DEFAULT_BUDGET = Budget(min_sqnr_db=27.0)
_BATCH = 8


def plan_for_npu(
    checkpoint: Checkpoint,
    images: ImageSet,
    *,
    activations: IntegerActivations,
    plan: Path | None,
    budget: Budget,
    console: Console,
) -> tuple[IntegerPlan, IntegerSearchResult | None]:
    """The plan, and how it was found if it was searched for.

    Args:
        checkpoint: What to quantize.
        images: Calibration images.
        activations: `int8` or `int16` for all of them, or `auto`: 16 bits where the budget needs them.
        plan: A `plan.json` of this target whose 16-bit tensors are taken instead.
        budget: For `auto`.
        console: Shows progress.

    Raises:
        PlanError: The plan is unreadable or of another checkpoint, the budget cannot be met, or the images are
            degenerate.
    """
    decided = None if plan is None else load_integer_decisions(plan)
    if decided is not None:
        decided.check(checkpoint.origin.digest)
    observation = _observe(checkpoint, images, console)
    integers = _round(observation, console)
    searched = None
    if decided is not None:
        precision = IntegerPrecision(observation.ranges, decided.precision.sixteen)
    elif activations == "auto":
        searched = _search(checkpoint, images, observation, integers, budget, console)
        precision = searched.precision
    else:
        everything = frozenset(observation.ranges) - {PIXELS} if activations == "int16" else frozenset()
        precision = IntegerPrecision(observation.ranges, everything)
    made = IntegerPlan(
        checkpoint.origin.digest,
        images.digest,
        precision,
        observation.factors,
        observation.multipliers,
        integers.linears,
    )
    return made, searched


def _observe(checkpoint: Checkpoint, images: ImageSet, console: Console) -> Observation:
    contract, passes = checkpoint.preprocessing, 3
    with console.bar("Calibrating integers", passes * len(images.paths)) as advance:

        def counted() -> Iterator[FloatArray]:
            for pixel_values in batches(images, contract, _BATCH):
                yield pixel_values
                advance(len(pixel_values))

        return observe(checkpoint.encoder, counted, contract.value_range)


def _round(observation: Observation, console: Console) -> IntegerEncoder:
    formats = {"int8": WEIGHT_FORMATS["int8"]}
    factors: dict[int, Factor] = {}  # query, key and value read the same
    with console.bar("Rounding weights", len(observation.statistics)) as advance:

        def round_weight(name: str, weight: FloatArray, bias: FloatArray) -> IntegerWeight:
            seen = observation.statistics[name]
            if id(seen) not in factors:
                factors[id(seen)] = factorize(seen)
            rounded = round_weights(weight, bias, factors[id(seen)], formats)["int8"]
            advance(1)
            return rounded

        return round_linears(observation.folded, round_weight)


def _search(
    checkpoint: Checkpoint,
    images: ImageSet,
    observation: Observation,
    integers: IntegerEncoder,
    budget: Budget,
    console: Console,
) -> IntegerSearchResult:
    photographs = checkpoint.preprocessing.batch([read_image(path) for path in spread(images.paths, POINT_IMAGES)])
    judge = Judge(integers, observation.ranges, photographs[:: max(1, len(photographs) // ORDER_IMAGES)])
    with console.bar("Measuring the sensitivity of each activation", len(judge.groups)) as advance:
        costs_db = judge.costs_db(_each(advance))
    with console.step("Searching for the activations that need 16 bits"):
        return search_integers(Judge(integers, observation.ranges, photographs), costs_db, budget)


def _each(advance: Callable[[int], None]) -> Callable[[str], None]:
    return lambda _: advance(1)
