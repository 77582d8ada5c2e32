"""What an artifact lost against FP32, measured over a set of images.

For every output, FP32 and INT8 are compared image by image; nothing but one number per image and the class token's
features is kept, so memory does not grow with the resolution. A number that cannot be measured is None, or an error;
it is never a pass.

Cosine is taken of one vector per image: the class token of `last_hidden_state`, and the whole of the other outputs. The
cosine to a vector of zeros is 0. SQNR is 10 · log10(Σ fp32² / Σ (fp32 - int8)²) over all values of all images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from vitedge.runtimes.errors import AccuracyError

FloatArray = NDArray[np.float32]
NEIGHBORS = 5
_CONFIDENCE = 0.95
_RESAMPLES = 2000
# SQNR of outputs that are equal to the bit; a finite number, so that reports stay valid JSON.
EXACT_SQNR_DB = 300.0


@dataclass(frozen=True)
class OutputAccuracy:
    """Fidelity of one output. Cosines are of INT8 to FP32; `worst_image` is the one with the smallest."""

    cosine_mean: float
    cosine_p01: float
    cosine_worst: float
    worst_image: str
    sqnr_db: float
    max_abs_error: float


@dataclass(frozen=True)
class Drop:
    """Accuracy of both sides on the same images, as fractions, and FP32 minus INT8 with its 95 % interval.

    The interval is a paired bootstrap over images: it says how far the drop could be chance.
    """

    metric: str
    fp32: float
    int8: float
    drop: float
    drop_low: float
    drop_high: float


@dataclass(frozen=True)
class AccuracyReport:
    """Everything measured over one set of images.

    `neighbor_agreement` is the share of images whose nearest other image, by cosine of the class token, is the same
    under FP32 and INT8. `drops` holds what the labels allow: k-NN for any encoder, top-1 and top-5 for classifiers.
    `class_agreement` is the share of images with the same top class; None without a classifier.
    """

    images: int
    outputs: Mapping[str, OutputAccuracy]
    neighbor_agreement: float | None
    class_agreement: float | None
    drops: tuple[Drop, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def drop(self, metric: str) -> Drop | None:
        return next((drop for drop in self.drops if drop.metric == metric), None)


class Comparison:
    """Accumulates FP32 and INT8 outputs, batch by batch."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._cosines: dict[str, list[FloatArray]] = {}
        self._signal: dict[str, float] = {}
        self._noise: dict[str, float] = {}
        self._max_error: dict[str, float] = {}
        self._features: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        self._logits: tuple[list[FloatArray], list[FloatArray]] = ([], [])

    def add(self, names: Sequence[str], fp32: Mapping[str, FloatArray], int8: Mapping[str, FloatArray]) -> None:
        """Adds one batch.

        Args:
            names: Of the images.
            fp32: Outputs of the reference, batch first.
            int8: Outputs of the artifact.

        Raises:
            AccuracyError: No images, or an output is missing or superfluous, misshapen, or not finite.
        """
        if fp32.keys() != int8.keys():
            raise AccuracyError(f"outputs differ: FP32 has {sorted(fp32)}, the artifact {sorted(int8)}")
        if not names:
            raise AccuracyError("no images to judge on: a batch is empty")
        if "last_hidden_state" not in fp32:
            raise AccuracyError(f"expected an output last_hidden_state, found {sorted(fp32)}")
        for output in fp32:
            _check(output, names, fp32[output], int8[output])
        for output, expected in fp32.items():
            self._add_output(output, expected, int8[output])
        for side, outputs in enumerate((fp32, int8)):
            self._features[side].append(outputs["last_hidden_state"][:, 0].copy())
            if "logits" in outputs:
                self._logits[side].append(outputs["logits"].copy())
        self._names.extend(names)

    def _add_output(self, output: str, expected: FloatArray, found: FloatArray) -> None:
        vectors = (expected[:, 0], found[:, 0]) if output == "last_hidden_state" else (expected, found)
        self._cosines.setdefault(output, []).append(cosine(*vectors))
        error = expected.astype(np.float64) - found
        self._signal[output] = self._signal.get(output, 0.0) + float(np.square(expected, dtype=np.float64).sum())
        self._noise[output] = self._noise.get(output, 0.0) + float(np.square(error).sum())
        self._max_error[output] = max(self._max_error.get(output, 0.0), float(np.abs(error).max()))

    def result(self, *, labels: Sequence[str] = (), model_labels: Sequence[str] = ()) -> AccuracyReport:
        """What the batches add up to.

        Args:
            labels: The true class of each image, in the order added; empty if unknown.
            model_labels: A classifier's class names, by index.

        Raises:
            AccuracyError: No images, or not one label for each.
        """
        if not self._names:
            raise AccuracyError("no images to judge on: accuracy cannot be measured")
        if labels and len(labels) != len(self._names):
            raise AccuracyError(f"expected one label for each of {len(self._names)} images, found {len(labels)}")
        outputs = {output: self._output(output) for output in self._cosines}
        fp32, int8 = (np.concatenate(side) for side in self._features)
        drops = []
        if labels and len(labels) > 1:
            drops.append(_drop("k-NN", knn_correct(fp32, labels), knn_correct(int8, labels)))
        class_agreement = None
        if self._logits[0]:
            fp32_logits, int8_logits = (np.concatenate(side) for side in self._logits)
            class_agreement = float((fp32_logits.argmax(1) == int8_logits.argmax(1)).mean())
            drops = [*_top_drops(fp32_logits, int8_logits, labels, model_labels), *drops]
        agreement = float((nearest(fp32) == nearest(int8)).mean()) if len(self._names) > 1 else None
        return AccuracyReport(len(self._names), outputs, agreement, class_agreement, tuple(drops))

    def _output(self, output: str) -> OutputAccuracy:
        cosines = np.concatenate(self._cosines[output])
        worst = int(cosines.argmin())
        return OutputAccuracy(
            cosine_mean=float(cosines.mean()),
            cosine_p01=float(np.percentile(cosines, 1)),
            cosine_worst=float(cosines[worst]),
            worst_image=self._names[worst],
            sqnr_db=sqnr_db(self._signal[output], self._noise[output]),
            max_abs_error=self._max_error[output],
        )


def cosine(a: FloatArray, b: FloatArray) -> FloatArray:
    """Cosine of each row of a [n, width] to that of b; 0 where either is all zeros."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(a64, axis=1) * np.linalg.norm(b64, axis=1)
    products = (a64 * b64).sum(axis=1)
    cosines = np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)
    return np.asarray(cosines, np.float32)


def sqnr_db(signal: float, noise: float) -> float:
    """Signal to quantization noise in decibels, within ±`EXACT_SQNR_DB`."""
    if noise == 0:
        return EXACT_SQNR_DB
    return float(np.clip(10 * np.log10(max(signal, np.finfo(float).tiny) / noise), -EXACT_SQNR_DB, EXACT_SQNR_DB))


def nearest(features: FloatArray) -> NDArray[np.intp]:
    """Index of the nearest other row, by cosine, for each row of features [n, width]."""
    return np.asarray(_similarities(features).argmax(axis=1))


def knn_correct(features: FloatArray, labels: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each image's class is the majority among its `NEIGHBORS` nearest other images; ties go to the nearer."""
    classes = np.unique(np.array(labels), return_inverse=True)[1]
    order = np.argsort(-_similarities(features), axis=1, kind="stable")[:, : min(NEIGHBORS, len(labels) - 1)]
    votes = np.zeros((len(labels), classes.max() + 1))
    for rank, neighbor in enumerate(order.T):
        votes[np.arange(len(labels)), classes[neighbor]] += 1 + 1e-3 * (NEIGHBORS - rank)
    return np.asarray(votes.argmax(axis=1) == classes)


def label_indices(labels: Sequence[str], model_labels: Sequence[str]) -> NDArray[np.intp] | None:
    """The classifier's index of each label, by name or as a number; None if some label is neither."""
    names = {name: index for index, name in enumerate(model_labels)}
    numbers = {str(index): index for index in range(len(model_labels))}
    table = names if set(labels) <= names.keys() else numbers
    return np.array([table[label] for label in labels]) if labels and set(labels) <= table.keys() else None


def _similarities(features: FloatArray) -> NDArray[np.float64]:
    """Cosine between all rows; -2 of each with itself, so that it is never its own neighbor."""
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    similarities = rows @ rows.T
    np.fill_diagonal(similarities, -2)
    return np.asarray(similarities)


def _top_drops(
    fp32: FloatArray, int8: FloatArray, labels: Sequence[str], model_labels: Sequence[str]
) -> tuple[Drop, ...]:
    truth = label_indices(labels, model_labels)
    if truth is None:
        return ()

    def correct(logits: FloatArray, count: int) -> NDArray[np.bool_]:
        return np.asarray((np.argsort(-logits, axis=1, kind="stable")[:, :count] == truth[:, None]).any(axis=1))

    counts = (1, 5) if fp32.shape[1] > 5 else (1,)
    return tuple(_drop(f"top-{count}", correct(fp32, count), correct(int8, count)) for count in counts)


def _drop(metric: str, fp32: NDArray[np.bool_], int8: NDArray[np.bool_]) -> Drop:
    lost = fp32.astype(float) - int8.astype(float)
    low = high = float(lost.mean())
    if np.ptp(lost) > 0:  # else every resample is the same
        interval = bootstrap(
            (lost,),
            np.mean,
            n_resamples=_RESAMPLES,
            batch=200,
            confidence_level=_CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    return Drop(metric, float(fp32.mean()), float(int8.mean()), float(lost.mean()), low, high)


def _check(output: str, names: Sequence[str], fp32: FloatArray, int8: FloatArray) -> None:
    if fp32.shape != int8.shape or len(fp32) != len(names):
        raise AccuracyError(
            f"{output}: expected {len(names)} images of shape {list(fp32.shape[1:])}, found {list(int8.shape)}"
        )
    for side, values in (("FP32", fp32), ("the artifact", int8)):
        broken = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if broken.any():
            raise AccuracyError(f"{output} of {side} holds NaN or infinity for {names[int(broken.argmax())]}")
