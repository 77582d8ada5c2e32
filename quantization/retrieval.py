"""Whether INT8 embeddings find the same images as FP32 embeddings, and may query an index that FP32 built.

The embedding of an image is the class token of `last_hidden_state`; nearness is cosine. All of it is leave-one-out over
the evaluation images: an image queries the others, never itself, and the truth is what FP32 queries find in the FP32
index. No labels are needed.

recall@k is k-recall@k as in ANN-Benchmarks (Aumüller et al. 2017): of the k images that a search returns, the share
that is among the true k, averaged over the queries. It is stricter than "the true nearest is among the k".
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitedge.quantization.fidelity import FloatArray
from vitedge.quantization.intervals import Estimate, Values, bounded_estimate

DEPTH = 10
# With fewer, ten neighbors are half of all there are, and chance alone would score above one half.
MIN_IMAGES = 2 * DEPTH + 1
# Where users of approximate indexes set their recall: at 0.95 and above the embedding loses no more than the index.
MIN_RECALL = 0.95
# An image whose INT8 embedding is nearer to another image's FP32 embedding than to its own is a wrong match.
MIN_SELF_RETRIEVAL = 0.99
# Embeddings this near are one picture twice (or none at all: all black); float32 noise stays below 1e-11.
_TWIN_COSINE = 1 - 1e-9
_BLOCK_VALUES = 8_000_000  # of similarities held at once: 64 MB


@dataclass(frozen=True)
class Retrieval:
    """Means over the images as queries.

    Attributes:
        agreement_at_1: Share of images whose nearest other image is the same within INT8 as within FP32.
        overlap_at_10: Share of the 10 nearest under FP32 that are among the 10 nearest within INT8.
        int8_query_recall_at_1: INT8 queries against an FP32 index.
        int8_query_recall_at_10: The same.
        fp32_query_recall_at_1: FP32 queries against an INT8 index.
        fp32_query_recall_at_10: The same.
        self_retrieval: Share of images whose INT8 embedding is nearer to its own FP32 embedding than to any other.
        index_compatible: Whether INT8 may query an FP32 index; None if the images cannot tell.
        verdict: That, in words.
    """

    agreement_at_1: Estimate
    overlap_at_10: Estimate
    int8_query_recall_at_1: Estimate
    int8_query_recall_at_10: Estimate
    fp32_query_recall_at_1: Estimate
    fp32_query_recall_at_10: Estimate
    self_retrieval: Estimate
    index_compatible: bool | None
    verdict: str


def compare_retrieval(fp32: FloatArray, int8: FloatArray) -> Retrieval | str:
    """Compares neighbors among embeddings [images, width].

    Returns:
        What was measured, or why nothing could be: fewer than `MIN_IMAGES` images that differ.
    """
    too_few = f"neighbors not measured: that needs {MIN_IMAGES} different images, found"
    if len(fp32) < MIN_IMAGES:
        return f"{too_few} {len(fp32)}"
    expected, found = unit(fp32), unit(int8)
    truth = neighbors(expected, expected, DEPTH)
    different = int((~_same(expected, expected[truth[:, 0]])).sum())
    if different < MIN_IMAGES:
        return f"{too_few} {different}"
    within_int8 = neighbors(found, found, DEPTH)
    int8_query = neighbors(found, expected, DEPTH)
    fp32_query = neighbors(expected, found, DEPTH)
    recall = bounded_estimate(_shared(truth, int8_query, DEPTH))
    self_retrieval = bounded_estimate(_finds_itself(found, expected, int8_query[:, 0]).astype(np.float64))
    compatible, verdict = judge_index(recall, self_retrieval, len(fp32))
    return Retrieval(
        agreement_at_1=bounded_estimate(_shared(truth, within_int8, 1)),
        overlap_at_10=bounded_estimate(_shared(truth, within_int8, DEPTH)),
        int8_query_recall_at_1=bounded_estimate(_shared(truth, int8_query, 1)),
        int8_query_recall_at_10=recall,
        fp32_query_recall_at_1=bounded_estimate(_shared(truth, fp32_query, 1)),
        fp32_query_recall_at_10=bounded_estimate(_shared(truth, fp32_query, DEPTH)),
        self_retrieval=self_retrieval,
        index_compatible=compatible,
        verdict=verdict,
    )


def judge_index(recall: Estimate, self_retrieval: Estimate, images: int) -> tuple[bool | None, str]:
    """Whether INT8 embeddings may query an FP32 index, and that in words.

    Yes needs proof: the low end of recall@10's interval at `MIN_RECALL` or above. No needs its high end below, or a
    self-retrieval below `MIN_SELF_RETRIEVAL`. Between them the images cannot tell.
    """
    low, high = recall.interval
    measured = f"recall@10 {recall.mean:.3f} [{low:.3f}, {high:.3f}]"
    if not self_retrieval.mean >= MIN_SELF_RETRIEVAL:
        found = f"only {self_retrieval.mean:.1%} of images find themselves in an FP32 index"
        return False, f"re-embed your index: {found}, {measured}"
    if high < MIN_RECALL:
        return False, f"re-embed your index: INT8 queries of an FP32 index reach {measured}, below {MIN_RECALL}"
    if low >= MIN_RECALL:
        return True, f"INT8 embeddings may query your FP32 index: {measured}"
    return None, (
        f"{images} images cannot tell whether INT8 embeddings may query your FP32 index: {measured} spans {MIN_RECALL};"
        " judge on more, or re-embed"
    )


def unit(features: FloatArray) -> Values:
    """Rows scaled to length 1, in float64; rows of zeros stay zeros."""
    rows = features.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0))


def neighbors(queries: Values, index: Values, count: int) -> NDArray[np.intp]:
    """For each row of queries the nearest rows of the index, nearest first, never the row of the same number.

    Args:
        queries: Unit rows [n, width].
        index: Unit rows [n, width].
        count: At most n - 1.

    Returns:
        Row numbers [n, count].
    """
    found = np.empty((len(queries), count), np.intp)
    block = max(1, _BLOCK_VALUES // len(index))
    for start in range(0, len(queries), block):
        similarities = queries[start : start + block] @ index.T
        rows = np.arange(len(similarities))
        similarities[rows, start + rows] = -2
        # In order of row number, so that the stable sort gives equally near rows in that order.
        nearest = np.sort(np.argpartition(-similarities, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(-np.take_along_axis(similarities, nearest, axis=1), axis=1, kind="stable")
        found[start : start + block] = np.take_along_axis(nearest, order, axis=1)
    return found


def _same(a: Values, b: Values) -> NDArray[np.bool_]:
    """Whether unit rows point the same way: two copies of one picture."""
    return np.asarray(np.vecdot(a, b) > _TWIN_COSINE)


def _finds_itself(queries: Values, index: Values, nearest_other: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether a query is nearest to the index's row of the same number, or to another copy of that picture."""
    other = index[nearest_other]
    return np.asarray((np.vecdot(queries, index) > np.vecdot(queries, other)) | _same(index, other))


def _shared(truth: NDArray[np.intp], found: NDArray[np.intp], count: int) -> Values:
    """Share of the first `count` true neighbors among the first `count` found, for each row."""
    same = truth[:, :count, None] == found[:, None, :count]
    return np.asarray(same.any(axis=2).mean(axis=1))
