"""What calibration remembers of each linear's input. Its size does not grow with the number of images.

- The extremes per channel: smoothing divides channels, so the range after it follows from the range before. Few images
  do not show all that others will hold, and which they show is chance. So extremes reach at least as far as the mean of
  those of the images and `DEVIATIONS` of their standard deviations more.
- The mean, and the covariance C of all pairs of channels: they give the output error of any change E to the weights,
  tr(E · C · Eᵀ) once the bias is right, and so decide how weights are rounded (GPTQ, Frantar et al. 2022, calls XᵀX the
  Hessian). Products are summed about the mean of the first batch: in float32, channels whose mean is much larger than
  their spread would otherwise lose the spread, and the covariance its positive eigenvalues.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vitedge.runtimes.errors import PlanError

# Fewer clip what unseen images hold, more are coarser everywhere.
DEVIATIONS = 2.5


@dataclass(frozen=True)
class InputStatistics:
    """Of the input of one linear, over all rows seen.

    `minimum` and `maximum`, float32 [in], are the extremes that are expected of any image; `mean` is float32 [in],
    `covariance` float32 [in, in].
    """

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    mean: NDArray[np.float32]
    covariance: NDArray[np.float32]

    @property
    def absolute_maximum(self) -> NDArray[np.float32]:
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def shifted_by(self, offsets: NDArray[np.float32]) -> "InputStatistics":
        """The statistics of the same input with an offset subtracted from every channel."""
        return replace(self, minimum=self.minimum - offsets, maximum=self.maximum - offsets, mean=self.mean - offsets)

    def divided_by(self, factors: NDArray[np.float32]) -> "InputStatistics":
        """The statistics of the same input with every channel divided by its positive factor."""
        return InputStatistics(
            self.minimum / factors,
            self.maximum / factors,
            self.mean / factors,
            self.covariance / factors / factors[:, None],
        )


class Observer:
    """Wraps a linear and keeps statistics of what it is given.

    Args:
        linear: (name, input [images, ..., in]) -> output; called unchanged.
    """

    def __init__(self, linear: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._linear = linear
        self._seen: dict[str, _Seen] = {}

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        if name not in self._seen:
            self._seen[name] = _Seen(x.shape[-1])
        self._seen[name].add(x.reshape(len(x), -1, x.shape[-1]))
        return self._linear(name, x)

    def statistics(self) -> Mapping[str, InputStatistics]:
        """The statistics by linear.

        Raises:
            PlanError: An input held NaN or infinity, or never changed.
        """
        return {name: seen.statistics(name) for name, seen in self._seen.items()}


class _Seen:
    """Running statistics of images whose rows have one width."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._low, self._high = torch.full((width,), torch.inf), torch.full((width,), -torch.inf)
        self._lows, self._highs = _Spread(width), _Spread(width)
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._center: torch.Tensor | None = None
        self._products = torch.zeros(width, width)

    def add(self, images: torch.Tensor) -> None:
        """Adds images [images, rows, in]."""
        lows, highs, rows = images.amin(1), images.amax(1), images.flatten(0, 1)
        self._low, self._high = torch.minimum(self._low, lows.amin(0)), torch.maximum(self._high, highs.amax(0))
        self._lows.add(lows)
        self._highs.add(highs)
        self._count += len(rows)
        self._sum += rows.double().sum(0)
        if self._center is None:
            self._center = rows.mean(0)
        centered = rows - self._center
        self._products.addmm_(centered.T, centered)

    def statistics(self, name: str) -> InputStatistics:
        assert self._center is not None
        mean = self._sum / self._count
        offset = (mean - self._center).float()
        covariance = self._products / self._count - torch.outer(offset, offset)
        low = torch.minimum(self._low, self._lows.mean_and(-DEVIATIONS))
        high = torch.maximum(self._high, self._highs.mean_and(DEVIATIONS))
        found = (low, high, mean.float(), covariance)
        if not all(torch.isfinite(tensor).all() for tensor in found):
            raise PlanError(f"the input of {name} held NaN or infinity during calibration; check the checkpoint")
        if self._count > 1 and bool((low == high).all()):
            raise PlanError(
                f"the input of {name} never changed over the calibration images, so that nothing is known of its range:"
                " the images are blank, or the layer before it is never activated; calibrate on images like those the"
                " encoder will see"
            )
        return InputStatistics(*(tensor.numpy() for tensor in found))


class _Spread:
    """Mean and standard deviation of a number per image and channel."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._first: torch.Tensor | None = None
        self._sum, self._squares = torch.zeros(2, width, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Adds values [images, in]."""
        if self._first is None:
            self._first = values[0].double()
        # About the first image's, so that what is the same in all images has a deviation of exactly 0.
        differences = values.double() - self._first
        self._count += len(values)
        self._sum += differences.sum(0)
        self._squares += differences.square().sum(0)

    def mean_and(self, deviations: float) -> torch.Tensor:
        """The mean and so many standard deviations more, float32 [in]."""
        assert self._first is not None
        mean = self._sum / self._count
        deviation = (self._squares / self._count - mean.square()).clamp_min(0).sqrt()
        found: torch.Tensor = self._first + mean + deviations * deviation
        return found.float()
