"""k-NN, probe and top classes by hand; drops with what chance allows."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitedge.quantization.fidelity import FloatArray
from vitedge.quantization.labels import (
    Drop,
    Hits,
    feature_drops,
    knn_correct,
    label_indices,
    measure_drop,
    probe_correct,
    probe_images,
    top_classes,
    top_drops,
)


def array(values: object) -> FloatArray:
    return np.array(values, np.float32)


def at_angles(degrees: object) -> FloatArray:
    angles = np.deg2rad(np.asarray(degrees, np.float64))
    return array(np.stack([np.cos(angles), np.sin(angles)], axis=1))


def hits(right: int, wrong: int) -> Hits:
    return np.array([True] * right + [False] * wrong)


def drops_of(fp32: FloatArray, int8: FloatArray, labels: Sequence[str]) -> tuple[Drop, ...]:
    found = feature_drops(fp32, int8, labels)
    assert not isinstance(found, str), found
    return found


# k-NN

FEATURES = at_angles([0, 2, 10, 13, 90, 92, 100, 103])
HALVES = ["a"] * 4 + ["b"] * 4


def test_knn_by_hand() -> None:
    """Of 8 images each sees its 3 companions and 2 of the other bundle: a majority of 3 to 2."""
    assert knn_correct(FEATURES, HALVES).tolist() == [True] * 8
    # One mislabelled among four: it is outvoted; the others have 2 companions and, of the far bundle, 2 b's and 1 b.
    assert knn_correct(FEATURES, ["a", "a", "a", "b", "b", "b", "b", "b"]).tolist() == [False] * 4 + [True] * 4


def test_knn_ties_go_to_the_nearer() -> None:
    """Three images: each has one neighbor of either class."""
    features = at_angles([0, 5, 20])
    assert knn_correct(features, ["a", "a", "b"]).tolist() == [True, True, False]
    assert knn_correct(features, ["a", "b", "a"]).tolist() == [False, False, False]


def test_each_side_searches_its_own_embeddings() -> None:
    swapped = FEATURES[[4, 1, 2, 3, 0, 5, 6, 7]]
    knn, probe = drops_of(FEATURES, swapped, HALVES)
    assert (knn.metric, probe.metric, knn.fp32) == ("k-NN", "linear probe", 1.0)
    # The a at 90° sees 92, 100, 103 (b) first, the b at 0° sees 2, 10, 13 (a). The b's at 92, 100 and 103 see the a at
    # 90 and those at 13 and 10. The a's at 2, 10 and 13 keep each other and get the one at 90.
    assert knn.int8 == 3 / 8
    assert (knn.drop, knn.lost, knn.gained) == (5 / 8, 5, 0)
    assert 0 < knn.drop_low < 5 / 8 < knn.drop_high <= 1


# Linear probe


def clusters(classes: int, each: int, seed: int = 0) -> tuple[FloatArray, list[str]]:
    """Clusters of features, far apart, in turn."""
    generator = np.random.default_rng(seed)
    centers = 5 * generator.standard_normal((classes, 16))
    labels = np.arange(classes * each) % classes
    return array(centers[labels] + generator.standard_normal((len(labels), 16))), [f"class{index}" for index in labels]


def test_probe_of_one_head_by_hand() -> None:
    """Mirrored INT8 features would fit a head of their own just as well; the FP32 head gets all of them wrong."""
    features, labels = clusters(2, 20)
    centered = features - features.mean(axis=0)
    fp32, int8 = probe_correct(centered, -centered, labels)
    assert (fp32.mean(), int8.mean()) == (1.0, 0.0)
    _, probe = drops_of(centered, -centered, labels)
    assert (probe.drop, probe.lost, probe.images) == (1.0, 40, 40)


def test_probe_judges_images_it_was_not_fit_on() -> None:
    """Noise with labels of its own: a head is right about what it was fit on, and by chance about the rest."""
    features = array(np.random.default_rng(0).standard_normal((100, 200)))
    labels = [str(index % 2) for index in range(100)]
    assert 0.3 < probe_correct(features, features, labels)[0].mean() < 0.7


def test_probe_does_not_depend_on_the_scale_of_features() -> None:
    features, labels = clusters(3, 10)
    scales = array(10.0 ** np.linspace(-6, 6, 16))
    assert probe_correct(features * scales, features * scales, labels)[0].all()


def test_probe_leaves_out_what_cannot_be_both_fit_and_judged() -> None:
    assert probe_images([*"abacbabc"]).tolist() == [True, True, True, False, True, True, True, False]
    features, labels = clusters(3, 4)
    labels[0] = "alone"
    knn, probe = drops_of(features, features, labels)
    assert (knn.images, probe.images) == (12, 11)


def test_probe_takes_so_many_images_of_each_class() -> None:
    labels = np.repeat([str(index) for index in range(3000)], 4)
    taken = probe_images(labels.tolist())
    assert taken.sum() == 1998
    assert set(np.unique(labels[taken], return_counts=True)[1]) == {3}
    few = np.array(["a"] * 5000 + ["b"] * 5000)
    assert np.unique(few[probe_images(few.tolist())], return_counts=True)[1].tolist() == [1000, 1000]


@pytest.mark.parametrize(
    ("labels", "found"), [(["a"] * 4, 1), (list("abcd"), 0), (list("aabbaccb")[:6], 1), (["a"], 0), (["a", "b"], 0)]
)
def test_labels_that_allow_nothing(labels: list[str], found: int) -> None:
    features = at_angles(np.arange(len(labels)))
    note = feature_drops(features, features, labels)
    assert note == f"k-NN and linear probe not measured: two classes with three images each are needed, found {found}"


def test_probe_of_the_smallest_classes_that_it_takes() -> None:
    """Scikit-learn warns of more classes than half the images it is fit on; warnings are errors here."""
    features, labels = clusters(30, 3)
    assert probe_correct(features, features, labels)[0].mean() > 0.9


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
    twice = ("crane", "dog", "crane")  # as in ImageNet, a bird and a machine
    assert label_indices(["crane"], twice) is None
    assert label_indices(["dog"], twice).tolist() == [1]  # type: ignore[union-attr]
    assert label_indices(["2", "0"], twice).tolist() == [2, 0]  # type: ignore[union-attr]
    assert label_indices(["0"], ()) is None


def test_top_classes_by_hand() -> None:
    logits = array([[0, 3, 1, 2, 5, 4, -1], [1, 1, 1, 1, 1, 1, 1]])
    assert top_classes(logits).tolist() == [[4, 5, 1, 3, 2], [0, 1, 2, 3, 4]]
    assert top_classes(logits[:, :3]).tolist() == [[1, 2, 0], [0, 1, 2]]


def test_top_drops_by_hand() -> None:
    fp32, int8 = np.array([[0, 1, 2, 3, 4]] * 3), np.array([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [6, 5, 4, 3, 2]])
    truth = np.zeros(3, np.intp)
    top1, top5 = top_drops(fp32, int8, truth, 7)
    assert (top1.metric, top1.fp32, top1.int8, top1.lost) == ("top-1", 1.0, pytest.approx(1 / 3), 2)
    assert (top5.metric, top5.fp32, top5.int8, top5.lost) == ("top-5", 1.0, pytest.approx(2 / 3), 1)
    assert [drop.metric for drop in top_drops(fp32, int8, truth, 5)] == ["top-1"]


# Drops


def test_the_interval_is_paired() -> None:
    """Both sides wrong on the same 200 of 400 images, and INT8 on 4 more: the 200 do not widen the interval."""
    int8 = hits(200, 200)
    int8[:4] = False
    drop = measure_drop("top-1", hits(200, 200), int8)
    assert drop.drop == 0.01
    # Normal approximation: 0.01 ± 1.96 · sqrt(0.01 · 0.99 / 400) = 0.01 ± 0.0098; unpaired it would be ± 0.069.
    assert drop.drop_low == pytest.approx(0.0002, abs=0.003)
    assert drop.drop_high == pytest.approx(0.0198, abs=0.003)
    assert (drop.lost, drop.gained, drop.p_value) == (4, 0, 2 / 16)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_a_drop_adds_up(right: list[tuple[bool, bool]]) -> None:
    fp32, int8 = np.array(right).T
    drop = measure_drop("top-1", fp32, int8)
    assert drop.drop == pytest.approx(drop.fp32 - drop.int8)
    assert drop.drop == pytest.approx((drop.lost - drop.gained) / drop.images)
    assert drop.drop_low - 1e-12 <= drop.drop <= drop.drop_high + 1e-12
    assert 0 < drop.p_value <= 1


def test_no_difference_is_not_certainty() -> None:
    drop = measure_drop("top-1", hits(30, 10), hits(30, 10))
    assert (drop.drop, drop.p_value) == (0.0, 1.0)
    assert (drop.drop_low, drop.drop_high) == pytest.approx((-0.0881, 0.0881), abs=1e-4)


@pytest.mark.parametrize(
    ("fp32", "int8", "verdict"),
    [
        (36, 36, "90.0% → 90.0% on 40 images: no more than chance (McNemar p = 1); a drop of up to 8.81% cannot be"),
        (40, 35, "100.0% → 87.5% on 40 images: no more than chance (McNemar p = 0.062); a drop of up to"),
        (
            35,
            40,
            "87.5% → 100.0% on 40 images: no more than chance (McNemar p = 0.062); a drop of up to 8.81%",
        ),
        (40, 34, "100.0% → 85.0% on 40 images: a drop of 15.00%, beyond chance (McNemar p = 0.031)"),
        (34, 40, "85.0% → 100.0% on 40 images: a gain of 15.00%, beyond chance (McNemar p = 0.031)"),
    ],
)
def test_a_verdict_in_words(fp32: int, int8: int, verdict: str) -> None:
    found = measure_drop("top-1", hits(fp32, 40 - fp32), hits(int8, 40 - int8)).verdict
    assert found.startswith(f"top-1 {verdict}")
