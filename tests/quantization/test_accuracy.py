"""Accuracy against numbers worked out by hand, on sets small enough to do so; what cannot be measured is no pass."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitedge.quantization.accuracy import AccuracyReport, Comparison
from vitedge.quantization.fidelity import EXACT_SQNR_DB, FloatArray
from vitedge.quantization.intervals import Estimate
from vitedge.quantization.retrieval import MIN_IMAGES
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


@settings(max_examples=10)  # each draws 2 × 20 bootstraps
@given(st.integers(0, 2**32 - 1), st.integers(1, 24))
def test_batches_do_not_matter(seed: int, batch: int) -> None:
    generator = np.random.default_rng(seed)
    fp32 = {"last_hidden_state": generator.standard_normal((24, 3, 4)), "logits": generator.standard_normal((24, 7))}
    fp32 = {name: values.astype(np.float32) for name, values in fp32.items()}
    int8 = {k: (v + 0.1 * generator.standard_normal(v.shape)).astype(np.float32) for k, v in fp32.items()}
    labels = [str(index % 3) for index in range(24)]
    names = [str(index) for index in range(7)]
    found, expected = (compared(fp32, int8, labels=labels, model_labels=names, batch=size) for size in (batch, 24))
    assert found.retrieval is not None
    assert found == expected


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
    outputs = {"last_hidden_state": hidden(generator.standard_normal((40, 8)), generator.standard_normal((40, 8)))}
    outputs["logits"] = generator.standard_normal((40, 10)).astype(np.float32)
    labels = [str(index % 10) for index in range(40)]
    report = compared(outputs, outputs, labels=labels, model_labels=[str(digit) for digit in range(10)])
    assert report.images == 40
    assert report.patch_tokens is not None
    for found in (*report.outputs.values(), report.patch_tokens):
        assert (found.cosine_worst, found.sqnr_db, found.max_abs_error) == (pytest.approx(1, abs=1e-6), 300.0, 0.0)
        assert (found.norm_drift_mean, found.norm_drift_worst) == (0.0, 0.0)
    assert (report.neighbor_agreement, report.class_agreement) == (1.0, 1.0)
    assert [drop.metric for drop in report.drops] == ["top-1", "top-5", "k-NN", "linear probe"]
    for drop in report.drops:
        assert drop.fp32 == drop.int8
        # 40 images without a difference leave room for 1 - 0.025^(1/40) among all images.
        assert (drop.drop, drop.drop_low, drop.drop_high) == pytest.approx((0, -0.0881, 0.0881), abs=1e-4)
    assert report.notes == ()


def test_report_is_valid_json_whatever_is_missing() -> None:
    """Infinity and NaN are not JSON; a reader finds the same verdicts that a person sees."""
    one = {"last_hidden_state": hidden([[0.0, 0.0]])}
    many = {"last_hidden_state": hidden(np.random.default_rng(0).standard_normal((MIN_IMAGES, 4)))}
    for outputs in (one, many, many | {"logits": np.eye(MIN_IMAGES, dtype=np.float32)}):
        report = compared(outputs, outputs, labels=["a", *"b" * (len(outputs["last_hidden_state"]) - 1)])
        document = json.loads(json.dumps(report.to_json(), allow_nan=False))
        assert document["verdicts"] == list(report.verdicts)
        assert document["outputs"]["last_hidden_state"]["sqnr_db"] == 300.0
        assert document.keys() >= {"patch_tokens", "retrieval", "drops", "notes"}
        assert "per_image" not in document  # manifests travel
        again = AccuracyReport.from_json(document, report.per_image)
        assert json.dumps(again.to_json()) == json.dumps(report.to_json())


def test_all_zero_outputs_are_far_from_perfect() -> None:
    fp32 = {"last_hidden_state": hidden([[1, 0], [0, 1], [1, 1]])}
    dead = {"last_hidden_state": np.zeros((3, 2, 2), np.float32)}
    found = compared(fp32, dead).outputs["last_hidden_state"]
    assert (found.cosine_mean, found.cosine_worst, found.sqnr_db) == (0.0, 0.0, 0.0)
    both = compared(dead, dead).outputs["last_hidden_state"]
    assert (both.cosine_mean, both.max_abs_error) == (0.0, 0.0)  # not 1: nothing points anywhere


# Patch tokens


def test_patch_tokens_are_judged_apart_from_the_class_token() -> None:
    fp32 = {"last_hidden_state": array([[[1, 0], [3, 4], [0, 2]], [[1, 0], [1, 0], [0, 1]]])}
    int8 = {"last_hidden_state": array([[[1, 0], [4, 3], [0, 1]], [[0, 1], [1, 0], [0, 1]]])}
    report = compared(fp32, int8)
    patches, cls = report.patch_tokens, report.outputs["last_hidden_state"]
    assert patches is not None
    assert patches.cosine_mean == pytest.approx((0.96 + 1 + 1 + 1) / 4)
    assert patches.cosine_worst == pytest.approx(0.96)
    assert (patches.worst_image, cls.worst_image) == ("image0", "image1")
    assert (cls.cosine_mean, cls.cosine_worst) == (0.5, 0.0)
    assert patches.sqnr_db == pytest.approx(10 * np.log10((25 + 4 + 1 + 1) / (2 + 1)))
    assert cls.sqnr_db == pytest.approx(10 * np.log10((25 + 4 + 1 + 1 + 2) / (2 + 1 + 2)))  # of all tokens
    assert (patches.norm_drift_mean, patches.norm_drift_worst) == pytest.approx((0.5 / 4, -0.5))
    assert cls.norm_drift_mean == 0.0


def test_an_encoder_without_patch_tokens() -> None:
    outputs = {"last_hidden_state": hidden(np.eye(2))[:, :1]}
    assert compared(outputs, outputs).patch_tokens is None


# Neighbors and labels


def test_too_few_images_leave_no_number_and_a_note() -> None:
    outputs = {"last_hidden_state": hidden(np.eye(MIN_IMAGES - 1))}
    report = compared(outputs, outputs, labels=["a"] * (MIN_IMAGES - 1))
    assert (report.retrieval, report.neighbor_agreement, report.drops) == (None, None, ())
    assert report.verdicts == report.notes
    assert report.notes == (
        "neighbors not measured: that needs 21 different images, found 20",
        "k-NN and linear probe not measured: two classes with three images each are needed, found 1",
    )


def test_a_single_image_has_no_intervals() -> None:
    outputs = {"last_hidden_state": hidden([[1, 0]]), "logits": array([[1, 0]])}
    report = compared(outputs, outputs)
    found = report.outputs["last_hidden_state"]
    assert (found.cosine_mean, found.cosine_mean_interval, found.sqnr_db_interval) == (1.0, None, None)
    assert report.same_top_class == Estimate(1.0, (pytest.approx(0.025), 1.0))
    assert report.retrieval is None


def test_neighbors_are_of_the_class_token() -> None:
    generator = np.random.default_rng(0)
    cls, patches, others = (generator.standard_normal((30, 8)) for _ in range(3))
    report = compared({"last_hidden_state": hidden(cls, patches)}, {"last_hidden_state": hidden(cls, others)})
    assert report.neighbor_agreement == 1.0
    swapped = compared({"last_hidden_state": hidden(cls, patches)}, {"last_hidden_state": hidden(others, patches)})
    assert swapped.neighbor_agreement is not None
    assert swapped.neighbor_agreement < 0.3
    assert swapped.verdicts[0].startswith("re-embed your index")


# Classes


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
    assert [drop.metric for drop in report.drops] == ["top-1"]
    assert report.verdicts[0].startswith("top-1 100.0% → 100.0% on 4 images: no more than chance")


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
    outputs = {"last_hidden_state": hidden(np.eye(6)), "logits": np.eye(6, dtype=np.float32)}
    report = compared(outputs, outputs, labels=["cat", "dog"] * 3, model_labels=list("012345"))
    assert [drop.metric for drop in report.drops] == ["k-NN", "linear probe"]
    assert report.leading_drop == report.drops[0]
    assert report.notes[1].startswith(
        "top-1 not measured: the folders' names are not the classifier's labels: found cat"
    )
    assert report.class_agreement == 1.0
    assert report.drop("top-1") is None


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
