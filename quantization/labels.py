"""What labels allow: accuracy of FP32 and INT8 on the same images, and how far the difference could be chance.

Three ways to be right. Classifiers: the true class is first (top-1), or among the first five (top-5). Any encoder: the
majority class of the `NEIGHBORS` nearest other images (k-NN), each side among its own embeddings. Any encoder: a linear
probe, logistic regression on standardized class tokens. The probe is one head: fit on FP32 features of some images, it
judges FP32 and INT8 features of the others, as a head that was trained before the encoder was quantized does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from vitedge.quantization.fidelity import FloatArray
from vitedge.quantization.intervals import CONFIDENCE, bounded_estimate, mcnemar, undetected_share
from vitedge.quantization.retrieval import neighbors, unit

NEIGHBORS = 5
TOP_CLASSES = 5
_FOLDS = 5
# Two images of a class to fit on, one to judge; with fewer, k-NN has one vote to find as well.
_CLASS_IMAGES = 3
_PROBE_IMAGES = 2000  # seconds of fitting for them; minutes for ten times as many
Hits = NDArray[np.bool_]


@dataclass(frozen=True)
class Drop:
    """Accuracy of both sides on the same images, as fractions, and FP32 minus INT8 with its 95 % interval.

    The interval is a paired bootstrap over images; where no image differs it is the exact bound of `intervals`.

    Attributes:
        lost: Images that FP32 gets right and INT8 wrong.
        gained: Images that INT8 gets right and FP32 wrong.
        p_value: McNemar's exact test of the two: how often chance would split them so unevenly.
    """

    metric: str
    fp32: float
    int8: float
    drop: float
    drop_low: float
    drop_high: float
    images: int
    lost: int
    gained: int
    p_value: float

    @property
    def possible(self) -> float:
        """The largest drop that these images do not rule out.

        With an image or two that differ the bootstrap is too sure of itself: it never draws what it has not seen.
        """
        return max(self.drop_high, undetected_share(self.images))

    @property
    def verdict(self) -> str:
        """In words: beyond chance or not, and what cannot be ruled out."""
        measured = f"{self.metric} {self.fp32:.1%} → {self.int8:.1%} on {self.images} images"
        test = f"McNemar p = {self.p_value:.2g}"
        if self.p_value >= 1 - CONFIDENCE:
            return f"{measured}: no more than chance ({test}); a drop of up to {self.possible:.2%} cannot be ruled out"
        change = f"drop of {self.drop:.2%}" if self.drop > 0 else f"gain of {-self.drop:.2%}"
        return f"{measured}: a {change}, beyond chance ({test})"


def measure_drop(metric: str, fp32: Hits, int8: Hits) -> Drop:
    """From whether either side is right, image by image."""
    lost, gained = int((fp32 & ~int8).sum()), int((int8 & ~fp32).sum())
    difference = bounded_estimate(fp32.astype(np.float64) - int8, within=(-1.0, 1.0))
    return Drop(
        metric=metric,
        fp32=float(fp32.mean()),
        int8=float(int8.mean()),
        drop=difference.mean,
        drop_low=difference.interval[0],
        drop_high=difference.interval[1],
        images=len(fp32),
        lost=lost,
        gained=gained,
        p_value=mcnemar(lost, gained),
    )


def label_indices(labels: Sequence[str], model_labels: Sequence[str]) -> NDArray[np.intp] | None:
    """The classifier's index of each label, by name or as a number; None if one is neither, or the name of two."""
    count = Counter(model_labels)
    names = {name: index for index, name in enumerate(model_labels) if count[name] == 1}
    numbers = {str(index): index for index in range(len(model_labels))}
    table = names if set(labels) <= names.keys() else numbers
    return np.array([table[label] for label in labels]) if labels and set(labels) <= table.keys() else None


def top_classes(logits: FloatArray) -> NDArray[np.intp]:
    """The `TOP_CLASSES` likeliest classes of each image, or all if there are fewer, from logits [n, classes]."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :TOP_CLASSES]


def top_drops(
    fp32: NDArray[np.intp], int8: NDArray[np.intp], truth: NDArray[np.intp], classes: int
) -> tuple[Drop, ...]:
    """Top-1 and, if there are more than 5 classes, top-5, from `top_classes` of either side."""
    counts = (1, TOP_CLASSES) if classes > TOP_CLASSES else (1,)
    right = {count: [(top[:, :count] == truth[:, None]).any(axis=1) for top in (fp32, int8)] for count in counts}
    return tuple(measure_drop(f"top-{count}", *hits) for count, hits in right.items())


def feature_drops(fp32: FloatArray, int8: FloatArray, labels: Sequence[str]) -> tuple[Drop, ...] | str:
    """k-NN and the linear probe on embeddings [n, width].

    Returns:
        Both, or why they cannot be measured: fewer than two classes have three images.
    """
    classes = int((np.unique(np.array(labels), return_counts=True)[1] >= _CLASS_IMAGES).sum())
    if classes < 2:
        return f"k-NN and linear probe not measured: two classes with three images each are needed, found {classes}"
    knn = measure_drop("k-NN", knn_correct(fp32, labels), knn_correct(int8, labels))
    return knn, measure_drop("linear probe", *probe_correct(fp32, int8, labels))


def knn_correct(features: FloatArray, labels: Sequence[str]) -> Hits:
    """Whether each image's class is the majority among its `NEIGHBORS` nearest other images; ties go to the nearer."""
    classes = np.unique(np.array(labels), return_inverse=True)[1]
    rows = unit(features)
    votes = np.zeros((len(labels), classes.max() + 1))
    for rank, neighbor in enumerate(neighbors(rows, rows, min(NEIGHBORS, len(labels) - 1)).T):
        votes[np.arange(len(labels)), classes[neighbor]] += 1 + 1e-3 * (NEIGHBORS - rank)
    return np.asarray(votes.argmax(axis=1) == classes)


def probe_correct(fp32: FloatArray, int8: FloatArray, labels: Sequence[str]) -> tuple[Hits, Hits]:
    """Whether a linear head, fit on FP32 features of the other folds, is right about either side's features.

    Judges the images that `probe_images` takes, in their order.

    Args:
        fp32: Embeddings [n, width].
        int8: The same of the artifact.
        labels: At least two classes that have three images.
    """
    taken = probe_images(labels)
    expected, found, truth = fp32[taken], int8[taken], np.array(labels)[taken]
    right = np.zeros((2, len(truth)), np.bool_)
    smallest_class = int(np.unique(truth, return_counts=True)[1].min())
    folds = StratifiedKFold(min(_FOLDS, smallest_class), shuffle=True, random_state=0)
    for rest, fold in folds.split(expected, truth):
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
        head.fit(expected[rest], truth[rest])
        for side, features in enumerate((expected, found)):
            right[side, fold] = head.predict(features[fold]) == truth[fold]
    return right[0], right[1]


def probe_images(labels: Sequence[str]) -> Hits:
    """Which images the probe takes: the first of each class, equally many, up to `_PROBE_IMAGES` in all.

    Classes with fewer than three images are left out.
    """
    classes, counts = np.unique(np.array(labels), return_inverse=True, return_counts=True)[1:]
    order = np.argsort(classes, kind="stable")
    nth_of_class = np.empty(len(labels), np.intp)
    nth_of_class[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.flatnonzero(counts >= _CLASS_IMAGES)[: _PROBE_IMAGES // _CLASS_IMAGES]
    return np.asarray(np.isin(classes, chosen) & (nth_of_class < _PROBE_IMAGES // max(1, len(chosen))))
