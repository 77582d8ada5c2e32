"""Which tensors must have 16 bits: as few as a budget needs, found by measured error.

Everything in 16 bits is the best that integers reach, everything in 8 bits the cheapest. In between:

1. From the best, each group of tensors goes to 8 bits alone, and the error that this adds to the output is measured. A
   group is one tensor of a layer; the statistics of a LayerNorm (one number per token) go together.
2. Groups are ordered by that error, the most tolerant first. (By error per value that they hold, vit-s14-real keeps 139
   tensors of 17.3 million values in 16 bits at 26.7 dB; by error alone 103 of 18.6 million at 27.9 dB.) Heads come
   last: what is measured does not see them, but gates do, and they hold a few values.
3. The longest prefix of that order that keeps the budget in 8 bits is found by bisection, measured each time.

An order needs fewer images than a verdict: costs are measured on `ORDER_IMAGES`, points on `POINT_IMAGES`.

The error of a step is that of the fake-quantized encoder on a few images, against the float encoder. A step changes one
layer; so it starts from the stored residual stream in front of that layer, which halves the time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from vitedge.quantization.encoder import FloatArray
from vitedge.quantization.integer_fake import FakeOperations, rounded
from vitedge.quantization.integer_float import FloatOperations, to_pixels
from vitedge.quantization.integer_grid import IntegerPrecision, Range
from vitedge.quantization.integer_operations import IntegerEncoder, Quantity
from vitedge.quantization.integer_program import Program
from vitedge.quantization.prediction import fidelity
from vitedge.quantization.search import MARGIN_DB, Budget
from vitedge.runtimes.errors import PlanError
from vitedge.runtimes.preprocess import PixelValues

ORDER_IMAGES, POINT_IMAGES = 4, 16
_STATISTICS = ("variance", "inverse_deviation")
HEADS = ("pooler", "logits")
_CURVE_POINTS = 9

Stream = Quantity[torch.Tensor]


@dataclass(frozen=True)
class Group:
    """Tensors that change precision together.

    Attributes:
        name: Of the tensor, or of the LayerNorm whose statistics they are.
        tensors: Their names.
        layer: The layer that makes them; -1 for the embeddings, the number of layers for what follows the last.
        values: How many numbers they hold per image.
    """

    name: str
    tensors: frozenset[str]
    layer: int
    values: int


@dataclass(frozen=True)
class IntegerTradeOff:
    """So many tensors in 16 bits, holding so many values per image, and what is predicted with them."""

    sixteen_bit_tensors: int
    sixteen_bit_values: int
    sqnr_db: float
    cosine_mean: float


@dataclass(frozen=True)
class IntegerSearchResult:
    """The precision found, the point of the curve that it is, every point measured, fewest 16-bit tensors first, and
    the SQNR of each group of tensors alone in 8 bits.
    """

    precision: IntegerPrecision
    found: IntegerTradeOff
    curve: tuple[IntegerTradeOff, ...]
    sensitivity_db: Mapping[str, float]


class Judge:
    """Predicts what precisions cost `last_hidden_state`, against the float program.

    Args:
        encoder: Its linears rounded.
        ranges: Of every tensor.
        images: float32 [images, 3, height, width], normalized; few, as they are run in one batch.
    """

    @torch.inference_mode()
    def __init__(self, encoder: IntegerEncoder, ranges: Mapping[str, Range], images: PixelValues) -> None:
        self._encoder, self._ranges, self._count = encoder, ranges, len(images)
        self._pixels = to_pixels(encoder.folded, images)
        sizes: dict[str, tuple[int, int]] = {}
        layer = -1

        def see(name: str, x: torch.Tensor) -> None:
            sizes[name] = (layer, x.numel() // self._count)

        program = Program(FloatOperations(encoder.folded, see), encoder.folded.shape, self._count)
        stream = program.embeddings(self._pixels)
        for layer in range(encoder.folded.shape.layers):
            stream = program.layer(layer, stream)
        layer = encoder.folded.shape.layers
        self._expected = program.outputs(stream)["last_hidden_state"].numpy()
        self.groups = _groups(sizes)

    def precision(self, sixteen: frozenset[str]) -> IntegerPrecision:
        """These tensors in 16 bits."""
        return IntegerPrecision(self._ranges, sixteen)

    def point(self, sixteen: frozenset[str]) -> IntegerTradeOff:
        """With these tensors in 16 bits."""
        found = fidelity(self._expected, self._run(sixteen, -1, {}))
        values = sum(group.values for group in self.groups if group.tensors <= sixteen)
        return IntegerTradeOff(len(sixteen), values, found.sqnr_db, found.cosine_mean)

    def costs_db(self, progress: Callable[[str], None] = lambda _: None) -> Mapping[str, float]:
        """SQNR by group: that group alone in 8 bits, everything else in 16.

        Args:
            progress: Called with each group's name when it is done.
        """
        everything = frozenset().union(*(group.tensors for group in self.groups))
        streams: dict[int, Stream] = {}
        self._run(everything, -1, streams)
        costs = {}
        for group in self.groups:
            found = self._run(everything - group.tensors, group.layer, dict(streams))
            costs[group.name] = fidelity(self._expected, found).sqnr_db
            progress(group.name)
        return costs

    @torch.inference_mode()
    def _run(self, sixteen: frozenset[str], start: int, streams: dict[int, Stream]) -> FloatArray:
        """`last_hidden_state`, from a layer on; reads the stream before it from `streams`, and adds those after it."""
        operations = FakeOperations(self._encoder, self.precision(sixteen))
        shape = self._encoder.folded.shape
        program = Program[Stream](operations, shape, self._count)
        if start < 0:
            pixels = rounded(self._pixels, self._ranges["pixel_values"].grid(8))
            streams[0] = program.embeddings(operations.input("pixel_values", pixels))
        for layer in range(max(start, 0), shape.layers):
            streams[layer + 1] = program.layer(layer, streams[layer])
        found: FloatArray = program.outputs(streams[shape.layers])["last_hidden_state"].value.numpy()
        return found


def search_integers(judge: Judge, cost_db: Mapping[str, float], budget: Budget) -> IntegerSearchResult:
    """The fewest 16-bit tensors that keep the budget.

    Args:
        judge: Predicts.
        cost_db: Its `costs_db`, or those of a judge with fewer images; they serve any budget.
        budget: To meet.

    Raises:
        PlanError: Not even 16 bits everywhere keep it.
    """
    order = sorted(judge.groups, key=lambda group: (group.name.startswith(HEADS), -cost_db[group.name]))
    measured: dict[int, IntegerTradeOff] = {}

    def keeps(narrow: int) -> bool:
        """Whether the first groups of the order may all have 8 bits."""
        if narrow not in measured:
            measured[narrow] = judge.point(_tensors(order[narrow:]))
        return budget.met_by(measured[narrow])

    if not keeps(0):
        raise PlanError(
            f"the budget cannot be met: the best plan has 16 bits everywhere, and reaches {measured[0].sqnr_db:.2f} dB"
            f" and a mean cosine of {measured[0].cosine_mean:.5f} (with a margin of {MARGIN_DB} dB asked for); ask for"
            " less with --min-sqnr, take it as it is with --activations int16, or calibrate on more images"
        )
    points = sorted({round(len(order) * i / (_CURVE_POINTS - 1)) for i in range(_CURVE_POINTS)})
    # Predictions scatter: where fewer groups fail, more that pass were lucky. The curve needs every point all the same.
    high = min([point for point in points if not keeps(point)], default=len(order) + 1)
    low = max(point for point in points if point < high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    curve = tuple(measured[narrow] for narrow in sorted(measured, reverse=True))
    return IntegerSearchResult(judge.precision(_tensors(order[low:])), measured[low], curve, cost_db)


def _tensors(groups: list[Group]) -> frozenset[str]:
    return frozenset().union(*(group.tensors for group in groups))


def _groups(sizes: Mapping[str, tuple[int, int]]) -> tuple[Group, ...]:
    """From the layer and the size of every tensor."""
    members: dict[str, list[str]] = {}
    for name in sizes:
        prefix, _, last = name.rpartition(".")
        members.setdefault(f"{prefix}.statistics" if last in _STATISTICS else name, []).append(name)
    return tuple(
        Group(group, frozenset(names), sizes[names[0]][0], sum(sizes[name][1] for name in names))
        for group, names in members.items()
    )
