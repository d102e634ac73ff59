"""From a model's embeddings of a split to the ranks of each content, in every direction between modalities.

What comes out is the material of `polyweft.evaluation.confidence` (a part and a count per unit and metric),
the columns of the table of predictions, and examples to look at.

Right answers to a query are the contents of the other modality that any row bears together with it.

Shape suffixes: N rows, I unique contents of a modality, P right pairs, T rows' right pairs, U units,
Q queries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from polyweft.data.shards import Sample
from polyweft.evaluation.embedding import BoolArray, Contents, IntArray
from polyweft.evaluation.retrieval import CURVE_AT, per_query, rank_pairs
from polyweft.evaluation.weighted import Rows
from polyweft.modalities import MEDIA
from polyweft.models.predictor import FloatArray

_MEASURES = {
    "mean_average_precision": "average_precision",
    "ndcg_at_10": "ndcg_at_10",
    "mrr": "reciprocal_rank",
} | {name: name for k in CURVE_AT for name in (f"recall_at_{k}", f"true_recall_at_{k}")}
_EXAMPLES, _EXAMPLE_ANSWERS = 8, 6

Ranks = dict[str, IntArray]
"""By direction (`text_to_image`): the best rank of each content of the first modality; 0 where none."""


@dataclass(frozen=True)
class Units:
    """What is resampled: contents of the first medium that a row has, or the row where it has none.

    Attributes
    ----------
    of_rows_N
        Each row's unit.
    ids
        `image:<SHA-256>`, `audio:<SHA-256>`, ..., `row:<id>`.
    """

    of_rows_N: IntArray
    ids: npt.NDArray[np.str_]

    def of(self, keep_N: BoolArray) -> tuple[npt.NDArray[np.str_], IntArray]:
        """The ids of the kept rows' units, and of each row the place among them (0 in rows not kept)."""
        chosen, place = np.unique(self.of_rows_N[keep_N], return_inverse=True)
        unit_N = np.zeros(len(keep_N), dtype=np.int64)
        unit_N[keep_N] = place
        return self.ids[chosen], unit_N


def find_units(samples: Sequence[Sample]) -> Units:
    """The units of `samples`, which depend on them alone and on no model; images come first."""
    names = [_unit(sample) for sample in samples]
    order = [f"{medium}:" for medium in (*MEDIA, "row")]
    unique = sorted(dict.fromkeys(names), key=lambda name: order.index(name[: name.index(":") + 1]))
    place = {name: i for i, name in enumerate(unique)}
    return Units(np.array([place[name] for name in names], dtype=np.int64), np.array(unique))


def _unit(sample: Sample) -> str:
    for medium in MEDIA:
        content = sample.contents(medium)
        if content is not None:
            return f"{medium}:{hashlib.sha256(content).hexdigest()}"
    return f"row:{sample.id}"


@dataclass(frozen=True)
class Example:
    """One caption's answer: the rows of the contents ranked first, and which of them are right."""

    caption: str
    modality: str
    rank: int
    rows: list[int]
    right: list[bool]


class Retrieval:
    """A split's embeddings, from which retrieval metrics over any of its rows follow."""

    def __init__(self, contents: Mapping[str, Contents], embeddings: Mapping[str, FloatArray]) -> None:
        self._contents, self._embeddings = contents, embeddings
        joined = [name for name, vectors in embeddings.items() if vectors.shape[1]]
        triples = {(a, b): _triples(contents[a], contents[b]) for a, b in combinations(joined, 2)}
        self._triples = {names: found for names, found in triples.items() if len(found)}

    @property
    def directions(self) -> list[str]:
        """Such as `image_to_text`: those between modalities that some row has both of."""
        return [name for a, b in self._triples for name in (f"{a}_to_{b}", f"{b}_to_{a}")]

    def rows(self, keep_N: BoolArray, unit_N: IntArray, units: int) -> tuple[Rows, Ranks]:
        """Each direction's parts and counts by unit over the kept rows, as though there were no others."""
        rows: Rows = {}
        ranks: Ranks = {}
        for (a, b), triples_T3 in self._triples.items():
            kept_T3 = triples_T3[keep_N[triples_T3[:, 0]]]
            if not len(kept_T3):
                continue
            pairs_P2 = np.unique(kept_T3[:, 1:], axis=0)
            items = [np.unique(pairs_P2[:, side], return_inverse=True) for side in (0, 1)]
            ranks_P2 = rank_pairs(
                self._embeddings[a][items[0][0]],
                self._embeddings[b][items[1][0]],
                np.stack([items[0][1], items[1][1]], axis=1),
            )
            for side, (query, other) in enumerate(((a, b), (b, a))):
                found_Q, query_P = items[side]
                measures = per_query(ranks_P2[:, side], query_P, len(found_Q))
                ranks[f"{query}_to_{other}"] = np.zeros(len(self._contents[query].contents), dtype=np.int64)
                ranks[f"{query}_to_{other}"][found_Q] = measures["best_rank"]
                query_T = np.searchsorted(found_Q, kept_T3[:, 1 + side])
                borne = np.unique(np.stack([query_T, unit_N[kept_T3[:, 0]]], axis=1), axis=0)
                rows |= _by_unit(f"{query}_to_{other}", measures, borne, units)
        return rows, ranks

    def counts(self) -> dict[str, int]:
        """How many contents of each modality are queries in some direction."""
        found: dict[str, set[int]] = {}
        for names, triples_T3 in self._triples.items():
            for side, name in enumerate(names):
                found.setdefault(name, set()).update(triples_T3[:, 1 + side].tolist())
        return {f"retrieval_{plural(name)}": len(items) for name, items in found.items()}

    def predictions(self, ranks: Ranks) -> dict[str, list[int | None]]:
        """`<direction>_rank` by row, of its first content; None where the row lacks one of the two."""
        table: dict[str, list[int | None]] = {}
        for (a, b), triples_T3 in self._triples.items():
            paired = set(triples_T3[:, 0].tolist())
            for query, other in ((a, b), (b, a)):
                rank = ranks[f"{query}_to_{other}"]
                table[f"{query}_to_{other}_rank"] = [
                    int(rank[item]) if row in paired else None
                    for row, item in enumerate(self._contents[query].first_N)
                ]
        return table

    def examples(self, ranks: Ranks) -> list[Example]:
        """A few captions spread over the split, with what each finds first of one other modality."""
        directions = [names for names in self._triples if "text" in names]
        if not directions:
            return []
        other = next(name for name in directions[0] if name != "text")
        text_T, other_T = (
            self._triples[directions[0]][:, 1 + directions[0].index(m)] for m in ("text", other)
        )
        captions, gallery = np.unique(text_T), np.unique(other_T)
        places = np.linspace(0, len(captions) - 1, min(_EXAMPLES, len(captions))).astype(np.int64)
        found = []
        for caption in captions[places]:
            scores = self._embeddings[other][gallery] @ self._embeddings["text"][caption]
            top = gallery[np.argsort(-scores, kind="stable")[:_EXAMPLE_ANSWERS]]
            right = set(other_T[text_T == caption])
            found.append(
                Example(
                    caption=self._contents["text"].text(caption),
                    modality=other,
                    rank=int(ranks[f"text_to_{other}"][caption]),
                    rows=[self._contents[other].first_rows[item] for item in top],
                    right=[item in right for item in top],
                )
            )
        return found


def plural(modality: str) -> str:
    """As in the names of counts: images, captions, audio."""
    return {"image": "images", "text": "captions", "video": "videos", "graph": "graphs"}.get(
        modality, modality
    )


def _triples(first: Contents, second: Contents) -> IntArray:
    """Row, content and content of each pair that a row bears: int64 [T, 3]."""
    return np.array(
        [
            (row, a, b)
            for row, (of_a, of_b) in enumerate(zip(first.of_rows, second.of_rows, strict=True))
            for a in of_a
            for b in of_b
        ],
        dtype=np.int64,
    ).reshape(-1, 3)


def _by_unit(
    direction: str, measures: Mapping[str, npt.NDArray[np.float64]], borne: IntArray, units: int
) -> Rows:
    """Parts and counts by unit; a query's value is split evenly over the units that bear it."""
    query, unit = borne.T
    share = 1 / np.bincount(query)[query]
    count_U = np.bincount(unit, weights=share, minlength=units)
    rows: Rows = {}
    for name, measure in _MEASURES.items():
        part_U = np.bincount(unit, weights=share * measures[measure][query], minlength=units)
        rows[f"{direction}_{name}.part"], rows[f"{direction}_{name}.count"] = part_U, count_U
    return rows
