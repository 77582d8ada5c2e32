"""The decisions in a `plan.json` that may have been edited by hand, checked before anything follows from them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vitedge.quantization.recipe import TARGETS, WITHOUT_ROWS, Precision, RangeMethod, Recipe
from vitedge.quantization.saved_plan import PLAN_FILE, check_checkpoint, read_document, unreadable
from vitedge.runtimes.errors import PlanError

FORMAT = "vitedge-plan/6"
KEYS = ("format", "checkpoint_digest", "target", "smoothing_strength", "ranges", "recipes", "results")


@dataclass(frozen=True)
class PlanDecisions:
    """The half of a plan that people edit. The other half (`plan.py`) follows from it and the calibration images.

    `strength` is that of smoothing, and `ranges` says how fixed input ranges are chosen.
    """

    path: Path
    checkpoint_digest: str
    target: str
    recipes: Mapping[str, Recipe]
    strength: float
    ranges: RangeMethod = "min-max"

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise PlanError(f"target: expected one of {', '.join(TARGETS)}, found {self.target}")
        if unknown := [runtime for runtime in self.recipes if runtime not in TARGETS[self.target]]:
            raise PlanError(f"recipes: expected some of {', '.join(TARGETS[self.target])}, found {', '.join(unknown)}")
        if not (math.isfinite(self.strength) and 0 <= self.strength <= 1):
            raise PlanError(f"smoothing_strength: expected a number from 0 to 1, found {self.strength}")
        if self.ranges not in get_args(RangeMethod):
            raise PlanError(f"ranges: expected {' or '.join(get_args(RangeMethod))}, found {self.ranges}")

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
    document = read_document(path, FORMAT, KEYS)
    try:
        recipes = {runtime: Recipe(**entry) for runtime, entry in document["recipes"].items()}
        return PlanDecisions(
            path,
            str(document["checkpoint_digest"]),
            str(document["target"]),
            recipes,
            float(document["smoothing_strength"]),
            document["ranges"],
        )
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, error) from error
