"""A split with all that a model makes of it, from which metrics over any of its rows follow.

Shape suffixes: N rows, C classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from polyweft.data.shards import Sample
from polyweft.evaluation.captioning import Captioned, caption_images, caption_rows
from polyweft.evaluation.embedding import Answers, BoolArray, answer, embed, unique_contents
from polyweft.evaluation.measures import Ranks, Retrieval, find_units
from polyweft.evaluation.missing import Removal, removals
from polyweft.evaluation.tasks import predictions, task_rows
from polyweft.evaluation.weighted import Rows
from polyweft.evaluation.zero_shot import class_vectors, zero_shot_rows
from polyweft.models.predictor import FloatArray, Predictor


class Split:
    """The model is asked once, when this is made; see `evaluate_split` for what is raised.

    Attributes
    ----------
    retrieval
        Ranks between modalities.
    captions
        Generated ones, where the model writes any.
    """

    def __init__(
        self,
        predictor: Predictor,
        samples: Sequence[Sample],
        *,
        languages: list[str] | None,
        caption_choice: Literal["all", "first"],
        templates: Sequence[str],
        batch_size: int,
    ) -> None:
        self._predictor, self._samples, self._batch_size = predictor, samples, batch_size
        self._units = find_units(samples)
        self._contents = {
            name: unique_contents(samples, name, languages=languages, caption_choice=caption_choice)
            for name in predictor.modalities
        }
        self._embedded = embed(predictor, samples, self._contents, batch_size=batch_size)
        self.retrieval = Retrieval(self._contents, self._embedded.embeddings)
        self._answers = self._ask(None, None)
        self._vectors_CD: FloatArray | None = None
        told_by_name = "text" in predictor.modalities and len(predictor.classes) > 1
        if templates and predictor.embedding_size and told_by_name:
            self._vectors_CD = class_vectors(predictor, templates)
        self.captions: list[Captioned] = []
        if predictor.generates:
            features = self._embedded.features["image"]
            self.captions = caption_images(predictor, self._contents, features, batch_size=batch_size)

    def _ask(self, without: str | None, impute: bool | None) -> Answers:
        if not self._predictor.outputs:
            return Answers({}, np.zeros(len(self._samples), dtype=bool))
        return answer(
            self._predictor,
            self._contents,
            self._embedded.features,
            batch_size=self._batch_size,
            without=without,
            impute=impute,
        )

    def rows(self, keep_N: BoolArray) -> tuple[Rows, Ranks]:
        """The material of `confidence` over the kept rows, as though the split held no others."""
        ids, unit_N = self._units.of(keep_N)
        rows: Rows = {"unit_id": ids}
        rows |= task_rows(self._predictor, self._samples, self._answers, keep_N, unit_N)
        found, ranks = self.retrieval.rows(keep_N, unit_N, len(ids))
        rows |= found
        if self._vectors_CD is not None:
            embeddings = self._embedded.embeddings
            told = (self._predictor, self._samples, self._contents, embeddings, self._vectors_CD)
            rows |= zero_shot_rows(*told, keep_N, unit_N, len(ids))
        rows |= caption_rows(self.captions, keep_N, unit_N, len(ids))
        return rows, ranks

    def removals(self, keep_N: BoolArray, *, bootstrap_samples: int, seed: int) -> list[Removal]:
        """Each task without each modality that the head sees, over the rows that are kept."""
        has = {name: (contents.first_N >= 0) & keep_N for name, contents in self._contents.items()}

        def rows(answers: Answers, keep_N: BoolArray) -> Rows:
            ids, unit_N = self._units.of(keep_N)
            return {"unit_id": ids, **task_rows(self._predictor, self._samples, answers, keep_N, unit_N)}

        return removals(
            self._predictor,
            has,
            self._answers,
            ask=self._ask,
            rows=rows,
            bootstrap_samples=bootstrap_samples,
            seed=seed,
        )

    def counts(self, rows: Rows) -> dict[str, int]:
        """How many rows, contents and classes the metrics are over."""
        counts: dict[str, int] = {
            "samples": len(self._samples),
            "leaks": sum(sample.leak for sample in self._samples),
            "classified_samples": len(rows.get("row_id", ())),
        }
        for key, name in (("label_row_id", "labelled_samples"), ("value_row_id", "valued_samples")):
            if key in rows:
                counts[name] = len(rows[key])
        counts |= self.retrieval.counts()
        for name, contents in self._contents.items():
            one = "caption" if name == "text" else name
            counts[f"samples_without_{one}"] = sum(not of for of in contents.of_rows)
        if "actual" in rows:
            counts["classes_in_split"] = len(np.unique(rows["actual"]))
        return counts

    def predictions(self, ranks: Ranks) -> dict[str, list[Any]]:
        """The columns of `Evaluation.predictions`."""
        written: list[str | None] = [None] * len(self._samples)
        for one in self.captions:
            for row in one.rows:
                written[row] = one.caption
        return {
            "id": [sample.id for sample in self._samples],
            "leak": [sample.leak for sample in self._samples],
            **predictions(self._predictor, self._samples, self._answers),
            **({"generated": written} if self.captions else {}),
            **self.retrieval.predictions(ranks),
        }
