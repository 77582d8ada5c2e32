"""What an artifact lost against FP32, measured over a set of images.

For every output, FP32 and INT8 are compared image by image and batch by batch (`fidelity.py`). Kept are some numbers
per image, the class token's features and the likeliest classes, so memory does not grow with the resolution. At the
end follow neighbors (`retrieval.py`) and what labels allow (`labels.py`). A number that cannot be measured is None and
a note says why, or it is an error; it is never a pass.

Directions are of one vector per image: the class token of `last_hidden_state`, the whole of the other outputs. The
other tokens of `last_hidden_state`, its patches, have a row of their own. SQNR of an output is over all its values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitedge.quantization.fidelity import FidelityAccumulator, FloatArray, Moments, OutputAccuracy
from vitedge.quantization.intervals import Estimate, bounded_estimate
from vitedge.quantization.labels import Drop, feature_drops, label_indices, top_classes, top_drops
from vitedge.quantization.per_image import PerImage, per_image
from vitedge.quantization.retrieval import Retrieval, compare_retrieval
from vitedge.runtimes.errors import AccuracyError

_HIDDEN_STATE = "last_hidden_state"
_PATCHES = "patch tokens"


@dataclass(frozen=True)
class AccuracyReport:
    """Everything measured over one set of images.

    Attributes:
        images: How many.
        outputs: By output name; directions in `last_hidden_state` are those of the class token.
        patch_tokens: Of `last_hidden_state`, each a vector of its own; None if the encoder has none.
        retrieval: Neighbors and index compatibility; None for too few images, see `notes`.
        same_top_class: Share of images with the same top class; None without a classifier.
        drops: What the labels allow: k-NN and linear probe for any encoder, top-1 and top-5 for classifiers.
        notes: What could not be measured, and why.
        per_image: Of every image; too long for `to_json`, which goes into manifests and so to devices.
    """

    images: int
    outputs: Mapping[str, OutputAccuracy]
    patch_tokens: OutputAccuracy | None
    retrieval: Retrieval | None
    same_top_class: Estimate | None
    drops: tuple[Drop, ...]
    notes: tuple[str, ...]
    per_image: PerImage

    @property
    def neighbor_agreement(self) -> float | None:
        return self.retrieval.agreement_at_1.mean if self.retrieval else None

    @property
    def class_agreement(self) -> float | None:
        return self.same_top_class.mean if self.same_top_class else None

    @property
    def leading_drop(self) -> Drop | None:
        """The drop that counts most: top-1 of a classifier, else k-NN."""
        return self.drop("top-1") or self.drop("k-NN")

    @property
    def verdicts(self) -> tuple[str, ...]:
        """What the numbers mean, in words: the index, the labels, and what could not be measured."""
        index = (self.retrieval.verdict,) if self.retrieval else ()
        labels = (self.leading_drop.verdict,) if self.leading_drop else ()
        return index + labels + self.notes

    def to_json(self) -> dict[str, Any]:
        document = asdict(self) | {"verdicts": self.verdicts}
        del document["per_image"]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any], per_image: PerImage) -> "AccuracyReport":
        """What `to_json` wrote, with what it left out; whatever is wrong with it is a KeyError or a TypeError."""
        patches, same = document["patch_tokens"], document["same_top_class"]
        retrieval: dict[str, Any] = {
            key: Estimate(**value) if isinstance(value, dict) else value
            for key, value in (document["retrieval"] or {}).items()
        }
        return cls(
            images=document["images"],
            outputs={name: OutputAccuracy(**found) for name, found in document["outputs"].items()},
            patch_tokens=patches and OutputAccuracy(**patches),
            retrieval=Retrieval(**retrieval) if retrieval else None,
            same_top_class=same and Estimate(**same),
            drops=tuple(Drop(**drop) for drop in document["drops"]),
            notes=tuple(document["notes"]),
            per_image=per_image,
        )

    def drop(self, metric: str) -> Drop | None:
        return next((drop for drop in self.drops if drop.metric == metric), None)


class Comparison:
    """Accumulates FP32 and INT8 outputs, batch by batch."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._fidelities: dict[str, FidelityAccumulator] = {}
        self._features: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        self._top_classes: tuple[list[NDArray[np.intp]], list[NDArray[np.intp]]] = ([], [])
        self._classes = 0

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
        if _HIDDEN_STATE not in fp32:
            raise AccuracyError(f"expected an output {_HIDDEN_STATE}, found {sorted(fp32)}")
        for output in fp32:
            _check(output, names, fp32[output], int8[output])
        for output, expected in fp32.items():
            self._add_output(output, expected, int8[output])
        for side, outputs in enumerate((fp32, int8)):
            self._features[side].append(outputs[_HIDDEN_STATE][:, 0].copy())
            if "logits" in outputs:
                self._top_classes[side].append(top_classes(outputs["logits"]))
                self._classes = outputs["logits"].shape[1]
        self._names.extend(names)

    def _add_output(self, output: str, expected: FloatArray, found: FloatArray) -> None:
        if output != _HIDDEN_STATE:
            whole = Moments.of(expected[:, None], found[:, None])
            self._fidelity(output).add(whole, whole)
            return
        tokens = Moments.of(expected, found)
        self._fidelity(output).add(tokens[:1], tokens)
        if expected.shape[1] > 1:
            self._fidelity(_PATCHES).add(tokens[1:], tokens[1:])

    def _fidelity(self, vectors: str) -> FidelityAccumulator:
        return self._fidelities.setdefault(vectors, FidelityAccumulator())

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
        vectors = {name: fidelity.result(self._names) for name, fidelity in self._fidelities.items()}
        fp32, int8 = (np.concatenate(side) for side in self._features)
        same_top_class, by_logits = self._classified(labels, model_labels)
        retrieval = compare_retrieval(fp32, int8)
        by_features = feature_drops(fp32, int8, labels) if labels else ()
        measured = [drops for drops in (by_logits, by_features) if not isinstance(drops, str)]
        return AccuracyReport(
            images=len(self._names),
            outputs={name: found for name, found in vectors.items() if name != _PATCHES},
            patch_tokens=vectors.get(_PATCHES),
            retrieval=None if isinstance(retrieval, str) else retrieval,
            same_top_class=same_top_class,
            drops=tuple(drop for drops in measured for drop in drops),
            notes=tuple(found for found in (retrieval, by_logits, by_features) if isinstance(found, str)),
            per_image=per_image(fp32, int8),
        )

    def _classified(
        self, labels: Sequence[str], model_labels: Sequence[str]
    ) -> tuple[Estimate | None, tuple[Drop, ...] | str]:
        """How often a classifier's sides agree; its drops, or why the labels allow none."""
        if not self._classes:
            return None, ()
        fp32, int8 = (np.concatenate(side) for side in self._top_classes)
        same = bounded_estimate((fp32[:, 0] == int8[:, 0]).astype(np.float64))
        if not labels:
            return same, ()
        truth = label_indices(labels, model_labels)
        if truth is None:
            examples = f"found {labels[0]}, expected such as {', '.join(model_labels[:3])} or an index"
            return same, f"top-1 not measured: the folders' names are not the classifier's labels: {examples}"
        return same, top_drops(fp32, int8, truth, self._classes)


def _check(output: str, names: Sequence[str], fp32: FloatArray, int8: FloatArray) -> None:
    if fp32.shape != int8.shape or len(fp32) != len(names):
        raise AccuracyError(
            f"{output}: expected {len(names)} images of shape {list(fp32.shape[1:])}, found {list(int8.shape)}"
        )
    for side, values in (("FP32", fp32), ("the artifact", int8)):
        broken = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if broken.any():
            raise AccuracyError(f"{output} of {side} holds NaN or infinity for {names[int(broken.argmax())]}")
