"""Weights from floats to integers: scales, rounding with second-order information, bias correction.

Weights are per-channel symmetric: w = scale · q. Two steps choose q, both judged by the error of the linear's *output*
over the calibration images, tr(E · H · Eᵀ) with E the weight error and H the covariance of the input:

1. The scale of every output channel is searched, under nearest rounding and the diagonal of H. A step below the one
   that covers the largest weight clips a little and is finer everywhere else.
2. GPTQ (Frantar et al. 2022, arXiv:2210.17323) rounds column by column and lets the columns that are still open take
   back the error of each: w_rest -= (w_j - scale · q_j) / U_jj · U_j,rest, with UᵀU = H⁻¹, U upper triangular.

H is that about the mean input, because the bias takes back what rounding shifts on average: E · mean.

**Order.** What the rounding of column j leaves behind is 1 / U_jj², the variance that is left of input j once the open
columns are known, times scale² / 12. The product of all 1 / U_jj² is det H, whatever the order, so that their sum is
small if they are alike: the column to be rounded last is the one of the smallest variance, the one before it that of
the smallest variance given the last, and so on (as sorted QR decompositions do for lattice decoders; GPTQ is one, see
Chen et al. 2025, arXiv:2507.18553).

**Pair-safe weights** use all 8 bits and yet never saturate on CPUs without VNNI (see `saturation.py`): of two columns
that a kernel adds in 16 bits, |v + w| ≤ 128 must hold. If two targets together exceed that, the one rounded first gives
up half of the excess, the other is clamped to what the first leaves, and GPTQ makes up for it in later columns. The
scale search knows of it and ends, at the latest, at the step under which every weight is within ±64 and no pair is too
large. On vit-s14-real the error of weights alone is 36.7 dB below the signal, against 37.7 of free int8 and 32.4 of 7
bits (`python -m vitedge.benchmarks.ablation`; the patch embedding is 7 bits wide in the first).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from vitedge.calibration.observers import InputStatistics
from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.plan import IntegerWeight
from vitedge.quantization.recipe import WEIGHT_FORMATS, WeightFormat
from vitedge.quantization.saturation import PAIR_SUM_LIMIT

_BLOCK = 128
# Columns whose place in the order is decided together: groups of 16 are 0.1 dB better than groups of 64, and take 2.5
# times as long.
_ORDER_GROUP = 32
# Share of H's diagonal that is added to it. A share of each element, not of their mean, commutes with smoothing.
_DAMPING = 1e-3
_SCALE_STEPS = 20
_SMALLEST_FRACTION = 0.6


@dataclass(frozen=True)
class Factor:
    """What rounding needs of an input.

    Attributes:
        mean: [in].
        variance: [in].
        order: int64 [in], the columns in the order in which they are rounded.
        inverse_root: U [in, in], upper triangular, rows and columns in that order; UᵀU is the inverse covariance.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    order: torch.Tensor
    inverse_root: torch.Tensor


def factorize(statistics: InputStatistics) -> Factor:
    """The factor of an input, by its covariance about the mean; a channel that never moved is rounded on its own."""
    covariance = torch.from_numpy(statistics.covariance).double()
    variance = covariance.diagonal().clamp_min(0)
    # Channels that are constant, but for rounding, would make the matrix singular.
    covariance.diagonal().copy_(variance * (1 + _DAMPING) + 1e-7 * variance.mean() + 1e-12)
    last_first, root = _sorted_cholesky(covariance)
    # Turned around, L⁻¹ is the root of the inverse.
    inverse_root = torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype), upper=False)
    return Factor(
        torch.from_numpy(statistics.mean),
        variance.float() + 1e-12,
        last_first.flip(0),
        inverse_root.flip(0, 1).float().contiguous(),
    )


def _sorted_cholesky(covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The columns from the one to be rounded last to the one to be rounded first (see the module's docstring), and L,
    lower triangular: LLᵀ is the covariance in that order. L grows to the right, a group at a time, and what it leaves
    of the variances says which columns are the next: nothing of [in, in] is copied or updated on the way.
    """
    size = len(covariance)
    root = torch.zeros_like(covariance)  # rows in the covariance's own order
    left, variance, order = torch.arange(size), covariance.diagonal(), []
    for known in range(0, size, _ORDER_GROUP):
        ascending = variance.argsort()
        last, rest = ascending[:_ORDER_GROUP], ascending[_ORDER_GROUP:].sort().values  # sorted rows are read faster
        group, others = left[last], left[rest]
        columns, rows = slice(known, known + len(group)), root[:, :known]
        of_group = torch.linalg.cholesky(covariance[group][:, group] - rows[group] @ rows[group].T)
        shared = covariance[:, group][others] - rows[others] @ rows[group].T
        of_others = torch.linalg.solve_triangular(of_group, shared.T, upper=False).T
        root[group, columns], root[others, columns] = of_group, of_others
        left, variance = others, variance[rest] - of_others.square().sum(1)
        order.append(group)
    last_first = torch.cat(order)
    return last_first, root[last_first]


def round_weights(
    weight: FloatArray, bias: FloatArray, factor: Factor, formats: Mapping[str, WeightFormat]
) -> dict[str, IntegerWeight]:
    """Integers for every format, and a bias that takes back the mean error.

    Args:
        weight: float32 [out, in].
        bias: float32 [out].
        factor: Of the linear's input.
        formats: By name.
    """
    exact = torch.from_numpy(weight)
    rounded = {}
    for name, weight_format in formats.items():
        scale = best_scale(exact, factor.variance, weight_format)
        values = gptq(exact, scale, factor, weight_format)
        shift = ((values * scale[:, None] - exact) @ factor.mean).numpy()
        rounded[name] = IntegerWeight(values.to(torch.int8).numpy(), scale.numpy(), (bias - shift).astype(np.float32))
    return rounded


def best_scale(weight: torch.Tensor, variance: torch.Tensor, weight_format: WeightFormat) -> torch.Tensor:
    """The scale per output channel, float32 [out], that minimizes the output error of nearest rounding.

    Args:
        weight: float32 [out, in].
        variance: float32 [in], of the input.
        weight_format: Which integers there are.
    """
    covering = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny * 256) / weight_format.limit
    # Of pair-safe weights the step under which none exceeds ±64 is always good enough.
    largest = 1.0 if not weight_format.pair_safe else weight_format.limit / (PAIR_SUM_LIMIT // 2)
    best, best_error = covering, torch.full_like(covering, torch.inf)
    for fraction in torch.linspace(_SMALLEST_FRACTION, largest, _SCALE_STEPS).tolist():
        scale = covering * fraction
        rounded = round_to_nearest(weight / scale[:, None], weight_format) * scale[:, None]
        error = (rounded - weight).square() @ variance
        best = torch.where(error < best_error, scale, best)
        best_error = torch.minimum(error, best_error)
    return best


def round_to_nearest(steps: torch.Tensor, weight_format: WeightFormat) -> torch.Tensor:
    """The nearest integers of a format to weights [out, in] in units of their scale."""
    limit = weight_format.limit
    if not weight_format.pair_safe:
        return steps.round().clamp(-limit, limit)
    even = steps.shape[1] // 2 * 2
    result = steps.round().clamp(-limit, limit)
    first = _share_excess(steps[:, 0:even:2], steps[:, 1:even:2]).round().clamp(-limit, limit)
    result[:, 0:even:2] = first
    result[:, 1:even:2] = _beside(first, steps[:, 1:even:2].round()).clamp(-limit, limit)
    return result


def gptq(weight: torch.Tensor, scale: torch.Tensor, factor: Factor, weight_format: WeightFormat) -> torch.Tensor:
    """GPTQ's integers, float32 [out, in], for given scales.

    Args:
        weight: float32 [out, in].
        scale: float32 [out].
        factor: Of the input.
        weight_format: Which integers there are.
    """
    root, limit, width = factor.inverse_root, weight_format.limit, weight.shape[1]
    position = factor.order.argsort().tolist()
    # Of a partner whose block is still to come the target is as it was before this block: good enough to share by.
    partners = [position[column ^ 1] if column ^ 1 < width else None for column in factor.order.tolist()]
    # Transposed: the loop walks over inputs, and rows are contiguous.
    rest = weight.T[factor.order]
    values = torch.empty_like(rest)
    for start in range(0, width, _BLOCK):
        block, errors = rest[start : start + _BLOCK], []
        for column in range(len(block)):
            at = start + column
            partner = partners[at] if weight_format.pair_safe else None
            steps = block[column] / scale
            if partner is not None and partner > at:
                steps = _share_excess(steps, rest[partner] / scale)
            value = steps.round()
            if partner is not None and partner < at:
                value = _beside(values[partner], value)
            values[at] = value.clamp(-limit, limit)
            error = (block[column] - values[at] * scale) / root[at, at]
            block[column + 1 :].addr_(root[at, at + 1 : start + len(block)], error, alpha=-1)
            errors.append(error)
        rest[start + _BLOCK :].addmm_(
            root[start : start + len(block), start + _BLOCK :].T, torch.stack(errors), alpha=-1
        )
    return values[position].T.contiguous()


def _share_excess(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The first of two targets, less half of what their sum exceeds the limit by; both in units of the scale."""
    limit = WEIGHT_FORMATS["int8-pair-safe"].limit  # what gets clipped anyway is no excess
    first, second = first.clamp(-limit, limit), second.clamp(-limit, limit)
    excess = ((first + second).abs() - PAIR_SUM_LIMIT).clamp_min(0) * (first * second > 0)
    return first - first.sign() * excess / 2


def _beside(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """The second of a pair, clamped to what the first, an integer already, leaves."""
    return torch.minimum(
        torch.maximum(second, -PAIR_SUM_LIMIT - first.clamp_max(0)), PAIR_SUM_LIMIT - first.clamp_min(0)
    )
