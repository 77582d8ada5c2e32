"""What calibration remembers of each linear's input: a few numbers per channel, whatever the number of images.

Per channel suffices for everything the plan needs. Smoothing divides channels, so the range after smoothing follows
from the range before it; and the mean input gives the mean error of rounded weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vitedge.runtimes.errors import PlanError


@dataclass(frozen=True)
class InputStatistics:
    """Per input channel of one linear, float32 [in]: minimum, maximum, mean and mean square over all rows seen."""

    minimum: NDArray[np.float32]
    maximum: NDArray[np.float32]
    mean: NDArray[np.float32]
    mean_square: NDArray[np.float32]

    @property
    def absolute_maximum(self) -> NDArray[np.float32]:
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    def divided_by(self, factors: NDArray[np.float32]) -> "InputStatistics":
        """The statistics of the same input with every channel divided by its positive factor."""
        return InputStatistics(
            self.minimum / factors, self.maximum / factors, self.mean / factors, self.mean_square / factors**2
        )


class Observer:
    """Wraps a linear and keeps statistics of what it is given.

    Args:
        linear: (name, input [..., in]) -> output; called unchanged.
    """

    def __init__(self, linear: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
        self._linear = linear
        self._state: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]] = {}

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low, high = torch.aminmax(rows, dim=0)
        total, squares, count = rows.double().sum(0), rows.double().square().sum(0), len(rows)
        if name in self._state:
            old_low, old_high, old_total, old_squares, old_count = self._state[name]
            low, high = torch.minimum(low, old_low), torch.maximum(high, old_high)
            total, squares, count = total + old_total, squares + old_squares, count + old_count
        self._state[name] = (low, high, total, squares, count)
        return self._linear(name, x)

    def statistics(self) -> Mapping[str, InputStatistics]:
        """The statistics by linear.

        Raises:
            PlanError: An input held NaN or infinity.
        """
        result = {}
        for name, (low, high, total, squares, count) in self._state.items():
            arrays = (low.numpy(), high.numpy(), (total / count).float().numpy(), (squares / count).float().numpy())
            if not all(np.isfinite(array).all() for array in arrays):
                raise PlanError(f"the input of {name} held NaN or infinity during calibration; check the checkpoint")
            result[name] = InputStatistics(*arrays)
        return result
