"""Gates: how much an artifact may lose. A metric that a gate needs and that is not there is an error, never a pass.

The measured value decides (`check`). A gate that asked for proof at 95 % would refuse faultless artifacts for want of
images: 0.5 % takes 736 of them even if none differs, and so it would get switched off. What passes although the images
cannot rule out that the limit is exceeded is a warning (`doubts`), and says how many images would do.
"""

import math
from dataclasses import dataclass
from decimal import Decimal

from vitedge.quantization.accuracy import AccuracyReport
from vitedge.quantization.intervals import images_to_detect
from vitedge.quantization.labels import Drop
from vitedge.runtimes.errors import AccuracyError


@dataclass(frozen=True)
class Gates:
    """Limits; None means that there is none.

    Attributes:
        max_drop: Largest drop, as a fraction, of top-1 for classifiers, else of k-NN accuracy. Needs labels.
        min_cosine: Smallest mean cosine to FP32 of every output.
        min_sqnr_db: Smallest SQNR of `last_hidden_state`.
    """

    max_drop: float | None = None
    min_cosine: float | None = None
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not math.isfinite(value):
                raise AccuracyError(f"{name}: expected a finite number, found {value}")

    @property
    def any(self) -> bool:
        return any(value is not None for value in vars(self).values())


NO_GATES = Gates()


def check(report: AccuracyReport, gates: Gates) -> tuple[str, ...]:
    """The gates that a report fails, in words; empty if it passes all.

    Raises:
        AccuracyError: A gate needs a metric that could not be measured.
    """
    failures = []
    if (gates.min_cosine is not None or gates.min_sqnr_db is not None) and "last_hidden_state" not in report.outputs:
        raise AccuracyError(f"last_hidden_state was not measured, only {sorted(report.outputs)}: no gate can judge it")
    if gates.min_cosine is not None:
        for output, found in report.outputs.items():
            if not found.cosine_mean >= gates.min_cosine:
                failures.append(f"{output}: mean cosine {found.cosine_mean:.5f} is below {gates.min_cosine}")
    if gates.min_sqnr_db is not None:
        sqnr_db = report.outputs["last_hidden_state"].sqnr_db
        if not sqnr_db >= gates.min_sqnr_db:
            failures.append(f"last_hidden_state: SQNR {sqnr_db:.2f} dB is below {gates.min_sqnr_db} dB")
    if gates.max_drop is not None:
        drop = gated_drop(report)
        if not drop.drop <= gates.max_drop:
            failures.append(
                f"{drop.metric} accuracy drops by {drop.drop:.2%}, more than {gates.max_drop:.2%}"
                f" (95 % interval {drop.drop_low:.2%} to {drop.drop_high:.2%}, {drop.images} images)"
            )
    return tuple(failures)


def doubts(report: AccuracyReport, gates: Gates) -> tuple[str, ...]:
    """Gates that the measured values pass, but the number of images cannot vouch for; in words, empty if none.

    Raises:
        AccuracyError: A gate needs a metric that could not be measured.
    """
    found = []
    for output, accuracy in report.outputs.items():
        measured = [("mean cosine", accuracy.cosine_mean, accuracy.cosine_mean_interval, gates.min_cosine)]
        if output == "last_hidden_state":
            measured.append(("SQNR in dB", accuracy.sqnr_db, accuracy.sqnr_db_interval, gates.min_sqnr_db))
        for metric, value, interval, limit in measured:
            if limit is None or value < limit:
                continue
            if interval is None:
                found.append(f"{output}: one image cannot tell how far its {metric} of {value:.5g} is chance")
            elif interval[0] < limit:
                found.append(
                    f"{output}: {metric} {value:.5g} passes {limit:g}, but {report.images} images cannot rule out"
                    f" {interval[0]:.5g} (95 % interval); judge on more"
                )
    if gates.max_drop is not None and gated_drop(report).drop <= gates.max_drop:
        found.extend(_doubted_drop(gated_drop(report), gates.max_drop))
    return tuple(found)


def _doubted_drop(drop: Drop, limit: float) -> list[str]:
    if drop.possible <= limit:
        return []
    resolved = f"resolve no drop below {1 / drop.images:.2%} and " if 1 / drop.images > limit else ""
    # That many if none differs; nothing proves a drop of exactly 0.
    needed = f"at least {max(images_to_detect(limit), drop.images + 1)}" if limit > 0 else "as many as you have"
    return [
        f"{drop.metric}: a drop of {drop.drop:.2%} passes {limit:.2%}, but {drop.images} images"
        f" {resolved}cannot rule out one of {drop.possible:.2%} (95 % interval); judge on {needed}"
    ]


def gated_drop(report: AccuracyReport) -> Drop:
    """The drop that `max_drop` limits.

    Raises:
        AccuracyError: There are no labels to measure one by.
    """
    drop = report.leading_drop
    if drop is None:
        reasons = "".join(f"; {note}" for note in report.notes)
        raise AccuracyError(
            f"max_drop needs labelled images: a folder with a sub-folder for each class (--eval){reasons}"
        )
    return drop


def parse_fraction(text: str, option: str, *, most: float = 1.0) -> float:
    """`0.5%` and `0.005` are the same fraction, from 0 to `most`, that an option was given.

    Raises:
        AccuracyError: Not that.
    """
    try:
        # Decimal, because 0.7 / 100 is less than 0.007 in binary.
        value = float(Decimal(text.removesuffix("%")).scaleb(-2 if text.endswith("%") else 0))
    except (ArithmeticError, ValueError):
        value = math.nan
    if not 0 <= value <= most or math.isinf(value):
        raise AccuracyError(f"{option}: expected a share such as 0.5% or 0.005, found {text}")
    return value
