"""How far a measured number could be chance, and what a number of images can show at all.

Intervals are at 95 %, by the percentile bootstrap over images (Efron 1979): images are drawn again with replacement,
and the interval holds the middle 95 % of what the draws give. The draws are seeded, so a report repeats to the digit.

Where all images give the same value every draw is the same, and the bootstrap would claim certainty: 40 of 40 right is
not proof of 100 %. For values that are bounded, Clopper and Pearson's exact bound (1934) takes its place: if none of n
images differs, the share of all images that do is below 1 - 0.025^(1/n), 8.8 % for 40 images and 0.92 % for 400.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap

CONFIDENCE = 0.95
Interval = tuple[float, float]
Values = NDArray[np.float64]
_RESAMPLES = 2000
_BATCH_VALUES = 4_000_000  # of resampled values held at once: 32 MB
_TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Estimate:
    """A mean over images, and its 95 % interval."""

    mean: float
    interval: Interval


def bootstrap_interval(statistic: Callable[..., Values], *samples: Values) -> Interval | None:
    """Where a statistic of several values per image could lie; None for fewer than two images.

    Args:
        statistic: Of the samples, along `axis`.
        samples: Float64 [images] each; an image keeps its values together when it is drawn.
    """
    images = len(samples[0])
    if images < 2:
        return None
    found = bootstrap(
        samples,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_VALUES // images),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def mean_interval(values: Values) -> Interval | None:
    """Where the mean of values [images] could lie; None for fewer than two images."""
    return bootstrap_interval(np.mean, values)


def bounded_estimate(values: Values, within: Interval = (0.0, 1.0)) -> Estimate:
    """Mean of values [images] that lie within bounds, such as shares and hits; no number of images makes it certain."""
    mean = float(values.mean())
    if np.ptp(values) > 0:
        low, high = bootstrap_interval(np.mean, values) or within
    else:
        differing = undetected_share(len(values))
        low, high = ((1 - differing) * mean + differing * bound for bound in within)
    return Estimate(mean, (low, high))


def undetected_share(images: int) -> float:
    """Largest share of all images that may differ although none of these does (Clopper-Pearson, 95 %, two-sided)."""
    return float(1 - _TAIL ** (1 / images))


def images_to_detect(share: float) -> int:
    """Fewest images among which a share of differing ones, above 0 and below 1, cannot stay unseen.

    The inverse of `undetected_share`.
    """
    return math.ceil(math.log(_TAIL) / math.log1p(-share))


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test (1947): the probability of a split at least as uneven if both sides were equally accurate.

    Args:
        lost: Images that FP32 gets right and INT8 wrong.
        gained: Images that INT8 gets right and FP32 wrong.

    Returns:
        The two-sided p-value; 1 if no image differs.
    """
    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
