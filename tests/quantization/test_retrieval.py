"""Neighbors, recall, self-retrieval by hand; the verdict trips on each of its thresholds; too few images: no number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.fidelity import FloatArray
from vitedge.quantization.intervals import Estimate, Values
from vitedge.quantization.retrieval import (
    MIN_IMAGES,
    MIN_RECALL,
    MIN_SELF_RETRIEVAL,
    Retrieval,
    compare_retrieval,
    judge_index,
    neighbors,
    unit,
)


def array(values: object) -> FloatArray:
    return np.array(values, np.float32)


def at_angles(degrees: object) -> FloatArray:
    angles = np.deg2rad(np.asarray(degrees, np.float64))
    return array(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def nearest(features: FloatArray) -> list[int]:
    return [int(found[0]) for found in neighbors(unit(features), unit(features), 1)]


def measured(fp32: FloatArray, int8: FloatArray) -> Retrieval:
    found = compare_retrieval(fp32, int8)
    assert isinstance(found, Retrieval), found
    return found


# Two bundles of directions; within a bundle the nearest are 0-1 and 2-3, then 4-5 and 6-7.
FEATURES = at_angles([0, 2, 10, 13, 90, 92, 100, 103])


def test_nearest_by_hand() -> None:
    assert nearest(FEATURES) == [1, 0, 3, 2, 5, 4, 7, 6]
    assert nearest(FEATURES * array([[1], [9], [2], [7], [3], [5], [8], [4]])) == [1, 0, 3, 2, 5, 4, 7, 6]


def test_nearest_is_never_the_image_itself() -> None:
    assert nearest(array([[1, 0], [-1, 0]])) == [1, 0]


def test_neighbors_come_nearest_first() -> None:
    rows = unit(FEATURES)
    assert neighbors(rows, rows, 3)[:4].tolist() == [[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]]
    # Queries at 12° in place of image 0: image 2 and 3 are nearer than image 1.
    assert neighbors(unit(at_angles([12] * 8)), rows, 3)[0].tolist() == [3, 2, 1]


@given(st.integers(12, 60), st.integers(0, 2**32 - 1))
def test_neighbors_are_the_first_of_a_full_sort(images: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    queries, index = (unit(array(generator.standard_normal((images, 5)))) for _ in range(2))
    similarities = queries @ index.T
    np.fill_diagonal(similarities, -np.inf)
    assert neighbors(queries, index, 10).tolist() == np.argsort(-similarities, axis=1)[:, :10].tolist()


def test_neighbors_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unit(array(np.random.default_rng(0).standard_normal((50, 5))))
    whole = neighbors(rows, rows, 10)
    monkeypatch.setattr("vitedge.quantization.retrieval._BLOCK_VALUES", 7 * 50)
    assert neighbors(rows, rows, 10).tolist() == whole.tolist()


# 40 directions, 1°, 2°, … apart: the 10 nearest of image i are the ones below it, for i of 20 and more.
SPREAD = at_angles(np.cumsum(np.arange(40)) / 780 * 170)


def test_equal_embeddings_agree_in_everything() -> None:
    found = measured(SPREAD, SPREAD)
    for name, value in vars(found).items():
        if isinstance(value, Estimate):
            assert value.mean == 1.0, name
            assert value.interval == pytest.approx((0.0881 * -1 + 1, 1), abs=1e-4), name  # 40 images prove no more


def by_definition(queries: Values, index: Values, truth: list[set[int]], count: int) -> float:
    """recall@count with loops and sets."""
    shares = []
    for i, query in enumerate(queries):
        others = sorted((j for j in range(len(index)) if j != i), key=lambda j: -float(query @ index[j]))
        shares.append(len(truth[i] & set(others[:count])) / count)
    return float(np.mean(shares))


@pytest.mark.parametrize("noise", [0.1, 0.5, 2.0])
def test_recalls_are_what_their_definitions_say(noise: float) -> None:
    generator = np.random.default_rng(0)
    fp32 = array(generator.standard_normal((60, 8)))
    int8 = array(fp32 + noise * generator.standard_normal(fp32.shape))
    found, a, b = measured(fp32, int8), unit(fp32), unit(int8)
    for count, within, forth, back in (
        (1, found.agreement_at_1, found.int8_query_recall_at_1, found.fp32_query_recall_at_1),
        (10, found.overlap_at_10, found.int8_query_recall_at_10, found.fp32_query_recall_at_10),
    ):
        truth = [set(row[:count].tolist()) for row in neighbors(a, a, count)]
        assert within.mean == pytest.approx(by_definition(b, b, truth, count))
        assert forth.mean == pytest.approx(by_definition(b, a, truth, count))
        assert back.mean == pytest.approx(by_definition(a, b, truth, count))
    assert found.self_retrieval.mean == np.mean((b @ a.T).argmax(axis=1) == np.arange(60))


def test_directions_differ() -> None:
    """A common rotation changes no neighbor within INT8, and every neighbor across."""
    angles = np.cumsum(np.arange(40)) / 780 * 170
    found = measured(at_angles(angles), at_angles(angles + 90))
    assert (found.agreement_at_1.mean, found.overlap_at_10.mean) == (1.0, 1.0)
    assert found.int8_query_recall_at_10.mean < 0.5
    assert found.fp32_query_recall_at_10.mean < 0.5
    assert found.self_retrieval.mean < 0.1
    assert found.index_compatible is False
    assert found.verdict.startswith("re-embed your index: only ")


def test_dead_embeddings_are_not_compatible() -> None:
    fp32 = array(np.random.default_rng(0).standard_normal((100, 8)))
    found = measured(fp32, np.zeros_like(fp32))
    assert found.index_compatible is False
    assert found.self_retrieval.mean < 0.05


# Too few images


def test_fewer_images_than_the_metrics_need() -> None:
    found = compare_retrieval(SPREAD[: MIN_IMAGES - 1], SPREAD[: MIN_IMAGES - 1])
    assert found == f"neighbors not measured: that needs {MIN_IMAGES} different images, found {MIN_IMAGES - 1}"
    assert isinstance(compare_retrieval(SPREAD[:MIN_IMAGES], SPREAD[:MIN_IMAGES]), Retrieval)
    assert isinstance(compare_retrieval(SPREAD[:1], SPREAD[:1]), str)


def test_the_same_picture_many_times_is_one_picture() -> None:
    """All images black: every neighbor agrees, by row number."""
    generator = np.random.default_rng(0)
    black = np.repeat(array(generator.standard_normal((1, 384))), 400, axis=0)
    black *= 1 + 1e-6 * array(generator.standard_normal(black.shape))
    assert compare_retrieval(black, black) == "neighbors not measured: that needs 21 different images, found 0"


def test_a_picture_that_is_there_twice_finds_itself() -> None:
    doubled = np.concatenate([SPREAD, SPREAD[:1]])
    assert measured(doubled, doubled).self_retrieval.mean == 1.0


# The verdict


@pytest.mark.parametrize(
    ("recall", "self_retrieval", "compatible", "verdict"),
    [
        (
            Estimate(0.97, (MIN_RECALL, 0.98)),
            MIN_SELF_RETRIEVAL,
            True,
            "INT8 embeddings may query your FP32 index: recall@10 0.970 [0.950, 0.980]",
        ),
        (
            Estimate(0.97, (MIN_RECALL - 1e-9, 0.98)),
            MIN_SELF_RETRIEVAL,
            None,
            "400 images cannot tell whether INT8 embeddings may query your FP32 index: recall@10 0.970 [0.950, 0.980]",
        ),
        (Estimate(0.93, (0.9, MIN_RECALL)), 1.0, None, "400 images cannot tell whether"),
        (
            Estimate(0.93, (0.9, MIN_RECALL - 1e-9)),
            1.0,
            False,
            "re-embed your index: INT8 queries of an FP32 index reach recall@10 0.930",
        ),
        (
            Estimate(0.97, (0.96, 0.98)),
            MIN_SELF_RETRIEVAL - 1e-9,
            False,
            "re-embed your index: only 99.0% of images find themselves in an FP32 index, recall@10 0.970",
        ),
        (Estimate(0.97, (0.96, 0.98)), float("nan"), False, "re-embed your index"),
    ],
)
def test_each_threshold_of_the_verdict_trips(
    recall: Estimate, self_retrieval: float, compatible: bool | None, verdict: str
) -> None:
    found = judge_index(recall, Estimate(self_retrieval, (0.0, 1.0)), 400)
    assert found[0] is compatible
    assert found[1].startswith(verdict)


@pytest.mark.parametrize(("noise", "compatible"), [(0.01, True), (0.04, None), (0.3, False)])
def test_noise_turns_the_verdict(noise: float, compatible: bool | None) -> None:
    generator = np.random.default_rng(0)
    fp32 = array(generator.standard_normal((300, 16)))
    int8 = array(fp32 + noise * generator.standard_normal(fp32.shape))
    assert measured(fp32, int8).index_compatible is compatible
