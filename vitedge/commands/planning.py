"""What a build decides before it converts: recipes, from a target or a plan file; calibration; and the search."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from vitedge.calibration import cache
from vitedge.calibration.images import ImageSet, batches
from vitedge.calibration.observers import InputStatistics
from vitedge.console import Console
from vitedge.converters.checkpoint import Checkpoint
from vitedge.quantization.encoder import Encoder
from vitedge.quantization.plan import TARGETS, Plan, PlanDecisions, Recipe, load_decisions
from vitedge.quantization.quantize import Calibration, observe
from vitedge.quantization.search import CURVE_POINTS, Budget, SearchResult, search
from vitedge.runtimes.errors import PlanError

Activations = Literal["auto", "static", "dynamic"]
_BATCH = 8
_SEARCH_IMAGES = 24
# Part of the calibration cache's fingerprint; raise it when what is observed, or how, changes.
_OBSERVATION_METHOD = "covariance-1"


def choose_recipes(
    runtimes: tuple[str, ...], target: str, activations: Activations, plan: Path | None, checkpoint: Checkpoint
) -> Mapping[str, Recipe]:
    """How each runtime computes the linears.

    Args:
        runtimes: Those asked for.
        target: A key of `TARGETS`.
        activations: `auto` takes the target's own recipes; the others replace their precisions.
        plan: A `plan.json` whose recipes are taken instead.
        checkpoint: What they must fit.

    Raises:
        PlanError: The plan is unreadable, of another checkpoint or target, or lacks a runtime.
    """
    recipes = TARGETS[target] if plan is None else _decisions(plan, runtimes, target, checkpoint).recipes
    recipes = {runtime: recipes[runtime] for runtime in runtimes}
    if activations == "auto":
        return recipes
    chosen = {}
    for runtime, recipe in recipes.items():
        if runtime == "tflite":  # XNNPACK has no other kind
            chosen[runtime] = recipe
        elif activations == "static":
            chosen[runtime] = Recipe(recipe.weights, {"*": "static"})
        else:  # pixels have one range by contract, and OpenVINO convolves them whole
            chosen[runtime] = Recipe(recipe.weights, {"*": "dynamic", "patch_embedding": "static"})
    return chosen


def calibrate(checkpoint: Checkpoint, images: ImageSet, console: Console) -> Calibration:
    """What the images say of the encoder, from the cache if they were observed before."""
    contract = checkpoint.preprocessing
    statistics = _statistics(checkpoint, images, console)
    return Calibration(statistics, lambda: batches(images, contract, _BATCH), contract.value_range, images.digest)


def search_runtimes(
    plan: Plan,
    smoothed: Encoder,
    budget: Budget,
    checkpoint: Checkpoint,
    images: ImageSet,
    console: Console,
    *,
    allow_dynamic: bool,
) -> tuple[Plan, Mapping[str, SearchResult]]:
    """The plan with as many integers as the budget allows, and how it was found, runtime by runtime."""
    pixel_values = next(batches(images, checkpoint.preprocessing, _SEARCH_IMAGES))
    searches = {}
    total = sum(len(plan.linears(runtime)) + CURVE_POINTS for runtime in plan.recipes)
    with console.bar("Measuring the sensitivity of each linear, and searching", total) as advance:
        for runtime in plan.recipes:
            found = search(
                plan,
                runtime,
                checkpoint.encoder,
                smoothed,
                pixel_values,
                budget,
                lambda _: advance(1),
                allow_dynamic=allow_dynamic,
            )
            searches[runtime], plan = found, found.plan
    return plan, searches


def _decisions(path: Path, runtimes: tuple[str, ...], target: str, checkpoint: Checkpoint) -> PlanDecisions:
    decisions = load_decisions(path)
    decisions.check(checkpoint.origin.digest, checkpoint.encoder.shape.linears)
    missing = [runtime for runtime in runtimes if runtime not in decisions.recipes]
    if missing:
        raise PlanError(
            f"{decisions.path}: has no recipe for {', '.join(missing)}, only for {', '.join(decisions.recipes)};"
            f" pass --runtime {','.join(decisions.recipes)}, or add one"
        )
    if decisions.target != target:
        raise PlanError(
            f"{decisions.path}: made for target {decisions.target}, but --target is {target};"
            f" pass --target {decisions.target}"
        )
    return decisions


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
        statistics = observe(
            checkpoint.encoder,
            _counted(batches(images, checkpoint.preprocessing, _BATCH), advance),
        )
    cache.store(fingerprint, statistics)
    return statistics


def _counted(arrays: Iterator[Any], advance: Any) -> Iterator[Any]:
    for array in arrays:
        yield array
        advance(len(array))
