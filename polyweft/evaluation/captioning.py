"""Generated captions against an image's own: BLEU-4, ROUGE-L and CIDEr, as `evaluation.generation` has them.

Every unique image that some row bears with a caption is described once, as the model's own settings say
(greedy where it has none), and scored against all captions that stand with it.

Shape suffixes: N rows, U units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.data.text import TokenizerError
from polyweft.errors import DataError
from polyweft.evaluation.embedding import BoolArray, Contents, IntArray
from polyweft.evaluation.generation import score_captions
from polyweft.evaluation.weighted import Rows
from polyweft.models.predictor import FloatArray, Predictor


@dataclass(frozen=True)
class Captioned:
    """One image's generated caption, the captions that stand with it, and the rows that bear it."""

    caption: str
    references: list[str]
    rows: list[int]


def caption_images(
    predictor: Predictor,
    contents: Mapping[str, Contents],
    image_features: FloatArray,
    *,
    batch_size: int,
) -> list[Captioned]:
    """Describe each unique image that has a caption.

    Raises
    ------
    DataError
        The data's tokenizer cannot turn ids back into text.
    """
    from polyweft.export.captions import captions

    settings: dict[str, Any] = predictor.generation or {}
    rows_of: dict[int, list[int]] = {}
    texts_of: dict[int, dict[str, None]] = {}
    for row, (images, texts) in enumerate(
        zip(contents["image"].of_rows, contents["text"].of_rows, strict=True)
    ):
        for image in images if texts else []:
            rows_of.setdefault(image, []).append(row)
            found = texts_of.setdefault(image, {})
            found.update(dict.fromkeys(contents["text"].text(text) for text in texts))
    chosen = sorted(rows_of)
    written: list[str] = []
    try:
        for start in range(0, len(chosen), batch_size):
            written += captions(predictor, image_features[chosen[start : start + batch_size]], settings)
    except TokenizerError as error:
        raise DataError(f"captions cannot be written: {error}") from error
    return [
        Captioned(caption, list(texts_of[image]), rows_of[image])
        for image, caption in zip(chosen, written, strict=True)
    ]


def caption_rows(captioned: Sequence[Captioned], keep_N: BoolArray, unit_N: IntArray, units: int) -> Rows:
    """The kept images' scores by unit: parts and counts of `rouge_l` and `cider`, and BLEU's statistics."""
    kept = [one for one in captioned if keep_N[one.rows].any()]
    if not kept:
        return {}
    unit = np.array([unit_N[next(row for row in one.rows if keep_N[row])] for one in kept])
    scores = score_captions([one.caption for one in kept], [one.references for one in kept])

    def by_unit(values: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
        return np.bincount(unit, weights=values, minlength=units).astype(np.float64)

    statistics_UX = np.stack([by_unit(column) for column in scores.bleu_statistics_NX.T], axis=1)
    return {
        "rouge_l.part": by_unit(scores.rouge_l_N),
        "rouge_l.count": by_unit(None),
        "cider.part": by_unit(scores.cider_N),
        "cider.count": by_unit(None),
        "bleu_statistics": statistics_UX,
    }
