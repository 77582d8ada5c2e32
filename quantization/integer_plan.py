"""The plan of target npu: integers between input and output, with 16 bits where 8 lose too much.

It is a plan of its own because its decisions are about activations, tensor by tensor, and its linears are those of a
folded encoder. On disk `plan.json` begins with what people edit, `sixteen_bit`: names of tensors or patterns
(`layers.*.mlp.output`); the other tensors have 8 bits.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from vitedge.quantization.encoder import Encoder, FloatArray
from vitedge.quantization.integer_fold import fold
from vitedge.quantization.integer_grid import IntegerPrecision
from vitedge.quantization.integer_operations import IntegerEncoder
from vitedge.quantization.plan import IntegerWeight
from vitedge.quantization.saved_plan import (
    ARRAYS_FILE,
    PLAN_FILE,
    check_checkpoint,
    digest_of,
    read_document,
    unreadable,
    write,
)
from vitedge.runtimes.errors import PlanError

FORMAT = "vitedge-npu-plan/1"
_KEYS = ("format", "checkpoint_digest", "calibration_digest", "target", "sixteen_bit", "ranges")
PIXELS = "pixel_values"  # images have 8 bits, and so has the input


@dataclass(frozen=True)
class IntegerPlan:
    """The whole plan.

    Attributes:
        checkpoint_digest: Of the checkpoint it was made for.
        calibration_digest: Of the images it was made with.
        precision: The range of every tensor, and which have 16 bits.
        factors: Of the residual stream, float32 [hidden] (see `integer_fold.py`).
        multipliers: Of the LayerNorms, float32 [hidden] by name.
        weights: Of the folded encoder's linears.
    """

    checkpoint_digest: str
    calibration_digest: str
    precision: IntegerPrecision
    factors: FloatArray
    multipliers: Mapping[str, FloatArray]
    weights: Mapping[str, IntegerWeight]

    @property
    def target(self) -> str:
        return "npu"

    def rounded(self, encoder: Encoder) -> IntegerEncoder:
        """What a lowering and a prediction compute with, from the encoder as loaded."""
        return IntegerEncoder(fold(encoder, self.factors, self.multipliers), self.weights)

    def digest(self) -> str:
        """SHA-256 of everything in the plan."""
        return digest_of(self._document(), self._arrays())

    def save(self, folder: Path) -> None:
        """Writes `plan.json` and `plan.safetensors` into the folder."""
        write(folder, self._document(), self._arrays())

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "checkpoint_digest": self.checkpoint_digest,
            "calibration_digest": self.calibration_digest,
            "target": self.target,
            **self.precision.to_json(),
        }

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        arrays: dict[str, NDArray[np.generic]] = {"factors": self.factors}
        arrays |= {f"multipliers/{name}": value for name, value in self.multipliers.items()}
        for name, weight in self.weights.items():
            arrays |= {f"weights/{name}/{part}": np.ascontiguousarray(array) for part, array in vars(weight).items()}
        return arrays


@dataclass(frozen=True)
class IntegerDecisions:
    """The half of a plan that people edit: which tensors have 16 bits, and every tensor's range."""

    path: Path
    checkpoint_digest: str
    calibration_digest: str
    precision: IntegerPrecision

    def check(self, checkpoint_digest: str) -> None:
        """Refuses a plan of another checkpoint.

        Raises:
            PlanError: It is one.
        """
        check_checkpoint(self.path, self.checkpoint_digest, checkpoint_digest)


def load_integer_decisions(path: Path) -> IntegerDecisions:
    """Reads the decisions of a `plan.json`, as `IntegerPlan.save` wrote it or edited since; a build's folder will do.

    Raises:
        PlanError: No such file, not a plan of target npu, or a name or pattern that matches no tensor.
    """
    path = path / PLAN_FILE if path.is_dir() else path
    document = read_document(path, FORMAT, _KEYS)
    try:
        names = tuple(document["ranges"])
        sixteen = sixteen_bit(document["sixteen_bit"], names)
        precision = IntegerPrecision.from_json({"ranges": document["ranges"], "sixteen_bit": sorted(sixteen)})
        checkpoint, calibration = str(document["checkpoint_digest"]), str(document["calibration_digest"])
        return IntegerDecisions(path, checkpoint, calibration, precision)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, error) from error


def load_integer_plan(folder: Path) -> IntegerPlan:
    """Reads a plan that `IntegerPlan.save` wrote.

    Raises:
        PlanError: A file is missing, not a plan of target npu, or contradicts itself.
    """
    path = folder / PLAN_FILE
    decisions = load_integer_decisions(path)
    try:
        arrays = load_file(folder / ARRAYS_FILE)
        parts = {key.removeprefix("weights/"): value for key, value in arrays.items() if key.startswith("weights/")}
        linears = sorted({key.rpartition("/")[0] for key in parts})
        return IntegerPlan(
            checkpoint_digest=decisions.checkpoint_digest,
            calibration_digest=decisions.calibration_digest,
            precision=decisions.precision,
            factors=arrays["factors"],
            multipliers={k.removeprefix("multipliers/"): v for k, v in arrays.items() if k.startswith("multipliers/")},
            weights={
                name: IntegerWeight(*(parts[f"{name}/{part}"] for part in ("values", "scale", "bias")))
                for name in linears
            },
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise unreadable(path, error) from error


def sixteen_bit(patterns: Iterable[str], tensors: Iterable[str]) -> frozenset[str]:
    """The tensors that names and patterns stand for; never the input.

    Raises:
        PlanError: One matches no tensor, or they are one text, which would be taken apart into letters.
    """
    if isinstance(patterns, str):
        raise PlanError(f"sixteen_bit: expected a list of names or patterns, found {patterns!r}; put it in brackets")
    names, found = [name for name in tensors if name != PIXELS], set()
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            raise PlanError(f"sixteen_bit: {pattern} matches no tensor; there are {', '.join(names[:4])}, …")
        found.update(matched)
    return frozenset(found)
