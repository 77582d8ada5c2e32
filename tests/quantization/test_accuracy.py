"""Accuracy against numbers worked out by hand, on sets small enough to do so; what cannot be measured is no pass."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.accuracy import (
    EXACT_SQNR_DB,
    AccuracyReport,
    Comparison,
    FloatArray,
    cosine,
    knn_correct,
    label_indices,
    nearest,
    sqnr_db,
)
from vitedge.runtimes.errors import AccuracyError


def array(values: object) -> FloatArray:
    return np.array(values, np.float32)


def hidden(cls: object, patch: object = None) -> FloatArray:
    """`last_hidden_state` of class tokens [n, width] and one patch token each, zeros unless given."""
    tokens = array(cls)
    return np.stack([tokens, np.zeros_like(tokens) if patch is None else array(patch)], axis=1)


def compared(
    fp32: Mapping[str, FloatArray],
    int8: Mapping[str, FloatArray],
    *,
    labels: Sequence[str] = (),
    model_labels: Sequence[str] = (),
    batch: int = 1000,
) -> AccuracyReport:
    comparison = Comparison()
    names = [f"image{index}" for index in range(len(fp32["last_hidden_state"]))]
    for start in range(0, len(names), batch):
        part = slice(start, start + batch)
        comparison.add(names[part], {k: v[part] for k, v in fp32.items()}, {k: v[part] for k, v in int8.items()})
    return comparison.result(labels=labels, model_labels=model_labels)


# Fidelity


def test_cosine_by_hand() -> None:
    a = array([[1, 0], [1, 0], [1, 0], [3, 4], [0, 0], [0, 0], [1, 1]])
    b = array([[5, 0], [0, 2], [-1, 0], [4, 3], [1, 2], [0, 0], [1e-20, 1e-20]])
    np.testing.assert_allclose(cosine(a, b), [1, 0, -1, 24 / 25, 0, 0, 1], atol=1e-7)


def test_cosine_of_huge_and_of_tiny_values() -> None:
    """Squares of these overflow, or vanish, in float32."""
    for magnitude in (1e30, 1e-30):
        np.testing.assert_allclose(cosine(array([[3, 4]]) * magnitude, array([[4, 3]]) * magnitude), [0.96], rtol=1e-6)


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 1.0, 0.0),
        (1.0, 1000.0, -30.0),
        (5.0, 0.0, EXACT_SQNR_DB),
        (0.0, 0.0, EXACT_SQNR_DB),
        (0.0, 1.0, -EXACT_SQNR_DB),
        (1.0, 1e-40, EXACT_SQNR_DB),
    ],
)
def test_sqnr_by_hand(signal: float, noise: float, expected: float) -> None:
    assert sqnr_db(signal, noise) == pytest.approx(expected)


def test_report_of_one_output_by_hand() -> None:
    """Cosine is of the class token, noise of all tokens."""
    fp32 = {"last_hidden_state": hidden([[3, 4], [2, 0], [0, 1]], [[1, 1], [1, 1], [10, 0]])}
    int8 = {"last_hidden_state": hidden([[4, 3], [2, 0], [0, 1]], [[1, 1], [1, 1], [10, 0.5]])}
    found = compared(fp32, int8).outputs["last_hidden_state"]
    assert found.cosine_worst == pytest.approx(0.96)
    assert found.worst_image == "image0"
    assert found.cosine_mean == pytest.approx((0.96 + 1 + 1) / 3)
    assert found.cosine_p01 == pytest.approx(0.96 + 0.02 * 0.04)  # 1 % of the way over 3 values: 0.02 of one step
    assert found.max_abs_error == 1.0
    assert found.sqnr_db == pytest.approx(10 * np.log10((25 + 4 + 1 + 2 + 2 + 100) / (1 + 1 + 0.25)))


def test_other_outputs_are_compared_as_a_whole() -> None:
    fp32 = {"last_hidden_state": hidden([[1, 0]] * 2), "pooler_output": array([[3, 4], [1, 0]])}
    int8 = {"last_hidden_state": hidden([[1, 0]] * 2), "pooler_output": array([[3, 4], [0, -2]])}
    report = compared(fp32, int8)
    assert list(report.outputs) == ["last_hidden_state", "pooler_output"]
    assert report.outputs["last_hidden_state"].sqnr_db == EXACT_SQNR_DB
    assert report.outputs["pooler_output"].worst_image == "image1"
    assert report.outputs["pooler_output"].cosine_mean == 0.5
    assert report.outputs["pooler_output"].sqnr_db == pytest.approx(10 * np.log10(26 / 5))
    assert report.outputs["pooler_output"].max_abs_error == 2.0
    assert (report.class_agreement, report.drops) == (None, ())


def test_worst_image_is_found_in_a_later_batch() -> None:
    cls = np.eye(7, dtype=np.float32)
    broken = cls.copy()
    broken[5] = -broken[5]
    found = compared({"last_hidden_state": hidden(cls)}, {"last_hidden_state": hidden(broken)}, batch=2)
    assert found.outputs["last_hidden_state"].worst_image == "image5"
    assert found.outputs["last_hidden_state"].cosine_worst == -1.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 9))
def test_batches_do_not_matter(seed: int, batch: int) -> None:
    generator = np.random.default_rng(seed)
    fp32 = {"last_hidden_state": generator.standard_normal((9, 3, 4)), "logits": generator.standard_normal((9, 7))}
    fp32 = {name: values.astype(np.float32) for name, values in fp32.items()}
    int8 = {k: (v + 0.1 * generator.standard_normal(v.shape)).astype(np.float32) for k, v in fp32.items()}
    labels = [str(index % 3) for index in range(9)]
    model_labels = [str(index) for index in range(7)]
    found, expected = (
        compared(fp32, int8, labels=labels, model_labels=model_labels, batch=size).to_json() for size in (batch, 9)
    )
    for output in fp32:
        assert found["outputs"][output].pop("worst_image") == expected["outputs"][output].pop("worst_image")
        assert found["outputs"][output] == pytest.approx(expected["outputs"][output], rel=1e-6)
    assert found["drops"] == expected["drops"]
    assert found["neighbor_agreement"] == expected["neighbor_agreement"]


def test_what_was_added_may_be_overwritten() -> None:
    """A wrapper may hand out the same buffer for every batch."""
    buffer = hidden([[1.0, 0.0], [0.0, 1.0]])
    comparison = Comparison()
    comparison.add(["a", "b"], {"last_hidden_state": buffer}, {"last_hidden_state": buffer})
    buffer[:] = 0
    assert comparison.result(labels=["x", "y"]).outputs["last_hidden_state"].cosine_mean == 1.0
    assert comparison._features[0][0].tolist() == [[1, 0], [0, 1]]


def test_equal_outputs_lose_nothing() -> None:
    generator = np.random.default_rng(0)
    outputs = {"last_hidden_state": hidden(generator.standard_normal((20, 8)))}
    outputs["logits"] = generator.standard_normal((20, 10)).astype(np.float32)
    labels = [str(index % 10) for index in range(20)]
    report = compared(outputs, outputs, labels=labels, model_labels=[str(digit) for digit in range(10)])
    assert report.images == 20
    for found in report.outputs.values():
        assert (found.cosine_worst, found.sqnr_db, found.max_abs_error) == (pytest.approx(1, abs=1e-6), 300.0, 0.0)
    assert (report.neighbor_agreement, report.class_agreement) == (1.0, 1.0)
    assert [drop.metric for drop in report.drops] == ["top-1", "top-5", "k-NN"]
    for drop in report.drops:
        assert drop.fp32 == drop.int8
        assert (drop.drop, drop.drop_low, drop.drop_high) == (0.0, 0.0, 0.0)
    json.dumps(report.to_json(), allow_nan=False)


def test_all_zero_outputs_are_far_from_perfect() -> None:
    fp32 = {"last_hidden_state": hidden([[1, 0], [0, 1], [1, 1]])}
    dead = {"last_hidden_state": np.zeros((3, 2, 2), np.float32)}
    found = compared(fp32, dead).outputs["last_hidden_state"]
    assert (found.cosine_mean, found.cosine_worst, found.sqnr_db) == (0.0, 0.0, 0.0)
    both = compared(dead, dead).outputs["last_hidden_state"]
    assert (both.cosine_mean, both.max_abs_error) == (0.0, 0.0)  # not 1: nothing points anywhere


# Neighbors

# Two bundles of directions; within a bundle the nearest are 0-1 and 2-3, then 4-5 and 6-7.
ANGLES = np.deg2rad([0, 2, 10, 13, 90, 92, 100, 103])
FEATURES = array(np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1))


def test_nearest_by_hand() -> None:
    assert nearest(FEATURES).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    assert nearest(FEATURES * array([[1], [9], [2], [7], [3], [5], [8], [4]])).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


def test_nearest_is_never_the_image_itself() -> None:
    opposite = array([[1, 0], [-1, 0]])
    assert nearest(opposite).tolist() == [1, 0]
    assert nearest(np.zeros((3, 2), np.float32)).tolist() == [1, 0, 0]


def test_neighbor_agreement_by_hand() -> None:
    """Turning image 2 from 10° to 5° makes it 1's neighbor: 1's and 2's nearest change, 0's and 3's do not."""
    moved = FEATURES.copy()
    moved[2] = [np.cos(np.deg2rad(3)), np.sin(np.deg2rad(3))]
    report = compared({"last_hidden_state": hidden(FEATURES)}, {"last_hidden_state": hidden(moved)})
    assert nearest(moved).tolist() == [1, 2, 1, 2, 5, 4, 7, 6]
    assert report.neighbor_agreement == 6 / 8


def test_neighbors_of_a_single_image_cannot_be_measured() -> None:
    outputs = {"last_hidden_state": hidden([[1, 0]])}
    report = compared(outputs, outputs, labels=["a"])
    assert report.neighbor_agreement is None
    assert report.drops == ()


def test_knn_by_hand() -> None:
    """Of 8 images each sees its 3 companions and 2 of the other bundle: a majority of 3 to 2."""
    assert knn_correct(FEATURES, ["a"] * 4 + ["b"] * 4).tolist() == [True] * 8
    # One mislabelled among four: it is outvoted; the others have 2 companions and, of the far bundle, 2 b's and 1 b.
    assert knn_correct(FEATURES, ["a", "a", "a", "b", "b", "b", "b", "b"]).tolist() == [False] * 4 + [True] * 4


def test_knn_ties_go_to_the_nearer() -> None:
    """Three images: each has one neighbor of either class."""
    angles = np.deg2rad([0, 5, 20])
    features = array(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert knn_correct(features, ["a", "a", "b"]).tolist() == [True, True, False]
    assert knn_correct(features, ["a", "b", "a"]).tolist() == [False, False, False]


def test_knn_drop_needs_no_classifier() -> None:
    labels = ["a"] * 4 + ["b"] * 4
    swapped = FEATURES[[4, 1, 2, 3, 0, 5, 6, 7]]
    report = compared({"last_hidden_state": hidden(FEATURES)}, {"last_hidden_state": hidden(swapped)}, labels=labels)
    (drop,) = report.drops
    assert (drop.metric, drop.fp32) == ("k-NN", 1.0)
    # The a at 90° sees 92, 100, 103 (b) first, the b at 0° sees 2, 10, 13 (a). The b's at 92, 100 and 103 see the a at
    # 90 and those at 13 and 10. The a's at 2, 10 and 13 keep each other and get the one at 90.
    assert drop.int8 == 3 / 8
    assert drop.drop == 5 / 8
    assert 0 < drop.drop_low < 5 / 8 < drop.drop_high <= 1


# Classes


def test_labels_as_names_or_as_numbers() -> None:
    names = ("cat", "dog", "1")
    assert label_indices(["dog", "cat", "1"], names).tolist() == [1, 0, 2]  # type: ignore[union-attr]
    assert label_indices(["0", "2", "1"], names).tolist() == [0, 2, 1]  # type: ignore[union-attr]
    assert label_indices(["1"], names).tolist() == [2]  # type: ignore[union-attr] # a name comes before a number
    assert label_indices(["dog", "2"], names) is None
    assert label_indices(["3"], names) is None
    assert label_indices(["horse"], names) is None
    assert label_indices([], names) is None
    assert label_indices(["0"], ()) is None


def logits_of(*tops: Sequence[int]) -> FloatArray:
    """For each image its classes from best on; 7 classes."""
    logits = np.zeros((len(tops), 7), np.float32)
    for image, order in enumerate(tops):
        for rank, index in enumerate(order):
            logits[image, index] = 10 - rank
    return logits


def test_top_1_and_top_5_by_hand() -> None:
    everything = list(range(7))
    fp32 = {"last_hidden_state": hidden(np.eye(4)), "logits": logits_of(everything, everything, everything, [6])}
    # Right; second; sixth; right.
    int8 = {"last_hidden_state": hidden(np.eye(4))}
    int8["logits"] = logits_of([0], [1, 0], [1, 2, 3, 4, 5, 0], [6])
    labels = ["c0", "c0", "c0", "c6"]
    report = compared(fp32, int8, labels=labels, model_labels=[f"c{index}" for index in everything])
    top1, top5 = report.drop("top-1"), report.drop("top-5")
    assert top1 is not None
    assert top5 is not None
    assert (top1.fp32, top1.int8, top1.drop) == (1.0, 0.5, 0.5)
    assert (top5.fp32, top5.int8, top5.drop) == (1.0, 0.75, 0.25)
    assert report.class_agreement == 0.5
    assert 0.0 <= top1.drop_low < 0.5 < top1.drop_high <= 1.0


def test_top_5_needs_more_than_5_classes() -> None:
    outputs = {"last_hidden_state": hidden(np.eye(4)), "logits": np.eye(4, 5, dtype=np.float32)}
    report = compared(outputs, outputs, labels=list("0123"), model_labels=list("01234"))
    assert [drop.metric for drop in report.drops] == ["top-1", "k-NN"]


def test_a_gain_is_a_negative_drop() -> None:
    right, wrong = np.eye(2, dtype=np.float32)[[0, 0]], np.eye(2, dtype=np.float32)[[1, 0]]
    tokens = hidden(np.eye(2))
    found = compared(
        {"last_hidden_state": tokens, "logits": wrong},
        {"last_hidden_state": tokens, "logits": right},
        labels=["0", "0"],
        model_labels=["0", "1"],
    ).drop("top-1")
    assert found is not None
    assert (found.fp32, found.int8, found.drop) == (0.5, 1.0, -0.5)


def test_labels_that_the_classifier_does_not_know_leave_knn() -> None:
    outputs = {"last_hidden_state": hidden(np.eye(4)), "logits": np.eye(4, dtype=np.float32)}
    report = compared(outputs, outputs, labels=["cat", "dog"] * 2, model_labels=list("0123"))
    assert [drop.metric for drop in report.drops] == ["k-NN"]
    assert report.class_agreement == 1.0
    assert report.drop("top-1") is None


# The interval


def drop_of(fp32_right: FloatArray, int8_right: FloatArray) -> tuple[float, float, float]:
    """Top-1 drop with its interval, of images of class 1 of 2 that either side gets right (1) or wrong (0)."""
    tokens = hidden(np.ones((len(fp32_right), 2)))
    fp32, int8 = (np.stack([1 - right, right], axis=1).astype(np.float32) for right in (fp32_right, int8_right))
    report = compared(
        {"last_hidden_state": tokens, "logits": fp32},
        {"last_hidden_state": tokens, "logits": int8},
        labels=["1"] * len(fp32_right),
        model_labels=["0", "1"],
    )
    found = report.drop("top-1")
    assert found is not None
    return found.drop, found.drop_low, found.drop_high


def test_the_interval_is_paired() -> None:
    """Both sides wrong on the same 200 of 400 images, and INT8 on 4 more: the 200 do not widen the interval."""
    fp32 = array([1] * 200 + [0] * 200)
    int8 = fp32.copy()
    int8[:4] = 0
    drop, low, high = drop_of(fp32, int8)
    assert drop == 0.01
    # Normal approximation: 0.01 ± 1.96 · sqrt(0.01 · 0.99 / 400) = 0.01 ± 0.0098; unpaired it would be ± 0.069.
    assert low == pytest.approx(0.0002, abs=0.003)
    assert high == pytest.approx(0.0198, abs=0.003)


def test_the_interval_is_the_same_every_time() -> None:
    generator = np.random.default_rng(3)
    fp32, int8 = (array(generator.integers(0, 2, 50)) for _ in range(2))
    assert drop_of(fp32, int8) == drop_of(fp32, int8)


def test_the_interval_covers_the_true_drop_about_95_times_of_100() -> None:
    """120 sets of 150 images: INT8 loses each with probability 0.10 and gains each with 0.04, a true drop of 0.06."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(120):
        kind = generator.choice(3, 150, p=[0.10, 0.04, 0.86])
        _, low, high = drop_of(array(kind != 1), array(kind != 0))
        covered += low <= 0.06 <= high
    assert 0.89 <= covered / 120 <= 0.99  # 95 % ± 3 standard deviations


# What cannot be measured


@pytest.mark.parametrize("side", ["FP32", "the artifact"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("output", ["last_hidden_state", "logits"])
def test_nan_and_infinity_name_output_side_and_image(side: str, value: float, output: str) -> None:
    good = {"last_hidden_state": hidden(np.eye(3)), "logits": np.eye(3, dtype=np.float32)}
    bad = {name: values.copy() for name, values in good.items()}
    bad[output][1, -1] = value
    with pytest.raises(AccuracyError, match=rf"^{output} of {side} holds NaN or infinity for image1$"):
        compared(*((bad, good) if side == "FP32" else (good, bad)))


def test_a_refused_batch_leaves_nothing_behind() -> None:
    """A caller that goes on after an error must not get numbers of half a batch."""
    good = {"last_hidden_state": hidden(np.eye(2)), "logits": np.eye(2, dtype=np.float32)}
    bad = {**good, "logits": array([[0, 1], [np.nan, 0]])}
    comparison = Comparison()
    with pytest.raises(AccuracyError, match="NaN"):
        comparison.add(["a", "b"], good, bad)
    with pytest.raises(AccuracyError, match="no images to judge on: accuracy cannot be measured"):
        comparison.result()


def test_missing_and_superfluous_outputs() -> None:
    good = {"last_hidden_state": hidden(np.eye(2)), "logits": np.eye(2, dtype=np.float32)}
    less = {"last_hidden_state": good["last_hidden_state"]}
    with pytest.raises(
        AccuracyError, match=r"FP32 has \['last_hidden_state', 'logits'\], the artifact \['last_hidden_state'\]"
    ):
        compared(good, less)
    with pytest.raises(AccuracyError, match="outputs differ: FP32 has"):
        compared(less, good)


@pytest.mark.parametrize("outputs", [{}, {"logits": np.eye(2, dtype=np.float32)}])
def test_outputs_without_the_hidden_state(outputs: Mapping[str, FloatArray]) -> None:
    """Both sides lack it: they agree, and there is nothing to judge."""
    with pytest.raises(AccuracyError, match=r"expected an output last_hidden_state, found \["):
        Comparison().add(["a", "b"], outputs, outputs)


@pytest.mark.parametrize("shape", [(2, 2, 3), (2, 3, 2), (1, 2, 2), (2, 4)])
def test_misshapen_outputs(shape: tuple[int, ...]) -> None:
    """Numpy would broadcast some of these without a word."""
    with pytest.raises(AccuracyError, match=r"^last_hidden_state: expected 2 images of shape \[2, 2\], found \["):
        compared({"last_hidden_state": hidden(np.eye(2))}, {"last_hidden_state": np.ones(shape, np.float32)})


def test_not_one_output_for_each_image() -> None:
    outputs = {"last_hidden_state": hidden(np.eye(3))}
    with pytest.raises(AccuracyError, match=r"expected 2 images of shape \[2, 3\], found \[3, 2, 3\]"):
        Comparison().add(["a", "b"], outputs, outputs)


def test_no_images() -> None:
    with pytest.raises(AccuracyError, match="no images to judge on: accuracy cannot be measured"):
        Comparison().result(labels=["a"])


@pytest.mark.parametrize("labels", [["a"], ["a", "b", "c"]])
def test_not_one_label_for_each_image(labels: list[str]) -> None:
    outputs = {"last_hidden_state": hidden(np.eye(2))}
    with pytest.raises(AccuracyError, match=rf"expected one label for each of 2 images, found {len(labels)}$"):
        compared(outputs, outputs, labels=labels)
