"""From a model's answers on a split to the numbers of each row, image and caption.

What comes out is the material of `polyweft.evaluation.confidence` (a part and a count per unit and metric),
the table of predictions, and examples to look at.

Shape suffixes: N rows, I unique images, M unique captions, P right pairs, U units, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.data.shards import Sample
from polyweft.evaluation.classification import confusion_matrix
from polyweft.evaluation.confidence import Rows
from polyweft.evaluation.embedding import Embedded, Items
from polyweft.evaluation.retrieval import CURVE_AT, per_query, rank_pairs

DIRECTIONS = ("image_to_text", "text_to_image")
_MEASURES = {
    "mean_average_precision": "average_precision",
    "ndcg_at_10": "ndcg_at_10",
    "mrr": "reciprocal_rank",
} | {name: name for k in CURVE_AT for name in (f"recall_at_{k}", f"true_recall_at_{k}")}
_EXAMPLES, _EXAMPLE_IMAGES = 8, 6


@dataclass(frozen=True)
class Example:
    """One caption's answer: the rows of the images ranked first, and which of them are right."""

    caption: str
    rank: int
    rows: list[int]
    right: list[bool]


@dataclass(frozen=True)
class Ranks:
    """Best ranks: of each image among the captions and of each caption among the images; 0 where none."""

    image_I: npt.NDArray[np.int64]
    caption_M: npt.NDArray[np.int64]


class SplitMeasures:
    """A split with the model's answers, from which metrics over any of its rows follow."""

    def __init__(
        self, samples: Sequence[Sample], items: Items, embedded: Embedded, classes: list[str]
    ) -> None:
        self._samples, self._items, self._embedded, self._classes = samples, items, embedded, classes
        alone = items.image_of_N < 0
        self._unit_N = np.where(alone, len(items.image_ids) + np.cumsum(alone) - 1, items.image_of_N)
        lonely = [f"row:{sample.id}" for sample, is_alone in zip(samples, alone, strict=True) if is_alone]
        self._unit_ids = np.array([f"image:{key}" for key in items.image_ids] + lonely)
        self._pairs_P3 = np.array(
            [
                (row, image, caption)
                for row, image in enumerate(items.image_of_N)
                for caption in items.captions_of[row]
                if image >= 0
            ],
            dtype=np.int64,
        ).reshape(-1, 3)

    def rows(self, keep_N: npt.NDArray[np.bool_]) -> tuple[Rows, Ranks]:
        """The material of `confidence` over the kept rows, as though the split held no others."""
        units, unit_N = np.unique(self._unit_N[keep_N], return_inverse=True)
        rows: Rows = {"unit_id": self._unit_ids[units]}
        label_N = np.array([s.label or "" if s.class_index >= 0 else "" for s in self._samples])
        chosen = (label_N[keep_N] != "") & self._embedded.classified_N[keep_N]
        if chosen.any():
            best_N = self._embedded.probabilities_NC[keep_N][chosen].argmax(axis=1)
            rows["row_id"] = np.array([sample.id for sample in self._samples])[keep_N][chosen]
            rows["row_unit"] = unit_N[chosen]
            rows["actual"] = label_N[keep_N][chosen]
            rows["predicted"] = np.array(self._classes)[best_N]
        return rows, self._retrieval(keep_N, units, rows)

    def _retrieval(self, keep_N: npt.NDArray[np.bool_], units: npt.NDArray[np.int64], rows: Rows) -> Ranks:
        """Add both directions' parts and counts by unit to `rows`."""
        image_ranks = np.zeros(len(self._items.image_ids), dtype=np.int64)
        caption_ranks = np.zeros(len(self._items.captions), dtype=np.int64)
        pairs_P2 = np.unique(self._pairs_P3[keep_N[self._pairs_P3[:, 0]], 1:], axis=0)
        if len(pairs_P2):
            images, image_P = np.unique(pairs_P2[:, 0], return_inverse=True)
            captions, caption_P = np.unique(pairs_P2[:, 1], return_inverse=True)
            ranks_P2 = rank_pairs(
                self._embedded.images_ID[images],
                self._embedded.captions_MD[captions],
                np.stack([image_P, caption_P], axis=1),
            )
            by_image = per_query(ranks_P2[:, 0], image_P, len(images))
            by_caption = per_query(ranks_P2[:, 1], caption_P, len(captions))
            # An image is the unit of its own number; `units` ascends.
            unit_P = np.searchsorted(units, images)[image_P]
            first_P = np.unique(image_P, return_index=True)[1]
            share_P = 1 / np.bincount(caption_P)[caption_P]
            self._add(rows, DIRECTIONS[0], by_image, unit_P[first_P], np.ones(len(images)), len(units))
            spread = {name: values[caption_P] for name, values in by_caption.items()}
            self._add(rows, DIRECTIONS[1], spread, unit_P, share_P, len(units))
            image_ranks[images] = by_image["best_rank"]
            caption_ranks[captions] = by_caption["best_rank"]
        return Ranks(image_ranks, caption_ranks)

    @staticmethod
    def _add(
        rows: Rows,
        direction: str,
        measures: dict[str, npt.NDArray[np.float64]],
        unit: npt.NDArray[np.int64],
        weight: npt.NDArray[np.float64],
        units: int,
    ) -> None:
        count_U = np.bincount(unit, weights=weight, minlength=units)
        for name, measure in _MEASURES.items():
            part_U = np.bincount(unit, weights=weight * measures[measure], minlength=units)
            rows[f"{direction}_{name}.part"], rows[f"{direction}_{name}.count"] = part_U, count_U

    def counts(self, rows: Rows) -> dict[str, int]:
        """How many rows, images, captions and classes the metrics are over."""
        counts: dict[str, int] = {
            "samples": len(self._samples),
            "leaks": sum(sample.leak for sample in self._samples),
            "classified_samples": len(rows.get("row_id", ())),
            "retrieval_images": len(np.unique(self._pairs_P3[:, 1])),
            "retrieval_captions": len(np.unique(self._pairs_P3[:, 2])),
            "samples_without_image": int(np.count_nonzero(self._items.image_of_N < 0)),
            "samples_without_caption": sum(not of for of in self._items.captions_of),
        }
        if "actual" in rows:
            counts["classes_in_split"] = len(np.unique(rows["actual"]))
        return counts

    def confusion(self, rows: Rows) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The classes that stand among the actual or predicted ones, sorted, and their confusion matrix."""
        if "actual" not in rows:
            return [], np.zeros((0, 0), dtype=np.int64)
        names = np.unique(np.concatenate([rows["actual"], rows["predicted"]]))
        actual, predicted = (np.searchsorted(names, rows[key]) for key in ("actual", "predicted"))
        return [str(name) for name in names], confusion_matrix(actual, predicted, len(names))

    def predictions(self, rows: Rows, ranks: Ranks) -> dict[str, list[Any]]:
        """The columns of `Evaluation.predictions`."""
        predicted = self._embedded.classified_N
        probabilities = self._embedded.probabilities_NC
        paired = np.isin(np.arange(len(self._samples)), self._pairs_P3[:, 0])
        items = self._items
        return {
            "id": [sample.id for sample in self._samples],
            "leak": [sample.leak for sample in self._samples],
            "label": [sample.label for sample in self._samples],
            "predicted": [
                self._classes[int(p.argmax())] if known else None
                for p, known in zip(probabilities, predicted, strict=True)
            ],
            "probability": [
                float(p.max()) if known else None for p, known in zip(probabilities, predicted, strict=True)
            ],
            "image_to_text_rank": [
                int(ranks.image_I[image]) if has else None
                for image, has in zip(items.image_of_N, paired, strict=True)
            ],
            "text_to_image_rank": [
                int(ranks.caption_M[of[0]]) if has else None
                for of, has in zip(items.captions_of, paired, strict=True)
            ],
        }

    def examples(self, ranks: Ranks) -> list[Example]:
        """A few captions spread over the split, with the images that each finds first."""
        captions = np.unique(self._pairs_P3[:, 2])
        images = np.unique(self._pairs_P3[:, 1])
        places = np.linspace(0, len(captions) - 1, min(_EXAMPLES, len(captions))).astype(np.int64)
        found = []
        for caption in captions[places]:
            scores = self._embedded.images_ID[images] @ self._embedded.captions_MD[caption]
            top = images[np.argsort(-scores, kind="stable")[:_EXAMPLE_IMAGES]]
            right = set(self._pairs_P3[self._pairs_P3[:, 2] == caption, 1])
            found.append(
                Example(
                    caption=self._items.captions[caption],
                    rank=int(ranks.caption_M[caption]),
                    rows=[self._items.image_rows[image] for image in top],
                    right=[image in right for image in top],
                )
            )
        return found
