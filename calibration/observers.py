"""What calibration remembers of each linear's input. Its size does not grow with the number of images.

- Minimum and maximum per channel: smoothing divides channels, so the range after it follows from the range before.
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


@dataclass(frozen=True)
class InputStatistics:
    """Of the input of one linear, over all rows seen.

    `minimum`, `maximum` and `mean` are float32 [in], `covariance` float32 [in, in].
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
        linear: (name, input [..., in]) -> output; called unchanged.
    """

    def __init__(self, linear: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._linear = linear
        self._seen: dict[str, _Seen] = {}

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        self._seen.setdefault(name, _Seen(x.shape[-1])).add(rows)
        return self._linear(name, x)

    def statistics(self) -> Mapping[str, InputStatistics]:
        """The statistics by linear.

        Raises:
            PlanError: An input held NaN or infinity, or never changed.
        """
        return {name: seen.statistics(name) for name, seen in self._seen.items()}


class _Seen:
    """Running statistics of rows of one width."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._low, self._high = torch.full((width,), torch.inf), torch.full((width,), -torch.inf)
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._center: torch.Tensor | None = None
        self._products = torch.zeros(width, width)

    def add(self, rows: torch.Tensor) -> None:
        self._count += len(rows)
        self._low, self._high = torch.minimum(self._low, rows.amin(0)), torch.maximum(self._high, rows.amax(0))
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
        found = (self._low, self._high, mean.float(), covariance)
        if not all(torch.isfinite(tensor).all() for tensor in found):
            raise PlanError(f"the input of {name} held NaN or infinity during calibration; check the checkpoint")
        if self._count > 1 and bool((self._low == self._high).all()):
            raise PlanError(
                f"the input of {name} never changed over the calibration images, so that nothing is known of its range:"
                " the images are blank, or the layer before it is never activated; calibrate on images like those the"
                " encoder will see"
            )
        return InputStatistics(*(tensor.numpy() for tensor in found))
