"""Attention scores, query · key, in integers: which grids, and two float rewrites that make them fine enough.

Where a CPU has fast integer attention (OpenVINO with VNNI), query and key may be rounded to 8 bits, one symmetric range
each. Softmax of a row of scores does not change if a number is added to the row, and a product does not change if one
factor is multiplied by what the other is divided by. So, in float,

- **keys are centered**: the mean over tokens of each key channel is taken out of the bias of its row of qkv. It would
  add query · mean to every score of a row alike;
- **channels are balanced**: channel j of the query is multiplied by s_j and that of the key divided by it, by rows of
  qkv, with s_j = sqrt(max|key_j| / max|query_j|), so that both have the same range.

On vit-s14-real that takes integer scores from 31.9 to 32.5 dB, 0.9 dB below float ones (`benchmarks/ablation.py`). The
product with the values stays float: probabilities are mostly near 0, where a step of 1/255 is coarse (21 dB).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from vitedge.quantization.encoder import Encoder, FloatArray, Linear, float_linear, forward
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.preprocess import PixelValues

_SMALLEST = 1e-6  # of a range: a channel that is always 0 still needs one


@dataclass(frozen=True)
class ScoreGrids:
    """Steps of the symmetric int8 grids [-128, 127] of a layer's queries and keys; queries before 1/√(head width)."""

    query: float
    key: float

    def __post_init__(self) -> None:
        if not (np.isfinite([self.query, self.key]).all() and min(self.query, self.key) > 0):
            raise PlanError(f"attention scores: expected positive steps, found {self}")


@dataclass(frozen=True)
class ScoreBalance:
    """What a layer's queries are multiplied and its keys divided by, and what is subtracted from its keys before that;
    float32 [hidden] each.
    """

    factors: FloatArray
    centers: FloatArray


def qkv_linears(encoder: Encoder) -> tuple[str, ...]:
    """The linears that make queries and keys, by layer."""
    return tuple(f"layers.{layer}.attention.qkv" for layer in range(encoder.shape.layers))


def balance_scores(encoder: Encoder, balances: Mapping[str, ScoreBalance]) -> Encoder:
    """The same function, with queries and keys as `balances` says, by the name of the qkv."""
    hidden = encoder.shape.hidden
    tensors: dict[str, FloatArray] = {}
    for name, balance in balances.items():
        weight, bias = encoder.tensors[f"{name}.weight"].copy(), encoder.tensors[f"{name}.bias"].copy()
        bias[hidden : 2 * hidden] -= balance.centers
        factor = np.ones(3 * hidden, np.float32)
        factor[:hidden], factor[hidden : 2 * hidden] = balance.factors, 1 / balance.factors
        tensors |= {f"{name}.weight": weight * factor[:, None], f"{name}.bias": bias * factor}
    return encoder.with_tensors(tensors)


def choose_balances(
    encoder: Encoder, batches: Callable[[], Iterable[PixelValues]]
) -> tuple[Mapping[str, ScoreBalance], Mapping[str, ScoreGrids]]:
    """Observes queries and keys in one pass; the balance of each layer, and the grids that cover what it leaves.

    Args:
        encoder: FP32; smoothing does not change its queries and keys.
        batches: Of calibration images.
    """
    seen = _observed(encoder, batches())
    balances, grids = {}, {}
    for name, (low, high, mean) in seen.items():
        hidden, centers = encoder.shape.hidden, mean[encoder.shape.hidden :]
        query = np.maximum(np.maximum(-low[:hidden], high[:hidden]), _SMALLEST)
        key = np.maximum(np.maximum(centers - low[hidden:], high[hidden:] - centers), _SMALLEST)
        balances[name] = ScoreBalance(np.sqrt(key / query), centers)
        end = float(np.sqrt(query * key).max())
        grids[name] = ScoreGrids(end / 127, end / 127)
    return balances, grids


def plain_grids(encoder: Encoder, batches: Callable[[], Iterable[PixelValues]]) -> Mapping[str, ScoreGrids]:
    """The grids without centering and balance, to compare with."""
    grids, hidden = {}, encoder.shape.hidden
    for name, (low, high, _) in _observed(encoder, batches()).items():
        ends = np.maximum(np.maximum(-low, high), _SMALLEST)
        grids[name] = ScoreGrids(float(ends[:hidden].max()) / 127, float(ends[hidden:].max()) / 127)
    return grids


def rounded_scores(qkv: torch.Tensor, grids: ScoreGrids) -> torch.Tensor:
    """Queries and keys of [..., 3 · hidden] rounded to their grids; values as they are."""
    hidden = qkv.shape[-1] // 3
    query, key = qkv[..., :hidden], qkv[..., hidden : 2 * hidden]
    return torch.cat((_rounded(query, grids.query), _rounded(key, grids.key), qkv[..., 2 * hidden :]), -1)


def _rounded(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.clamp(torch.round(x / scale), -128, 127) * scale


def _observed(
    encoder: Encoder, batches: Iterable[PixelValues]
) -> Mapping[str, tuple[FloatArray, FloatArray, FloatArray]]:
    """Minimum, maximum and mean of query and key channels, float32 [2 · hidden] each, by the name of the qkv."""
    names, hidden = set(qkv_linears(encoder)), encoder.shape.hidden
    linear: Linear = float_linear(encoder)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]] = {}

    def observing(name: str, x: torch.Tensor) -> torch.Tensor:
        found = linear(name, x)
        if name in names:
            rows = found[..., : 2 * hidden].reshape(-1, 2 * hidden)
            low, high, total, count = rows.amin(0), rows.amax(0), rows.double().sum(0), len(rows)
            if name in seen:
                before = seen[name]
                low, high = torch.minimum(low, before[0]), torch.maximum(high, before[1])
                total, count = total + before[2], count + before[3]
            seen[name] = low, high, total, count
        return found

    for pixel_values in batches:
        forward(encoder, pixel_values, observing)
    return {
        name: (low.numpy(), high.numpy(), (total / count).float().numpy())
        for name, (low, high, total, count) in seen.items()
    }
