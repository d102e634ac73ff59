"""Checks of rows as pairs of modalities: complete, captioned, in the right language, not told by the text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polyweft.data.grams import canonical, grams, has_han, presence
from polyweft.modalities import MEDIA

_FIELDS: list[pa.Field[Any]] = [
    pa.field("id", pa.string(), nullable=False),
    pa.field("other_id", pa.string()),
    pa.field("check", pa.string(), nullable=False),
    pa.field("score", pa.float64()),
    pa.field("detail", pa.string(), nullable=False),
]
FINDINGS = pa.schema(_FIELDS)
"""What the checks found. `id` is `*` where the data as a whole is meant; `other_id` is the row that `id`
repeats; `score` is the check's own measure (a difference, a count, a probability)."""

WHOLE = "*"


@dataclass(frozen=True)
class Finding:
    """One line of the table of findings; `check` is the check's name in section `align`."""

    id: str
    check: str
    detail: str
    other_id: str | None = None
    score: float | None = None


def findings_table(found: Sequence[Finding]) -> pa.Table:
    """The findings as a table, ordered by check, id and other id."""
    rows = [
        {"id": f.id, "other_id": f.other_id, "check": f.check, "score": f.score, "detail": f.detail}
        for f in sorted(found, key=lambda f: (f.check, f.id, f.other_id or ""))
    ]
    return pa.Table.from_pylist(rows, schema=FINDINGS)


def pairs_complete(rows: Sequence[dict[str, Any]], required: Sequence[str]) -> list[Finding]:
    """Rows that lack one of `required` (media, `captions`, `label`); captions must hold a word."""
    found = []
    for row in rows:
        absent = [name for name in required if not _holds(row, name)]
        if absent:
            found.append(Finding(row["id"], "pairs_complete", f"has no {', '.join(absent)}"))
    return found


def captions_empty(rows: Sequence[dict[str, Any]]) -> list[Finding]:
    """Rows with a caption that holds nothing once it is cleaned."""
    found = []
    for row in rows:
        texts = [caption["text"] for caption in row["captions"]]
        empty = sum(not canonical(text) for text in texts)
        if empty:
            detail = f"{empty} of {len(texts)} captions hold no text"
            found.append(Finding(row["id"], "captions_empty", detail, score=float(empty)))
    return found


def captions_repeated(rows: Sequence[dict[str, Any]], max_rows: int) -> list[Finding]:
    """Rows all of whose captions stand on more than `max_rows` rows; `score` is on how many."""
    texts = [{canonical(caption["text"]) for caption in row["captions"]} - {""} for row in rows]
    bearers = Counter(text for held in texts for text in held)
    found = []
    for row, held in zip(rows, texts, strict=True):
        rarest = min(((bearers[text], text) for text in held), default=(0, ""))
        if rarest[0] > max_rows:
            detail = f"{_short(rarest[1])!r} is the caption of {rarest[0]} rows"
            found.append(Finding(row["id"], "captions_repeated", detail, score=float(rarest[0])))
    return found


def language(rows: Sequence[dict[str, Any]], allowed: Sequence[str]) -> list[Finding]:
    """Rows with a caption in a language that is not allowed, or in another script than its language's.

    A caption of unknown language is judged by its script alone where `allowed` has only one of English
    and Chinese.
    """
    found = []
    for row in rows:
        details = [
            detail for caption in row["captions"] if (detail := _language_fault(caption, allowed)) is not None
        ]
        if details:
            found.append(Finding(row["id"], "language", "; ".join(details), score=float(len(details))))
    return found


@dataclass(frozen=True)
class LabelFromText:
    """How well the captions alone tell the label, on rows that were not learned from.

    Attributes
    ----------
    lookup
        Accuracy of the commonest label of the rows with the very same captions.
    classifier
        Accuracy of naive Bayes over words and neighbouring words.
    chance
        Share of the commonest label.
    rows
        How many have both captions and a label.
    """

    lookup: float
    classifier: float
    chance: float
    rows: int

    @property
    def best(self) -> float:
        """The better of the two accuracies."""
        return max(self.lookup, self.classifier)


def label_from_text(rows: Sequence[dict[str, Any]], *, folds: int, seed: int) -> LabelFromText:
    """Cross-validate two ways of telling the label from the captions; all zero without two labels."""
    told = [row for row in rows if row["label"] is not None and _holds(row, "captions")]
    names = sorted({row["label"] for row in told})
    if len(names) < 2 or len(told) < 2 * folds:
        return LabelFromText(0.0, 0.0, 0.0, len(told))
    labels = np.array([names.index(row["label"]) for row in told])
    texts = [
        "\n".join(sorted({canonical(caption["text"]) for caption in row["captions"]} - {""})) for row in told
    ]
    words = presence([grams([c["text"] for c in row["captions"]]) for row in told], at_least=2, at_most=4096)
    fold_of = np.random.default_rng([seed, 32]).permutation(len(told)) % folds
    lookup, classifier = np.empty(len(told), np.int64), np.empty(len(told), np.int64)
    for fold in range(folds):
        learn, judge = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        common = int(np.bincount(labels[learn], minlength=len(names)).argmax())
        votes: dict[str, Counter[int]] = defaultdict(Counter)
        for place in learn:
            votes[texts[place]][int(labels[place])] += 1
        for place in judge:
            held = votes.get(texts[place])
            lookup[place] = min(held.items(), key=lambda v: (-v[1], v[0]))[0] if held else common
        classifier[judge] = _naive_bayes(words[learn], labels[learn], words[judge], len(names))
    chance = np.bincount(labels).max() / len(labels)
    return LabelFromText(
        float((lookup == labels).mean()), float((classifier == labels).mean()), float(chance), len(told)
    )


def _naive_bayes(
    words: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64], judged: npt.NDArray[np.bool_], classes: int
) -> npt.NDArray[np.int64]:
    """Multinomial naive Bayes with add-0.1 smoothing (Manning et al., "Introduction to IR", 13.2)."""
    one_hot = np.eye(classes, dtype=np.float32)[labels]
    counts = one_hot.T @ words.astype(np.float32) + np.float32(0.1)
    likelihood = np.log(counts / counts.sum(axis=1, keepdims=True))
    prior = np.log(one_hot.sum(axis=0) + np.float32(1e-6))
    best: npt.NDArray[np.int64] = (judged.astype(np.float32) @ likelihood.T + prior).argmax(axis=1)
    return best


def _holds(row: dict[str, Any], name: str) -> bool:
    if name == "captions":
        return any(canonical(caption["text"]) for caption in row["captions"])
    return bool(row[name]) if name in MEDIA else row[name] is not None


def _language_fault(caption: dict[str, Any], allowed: Sequence[str]) -> str | None:
    text, named = caption["text"], caption["language"]
    if not canonical(text):
        return None
    if named is not None and named not in allowed:
        return f"{_short(text)!r} is in {named}, allowed are {', '.join(allowed)}"
    if named == "en" and has_han(text):
        return f"{_short(text)!r} is said to be English and holds Chinese characters"
    if named == "zh" and not has_han(text):
        return f"{_short(text)!r} is said to be Chinese and holds no Chinese character"
    if named is None and has_han(text) and "zh" not in allowed:
        return f"{_short(text)!r} holds Chinese characters, allowed are {', '.join(allowed)}"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
