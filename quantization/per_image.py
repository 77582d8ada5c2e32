"""What became of each image: how near its INT8 class token is to FP32, and what the worst are taken for.

Means hide which images suffer. A low cosine alone does not say whether that matters; the nearest other image under FP32
and under INT8 shows it.
"""

from dataclasses import dataclass

import numpy as np

from vitedge.quantization.fidelity import FloatArray, cosine
from vitedge.quantization.intervals import Values
from vitedge.quantization.retrieval import unit

WORST_IMAGES = 6


@dataclass(frozen=True)
class Neighbor:
    """The nearest other image, by its number, and the cosine to it."""

    image: int
    cosine: float


@dataclass(frozen=True)
class WorstImage:
    """An image, the cosine of its INT8 class token to FP32, and its neighbor within each of the two."""

    image: int
    cosine: float
    fp32: Neighbor
    int8: Neighbor


@dataclass(frozen=True)
class PerImage:
    """Class tokens, image by image, in the order judged.

    Attributes:
        cosines: Of INT8 to FP32.
        worst: Up to `WORST_IMAGES`, lowest cosine first; none for a single image, which has no neighbor.
    """

    cosines: tuple[float, ...]
    worst: tuple[WorstImage, ...]


def per_image(fp32: FloatArray, int8: FloatArray) -> PerImage:
    """Compares class tokens [images, width]."""
    cosines = cosine(fp32, int8)
    if len(fp32) == 1:
        return PerImage((float(cosines[0]),), ())
    rows = np.argsort(cosines, kind="stable")[:WORST_IMAGES]
    expected, found = unit(fp32), unit(int8)
    worst = tuple(
        WorstImage(row, float(cosines[row]), _nearest_other(expected, row), _nearest_other(found, row))
        for row in rows.tolist()
    )
    return PerImage(tuple(cosines.tolist()), worst)


def _nearest_other(index: Values, row: int) -> Neighbor:
    """Of equally near images the first, as in `retrieval.neighbors`."""
    similarities = index @ index[row]
    similarities[row] = -2
    nearest = int(similarities.argmax())
    return Neighbor(nearest, float(similarities[nearest]))
