"""Planning for target npu: observe the integer program, round its linears, choose which activations have 16 bits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vitedge.calibration.images import ImageSet, batches, spread
from vitedge.commands.clock import Clock
from vitedge.commands.request import BuildRequest
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint
from vitedge.converters.lower import lower_for_npu
from vitedge.plots import plot_integer_search
from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.integer_float import Observation, observe, observed_ranges
from vitedge.quantization.integer_grid import IntegerPrecision, Range
from vitedge.quantization.integer_operations import IntegerEncoder, round_linears
from vitedge.quantization.integer_plan import PIXELS, IntegerDecisions, IntegerPlan, load_integer_decisions
from vitedge.quantization.integer_search import (
    ORDER_IMAGES,
    POINT_IMAGES,
    IntegerSearchResult,
    Judge,
    search_integers,
)
from vitedge.quantization.plan import IntegerWeight
from vitedge.quantization.recipe import WEIGHT_FORMATS
from vitedge.quantization.rounding import Factor, factorize, round_weights
from vitedge.quantization.search import Budget
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.image import read_image
from vitedge.runtimes.manifest import Manifest

# What the search aims at if no gate asks for something. On vit-s14-real it became 28.3 dB on 400 images.
DEFAULT_BUDGET = Budget(min_sqnr_db=29.5)
_BATCH = 8


@dataclass(frozen=True)
class _Search:
    """A search that can go on: what judges, the costs that order the tensors, and what was found."""

    judge: Judge
    costs_db: Mapping[str, float]
    result: IntegerSearchResult


@dataclass(frozen=True)
class NpuPlanned:
    """A plan for NPUs, and all that it takes to lower it or to make it more accurate; see `Planned` in `build.py`."""

    request: BuildRequest
    checkpoint: Checkpoint
    plan: IntegerPlan
    search: _Search | None

    @property
    def searches(self) -> Mapping[str, IntegerSearchResult]:
        return {} if self.search is None else {"tflite": self.search.result}

    def lower(self, _runtime: str, folder: Path, calibration: Mapping[str, object]) -> Manifest:
        return lower_for_npu(
            folder,
            checkpoint=self.checkpoint,
            plan=self.plan,
            batch=self.request.batch_for("tflite"),
            calibration=calibration,
            integer_io=self.request.integer_io,
        )

    def tightened(self, _runtime: str, by_db: float, console: Console) -> "NpuPlanned":
        assert self.search is not None, "a build tightens only what it may search"
        with console.step(f"Searching for a plan with {by_db:g} dB more"):
            known = self.search.result
            budget = Budget.above(known.found, by_db, known.curve[-1])
            result = search_integers(self.search.judge, self.search.costs_db, budget)
        plan = replace(self.plan, precision=result.precision)
        return replace(self, plan=plan, search=replace(self.search, result=result))

    def plot(self, path: Path) -> None:
        plot_integer_search(self.searches["tflite"], path)


def plan_for_npu(
    request: BuildRequest,
    decisions: IntegerDecisions | None,
    checkpoint: Checkpoint,
    images: ImageSet,
    clock: Clock,
    console: Console,
) -> NpuPlanned:
    """Observes, rounds, and searches unless a plan, or one precision throughout, was asked for, or weights are random:
    those get 8 bits.

    Args:
        request: What is asked for.
        decisions: From `read_plan`, if a plan was asked for.
        checkpoint: What to quantize.
        images: Calibration images.
        clock: Times the steps.
        console: Shows progress.

    Raises:
        PlanError: The budget cannot be met, or the images are degenerate.
    """
    with clock("calibrate"):
        observation = _observe(checkpoint, images, console)
    with clock("plan"):
        integers = _round(observation, console)
    found = None
    ranges = observation.ranges
    if decisions is not None:
        ranges, sixteen = _decided_ranges(decisions, ranges, images), decisions.precision.sixteen
    elif request.may_search and not request.random_weights:  # those have no accuracy that bits could be spent on
        with clock("search"):
            found = _search(checkpoint, images, observation, integers, request.budget or DEFAULT_BUDGET, console)
        sixteen = found.result.precision.sixteen
    else:
        sixteen = frozenset(ranges) - {PIXELS} if request.activations == "int16" else frozenset()
    plan = IntegerPlan(
        checkpoint.origin.digest,
        images.digest,
        IntegerPrecision(ranges, sixteen),
        observation.factors,
        observation.multipliers,
        integers.linears,
    )
    return NpuPlanned(request, checkpoint, plan, found)


def read_plan(path: Path, checkpoint: Checkpoint) -> IntegerDecisions:
    """The decisions of a plan for this target.

    Raises:
        PlanError: It is unreadable, or of another checkpoint.
    """
    decisions = load_integer_decisions(path)
    decisions.check(checkpoint.origin.digest)
    return decisions


def _decided_ranges(
    decisions: IntegerDecisions, observed: Mapping[str, Range], images: ImageSet
) -> Mapping[str, Range]:
    """The plan's ranges, edited or not. Those of other images belong to other factors of the residual stream.

    Raises:
        PlanError: They are not those of this encoder's tensors, or of other images.
    """
    ranges = decisions.precision.ranges
    if decisions.calibration_digest != images.digest:
        raise PlanError(
            f"{decisions.path}: calibrated on images with digest {decisions.calibration_digest[:12]}…, but --images has"
            f" {images.digest[:12]}…; pass the same --images and --calibration-images, or search anew without --plan"
        )
    if different := sorted(ranges.keys() ^ observed.keys()):
        raise PlanError(
            f"{decisions.path}: ranges: expected the {len(observed)} tensors of this encoder, found {len(ranges)};"
            f" the first that only one of them has is {different[0]}"
        )
    return ranges


def _observe(checkpoint: Checkpoint, images: ImageSet, console: Console) -> Observation:
    contract, passes = checkpoint.preprocessing, 3
    with console.bar("Calibrating integers", passes * len(images.paths)) as advance:
        return observe(checkpoint.encoder, lambda: batches(images, contract, _BATCH, advance), contract.value_range)


def _round(observation: Observation, console: Console) -> IntegerEncoder:
    formats = {"int8": WEIGHT_FORMATS["int8"]}
    last: dict[int, Factor] = {}  # query, key and value follow each other and read the same
    with console.bar("Rounding weights", len(observation.statistics)) as advance:

        def round_weight(name: str, weight: FloatArray, bias: FloatArray) -> IntegerWeight:
            seen = observation.statistics[name]
            if id(seen) not in last:
                last.clear()
                last[id(seen)] = factorize(seen)
            rounded = round_weights(weight, bias, last[id(seen)], formats)["int8"]
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
) -> _Search:
    """Searches by images whose own ranges are left out: with them, predictions flatter by 0.6 dB more."""
    contract = checkpoint.preprocessing
    if len(images.paths) < 2:
        raise PlanError(
            "expected at least 2 calibration images, as some are left out to judge what is searched; found 1: pass"
            " more, or --activations int8 or int16"
        )
    judged = spread(images.paths, min(POINT_IMAGES, len(images.paths) // 2))
    rest = replace(images, paths=tuple(path for path in images.paths if path not in judged))
    with console.bar("Observing ranges without the images that judge", len(rest.paths)) as advance:
        ranges = observed_ranges(observation.folded, batches(rest, contract, _BATCH, advance), contract.value_range)
    photographs = contract.batch([read_image(path) for path in judged])
    few = Judge(integers, ranges, photographs[:: -(-len(photographs) // ORDER_IMAGES)])
    with console.bar("Measuring the sensitivity of each activation", len(few.groups)) as advance:
        costs_db = few.costs_db(lambda _: advance(1))
    with console.step("Searching for the activations that need 16 bits"):
        judge = Judge(integers, ranges, photographs)
        return _Search(judge, costs_db, search_integers(judge, costs_db, budget))
