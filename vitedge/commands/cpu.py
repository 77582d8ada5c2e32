"""Planning for CPU targets: recipes, from a target or a plan file; calibration; rounding; and the search."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vitedge.calibration import cache
from vitedge.calibration.images import ImageSet, batches, spread
from vitedge.calibration.observers import InputStatistics
from vitedge.commands.clock import Clock
from vitedge.commands.request import BuildRequest
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint
from vitedge.converters.lower import lower
from vitedge.plots import plot_search
from vitedge.quantization.decisions import PlanDecisions, load_decisions
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.fake import fake_quantized_linear
from vitedge.quantization.plan import Plan
from vitedge.quantization.prediction import Prediction
from vitedge.quantization.quantize import STRENGTHS, Calibration, make_plan, observe
from vitedge.quantization.recipe import TARGETS, Precision, RangeMethod, Recipe
from vitedge.quantization.search import CURVE_POINTS, Budget, Climb, SearchResult, climb, search
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.manifest import Manifest

_BATCH = 8
_JUDGING_IMAGES, _SEARCH_IMAGES = 32, 24
# Part of the calibration cache's fingerprint; raise it when what is observed, or how, changes.
_OBSERVATION_METHOD = "covariance-2"


@dataclass(frozen=True)
class CpuChoices:
    """What a target, an option or a plan file decides: recipes by runtime, strengths to try, how ranges are chosen."""

    recipes: Mapping[str, Recipe]
    strengths: tuple[float, ...]
    ranges: RangeMethod


@dataclass(frozen=True)
class CpuPlanned:
    """A plan for CPUs, and all that it takes to lower it or to make it more accurate; see `Planned` in `build.py`."""

    request: BuildRequest
    checkpoint: Checkpoint
    images: ImageSet
    smoothed: Encoder
    plan: Plan
    searches: Mapping[str, SearchResult]

    def lower(self, runtime: str, folder: Path, calibration: Mapping[str, object]) -> Manifest:
        return lower(
            runtime,
            folder,
            encoder=self.smoothed,
            linears=self.plan.linears(runtime),
            checkpoint=self.checkpoint,
            plan=self.plan,
            batch=self.request.batch_for(runtime),
            calibration=calibration,
            portable=self.request.portable,
        )

    def searched(self, budget: Budget, console: Console) -> "CpuPlanned":
        """With as many integers as a budget allows, runtime by runtime; nothing is searched where the plan meets it."""
        planned, prediction = self, self._prediction()
        total = sum(len(self.plan.linears(runtime)) + CURVE_POINTS for runtime in self.plan.recipes)
        with console.bar("Measuring the sensitivity of each linear, and searching", total) as advance:
            for runtime in self.plan.recipes:
                linears = self.plan.linears(runtime)
                if budget.met_by(prediction(self.smoothed, fake_quantized_linear(self.smoothed, linears))):
                    advance(len(linears) + CURVE_POINTS)
                    continue
                found = search(self._climb(runtime, prediction, lambda _: advance(1)), budget, lambda _: advance(1))
                planned = planned._with(runtime, found)
        return planned

    def tightened(self, runtime: str, by_db: float, console: Console) -> "CpuPlanned":
        with console.step(f"Searching for a plan with {by_db:g} dB more for {runtime}"):
            known = self.searches.get(runtime)
            steps = self._climb(runtime, self._prediction()) if known is None else known.climb
            reached = steps.at(0) if known is None else known.found
            return self._with(runtime, search(steps, Budget.above(reached, by_db, steps.top)))

    def plot(self, path: Path) -> None:
        plot_search(self.searches, path)

    def _prediction(self) -> Prediction:
        judging = replace(self.images, paths=spread(self.images.paths, _SEARCH_IMAGES))
        pixel_values = next(batches(judging, self.checkpoint.preprocessing, _SEARCH_IMAGES))
        return Prediction(self.checkpoint.encoder, pixel_values)

    def _climb(self, runtime: str, prediction: Prediction, progress: Callable[[str], None] = lambda _: None) -> Climb:
        allow_dynamic = self.request.activations != "static"
        return climb(self.plan, runtime, self.smoothed, prediction, progress, allow_dynamic=allow_dynamic)

    def _with(self, runtime: str, found: SearchResult) -> "CpuPlanned":
        recipes = {**self.plan.recipes, runtime: found.plan.recipes[runtime]}
        return replace(self, plan=replace(self.plan, recipes=recipes), searches={**self.searches, runtime: found})


def plan_for_cpu(
    request: BuildRequest,
    choices: CpuChoices,
    checkpoint: Checkpoint,
    images: ImageSet,
    clock: Clock,
    console: Console,
) -> CpuPlanned:
    """Calibrates, rounds, and searches if gates ask for something that can be predicted.

    Args:
        request: What is asked for.
        choices: From `choose`.
        checkpoint: What to quantize.
        images: Calibration images.
        clock: Times the steps.
        console: Shows progress.

    Raises:
        PlanError: The images are degenerate, or the budget cannot be met.
    """
    with clock("calibrate"):
        observed = _calibrate(checkpoint, images, console)
    with clock("plan"):
        plan, smoothed = _round(request.target, choices, checkpoint, observed, console)
    planned = CpuPlanned(request, checkpoint, images, smoothed, plan, {})
    if request.budget is None:
        return planned
    with clock("search"):
        return planned.searched(request.budget, console)


def choose(request: BuildRequest, checkpoint: Checkpoint) -> CpuChoices:
    """The target's decisions, with what `activations` asks for, or the plan's.

    Raises:
        PlanError: The plan is unreadable, of another checkpoint or target, or lacks a runtime.
    """
    if request.plan is not None:
        decisions = _decisions(request, checkpoint)
        kept = {runtime: decisions.recipes[runtime] for runtime in request.runtimes}
        return CpuChoices(kept, (decisions.strength,), decisions.ranges)
    # Random weights have no accuracy that a strength could be chosen by.
    strengths = STRENGTHS[:1] if request.random_weights else STRENGTHS
    return CpuChoices(_recipes(request), strengths, request.ranges)


def _recipes(request: BuildRequest) -> Mapping[str, Recipe]:
    recipes = {runtime: TARGETS[request.target][runtime] for runtime in request.runtimes}
    if request.activations == "auto":
        return recipes
    chosen = {}
    for runtime, recipe in recipes.items():
        if runtime == "tflite":  # XNNPACK has no other kind
            chosen[runtime] = recipe
        elif request.activations == "static":
            chosen[runtime] = replace(recipe, precisions={"*": "static"})
        else:  # pixels have one range by contract, and OpenVINO convolves them whole; who asks for accuracy first
            # does not want attention scores in 8 bits
            precisions: dict[str, Precision] = {"*": "dynamic", "patch_embedding": "static"}
            chosen[runtime] = replace(recipe, precisions=precisions, scores="float")
    return chosen


def _decisions(request: BuildRequest, checkpoint: Checkpoint) -> PlanDecisions:
    assert request.plan is not None, "asked for"
    decisions = load_decisions(request.plan)
    decisions.check(checkpoint.origin.digest, checkpoint.encoder.shape.linears)
    missing = [runtime for runtime in request.runtimes if runtime not in decisions.recipes]
    if missing:
        raise PlanError(
            f"{decisions.path}: has no recipe for {', '.join(missing)}, only for {', '.join(decisions.recipes)};"
            f" pass --runtime {','.join(decisions.recipes)}, or add one"
        )
    if decisions.target != request.target:
        raise PlanError(
            f"{decisions.path}: made for target {decisions.target}, but --target is {request.target};"
            f" pass --target {decisions.target}"
        )
    return decisions


def _round(
    target: str,
    choices: CpuChoices,
    checkpoint: Checkpoint,
    calibration: Calibration,
    console: Console,
) -> tuple[Plan, Encoder]:
    with console.bar("Rounding weights", len(choices.strengths) * len(checkpoint.encoder.shape.linears)) as advance:
        return make_plan(
            checkpoint.encoder,
            calibration,
            recipes=choices.recipes,
            target=target,
            checkpoint_digest=checkpoint.origin.digest,
            strengths=choices.strengths,
            range_method=choices.ranges,
            progress=lambda _: advance(1),
        )


def _calibrate(checkpoint: Checkpoint, images: ImageSet, console: Console) -> Calibration:
    """What the images say of the encoder, from the cache if they were observed before."""
    contract = checkpoint.preprocessing
    statistics = _statistics(checkpoint, images, console)
    judging = replace(images, paths=spread(images.paths, _JUDGING_IMAGES))
    return Calibration(
        statistics,
        lambda: batches(images, contract, _BATCH),
        lambda: batches(judging, contract, _BATCH),
        contract.value_range,
        images.digest,
    )


def _statistics(checkpoint: Checkpoint, images: ImageSet, console: Console) -> Mapping[str, InputStatistics]:
    contract = json.dumps(checkpoint.preprocessing.to_json(), sort_keys=True)
    fingerprint = cache.fingerprint(
        checkpoint=checkpoint.origin.digest,
        images=images.digest,
        preprocessing=contract,
        shape=repr(checkpoint.encoder.shape),
        method=_OBSERVATION_METHOD,
    )
    statistics = cache.load(fingerprint)
    if statistics is not None and statistics.keys() == checkpoint.encoder.shape.linears.keys():
        console.note(f"Calibration of {len(images.paths)} images reused from the cache")
        return statistics
    with console.bar("Calibrating", len(images.paths)) as advance:
        statistics = observe(checkpoint.encoder, batches(images, checkpoint.preprocessing, _BATCH, advance))
    cache.store(fingerprint, statistics)
    return statistics
