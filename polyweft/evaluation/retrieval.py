"""Retrieval between images and captions: exact ranks in little memory, and the measures of them.

Relevance is a relation between images and captions, given as pairs: an image may have several captions, and
a caption that several images bear has all of them as right answers. Ties count against the model.

Definitions: Recall@K as in CLIP and in the captioning literature is a hit rate (the best right item is among
the first K); `true_recall` is the share of the right items that are. Average precision and the reciprocal
rank follow Manning, Raghavan and Schütze, "Introduction to Information Retrieval", chapter 8; nDCG with
gain 1 and discount log2(1 + rank) follows Järvelin and Kekäläinen, 2002.

Shape suffixes: N images, M captions, D embedding size, P pairs, Q queries.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from polyweft.errors import PolyweftError

Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

RECALL_AT = (1, 5, 10)
"""The K that the literature reports."""

CURVE_AT = (1, 2, 3, 5, 10, 20, 50)
"""The K of the recall curve; holds `RECALL_AT`."""

NDCG_AT = 10

TIE = 2e-6
"""Cosines nearer than this are a tie. Equal float32 rows differ by up to 7e-7 over a product's tiles."""

_BLOCK = 240
"""Images a block; below 256, so that a column's count fits the uint8 that numpy adds fastest."""

_FEW = 8
"""Up to so many right items a query are counted one by one; beyond, sorting the scores is cheaper."""


def rank_pairs(images_ND: Float32Array, captions_MD: Float32Array, pairs_P2: IntArray) -> FloatArray:
    """Rank every right pair from both sides, exactly, a block of images at a time.

    The rank of a right item is its place among the query's right items plus the number of wrong items whose
    score (inner product) is at least its own, or within `TIE` of it.

    Parameters
    ----------
    images_ND, captions_MD
        Unit-length float32 embeddings.
    pairs_P2
        Image and caption of each right pair; distinct, in any order.

    Returns
    -------
    float64 [P, 2]: the caption's rank for the image, and the image's rank for the caption; from 1 on.

    Raises
    ------
    PolyweftError
        An embedding is NaN or infinite: its rank would mean nothing.
    """
    for name, rows in (("image", images_ND), ("caption", captions_MD)):
        bad = int(np.count_nonzero(~np.isfinite(rows).all(axis=1)))
        if bad:
            raise PolyweftError(
                f"{bad} of {len(rows)} {name} embeddings are not finite; a model that trained well gives "
                "finite ones. Lower train.lr and train again."
            )
    order = np.lexsort((pairs_P2[:, 1], pairs_P2[:, 0]))
    image_P, caption_P = pairs_P2[order, 0], pairs_P2[order, 1]
    score_P = _pair_scores(images_ND, captions_MD, image_P, caption_P)
    norms = [float(np.sqrt(np.square(rows).sum(axis=1).max(initial=0))) for rows in (images_ND, captions_MD)]
    limit_P = (score_P - TIE * norms[0] * norms[1]).astype(np.float32)
    by_image_P, by_caption_P = _count_wrong(images_ND, captions_MD, image_P, caption_P, limit_P)
    ranks_P2 = np.empty((len(order), 2))
    ranks_P2[order, 0] = by_image_P + _places(image_P, score_P)
    ranks_P2[order, 1] = by_caption_P + _places(caption_P, score_P)
    return ranks_P2


def per_query(rank_P: FloatArray, query_P: IntArray, queries: int) -> dict[str, FloatArray]:
    """Measures of each query from the ranks of its right items; each is float64 [Q].

    The keys are `recall_at_K` and `true_recall_at_K` for K in `CURVE_AT`, `average_precision`,
    `ndcg_at_10`, `reciprocal_rank` and `best_rank`. Every query needs a right item.
    """
    right_Q = np.bincount(query_P, minlength=queries).astype(np.float64)
    best_Q = np.full(queries, np.inf)
    np.minimum.at(best_Q, query_P, rank_P)
    place_P = _places(query_P, -rank_P)

    def total(weight_P: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(query_P, weights=weight_P, minlength=queries), dtype=np.float64)

    ideal = np.cumsum(1 / np.log2(np.arange(NDCG_AT) + 2))
    gain_P = np.where(rank_P <= NDCG_AT, 1 / np.log2(rank_P + 1), 0.0)
    measures = {
        "best_rank": best_Q,
        "reciprocal_rank": 1 / best_Q,
        "average_precision": total(place_P / rank_P) / right_Q,
        f"ndcg_at_{NDCG_AT}": total(gain_P) / ideal[np.minimum(right_Q, NDCG_AT).astype(np.int64) - 1],
    }
    for k in CURVE_AT:
        measures[f"recall_at_{k}"] = (best_Q <= k).astype(np.float64)
        measures[f"true_recall_at_{k}"] = total((rank_P <= k).astype(np.float64)) / right_Q
    return measures


def _pair_scores(
    images_ND: Float32Array, captions_MD: Float32Array, image_P: IntArray, caption_P: IntArray
) -> FloatArray:
    score_P = np.empty(len(image_P))
    for start in range(0, len(image_P), 4096):
        part = slice(start, start + 4096)
        left = images_ND[image_P[part]].astype(np.float64)
        score_P[part] = np.einsum("pd,pd->p", left, captions_MD[caption_P[part]].astype(np.float64))
    return score_P


def _places(query_P: IntArray, score_P: FloatArray) -> FloatArray:
    """Each pair's place (from 1) among the pairs of its query, the highest score first."""
    order = np.lexsort((-score_P, query_P))
    grouped = query_P[order]
    first = np.searchsorted(grouped, grouped, side="left")
    place_P = np.empty(len(order))
    place_P[order] = np.arange(len(order)) - first + 1
    return place_P


def _count_wrong(
    images_ND: Float32Array,
    captions_MD: Float32Array,
    image_P: IntArray,
    caption_P: IntArray,
    limit_P: Float32Array,
) -> tuple[FloatArray, FloatArray]:
    """Wrong items that score at least each pair's limit, for the image and for the caption.

    `image_P` ascends. One product serves both sides: rows are counted as they come, columns add up over the
    blocks. Captions that many images bear are counted by a product of their own, sorted.
    """
    columns = _Columns(caption_P, limit_P, len(captions_MD))
    ordered_MD = captions_MD[columns.order]
    by_image_P = np.empty(len(image_P))
    by_caption_P = np.empty(len(image_P))
    block = np.empty((min(_BLOCK, len(images_ND)), len(captions_MD)), dtype=np.float32)
    for start in range(0, len(images_ND), _BLOCK):
        rows = images_ND[start : start + _BLOCK]
        scores = np.matmul(rows, ordered_MD.T, out=block[: len(rows)])
        first, last = np.searchsorted(image_P, (start, start + len(rows)))
        scores[image_P[first:last] - start, columns.position[caption_P[first:last]]] = -np.inf
        _count_rows(scores, image_P[first:last] - start, limit_P[first:last], by_image_P[first:last])
        columns.add(scores)
    columns.collect(by_caption_P)
    heavy = columns.heavy
    for start in range(0, len(heavy), _BLOCK):
        chosen = np.flatnonzero(np.isin(caption_P, heavy[start : start + _BLOCK]))
        chosen = chosen[np.argsort(caption_P[chosen], kind="stable")]
        row = np.searchsorted(heavy, caption_P[chosen]) - start
        scores = captions_MD[heavy[start : start + _BLOCK]] @ images_ND.T
        scores[row, image_P[chosen]] = -np.inf
        counts = np.empty(len(chosen))
        _count_rows(scores, row, limit_P[chosen], counts)
        by_caption_P[chosen] = counts
    return by_image_P, by_caption_P


def _count_rows(scores: Float32Array, row_P: IntArray, limit_P: Float32Array, out_P: FloatArray) -> None:
    """For each pair, the entries of its row of `scores` that are at least its limit. `row_P` ascends."""
    bounds = np.searchsorted(row_P, np.arange(len(scores) + 1))
    for row, (first, last) in enumerate(pairwise(bounds)):
        if last - first > _FEW:
            ascending = np.sort(scores[row])
            out_P[first:last] = len(ascending) - np.searchsorted(ascending, limit_P[first:last], side="left")
            continue
        for pair in range(first, last):
            out_P[pair] = np.count_nonzero(scores[row] >= limit_P[pair])


class _Columns:
    """Counts per caption over blocks of images, for the captions that at most `_FEW` images bear.

    Captions are put in the order of how many images bear them, so that those with a first, a second, ...
    right image are the first columns, and one comparison counts them all.
    """

    def __init__(self, caption_P: IntArray, limit_P: Float32Array, captions: int) -> None:
        bearers_M = np.bincount(caption_P, minlength=captions)
        self.heavy: IntArray = np.flatnonzero(bearers_M > _FEW)
        bearers_M[self.heavy] = 0
        self.order: IntArray = np.argsort(-bearers_M, kind="stable")
        self.position: IntArray = np.empty(captions, dtype=np.int64)
        self.position[self.order] = np.arange(captions)
        grouped = np.lexsort((np.arange(len(caption_P)), self.position[caption_P]))
        grouped = grouped[bearers_M[caption_P[grouped]] > 0]
        column = self.position[caption_P[grouped]]
        slot = np.arange(len(grouped)) - np.searchsorted(column, column, side="left")
        self._pairs = [grouped[slot == s] for s in range(bearers_M.max(initial=0))]
        self._limits = [limit_P[pairs] for pairs in self._pairs]
        self._counts = [np.zeros(len(pairs), dtype=np.int64) for pairs in self._pairs]

    def add(self, scores: Float32Array) -> None:
        for limit, count in zip(self._limits, self._counts, strict=True):
            above = scores[:, : len(limit)] >= limit
            count += np.add.reduce(above.view(np.uint8), axis=0, dtype=np.uint8)

    def collect(self, out_P: FloatArray) -> None:
        for pairs, count in zip(self._pairs, self._counts, strict=True):
            out_P[pairs] = count
