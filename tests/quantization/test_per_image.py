"""Class tokens image by image: which are worst, and what they are taken for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.fidelity import FloatArray
from vitedge.quantization.per_image import WORST_IMAGES, Neighbor, PerImage, WorstImage, per_image
from vitedge.quantization.retrieval import neighbors, unit


def features(rows: list[list[float]]) -> FloatArray:
    return np.array(rows, np.float32)


def test_worst_first_with_what_each_side_takes_it_for() -> None:
    fp32 = features([[1, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    int8 = features([[0.1, 1], [0.9, 0.1], [0, 1], [0.1, 0.9]])  # the first image went astray
    found = per_image(fp32, int8)
    assert [item.image for item in found.worst] == [0, 1, 2, 3]  # equals in their order
    assert found.worst[0].cosine == pytest.approx(0.1 / np.sqrt(1.01))
    assert (found.worst[0].fp32.image, found.worst[0].int8.image) == (1, 3)
    assert found.worst[0].fp32.cosine == pytest.approx(0.9 / np.sqrt(0.82))
    assert found.cosines == pytest.approx([0.1 / np.sqrt(1.01), 1, 1, 1])


def test_one_image_has_no_neighbor_and_two_have_each_other() -> None:
    assert per_image(features([[1, 0]]), features([[0, 1]])) == PerImage((0.0,), ())
    two = per_image(features([[1, 0], [0, 1]]), features([[1, 0], [0, 1]]))
    assert two.worst == tuple(WorstImage(row, 1.0, Neighbor(1 - row, 0.0), Neighbor(1 - row, 0.0)) for row in (0, 1))


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_neighbors_are_those_of_retrieval(images: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    fp32 = generator.standard_normal((images, 8)).astype(np.float32)
    int8 = fp32 + 0.3 * generator.standard_normal((images, 8)).astype(np.float32)
    found = per_image(fp32, int8)
    assert len(found.worst) == min(images, WORST_IMAGES)
    assert [item.cosine for item in found.worst] == sorted(found.cosines)[:WORST_IMAGES]
    for side, rows in (("fp32", unit(fp32)), ("int8", unit(int8))):
        nearest = neighbors(rows, rows, 1)[:, 0]
        assert [getattr(item, side).image for item in found.worst] == [nearest[item.image] for item in found.worst]
