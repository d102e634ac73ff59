"""What can be learnt of an aligned manifest: rows that hold something, cleaned captions, labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from polyweft.data.records import SPLITS
from polyweft.data.text import clean
from polyweft.errors import DataError
from polyweft.modalities import MEDIA

DROPPED = ("captions_empty", "captions_repeated", "captions_other_language", "rows_without_content")


@dataclass(frozen=True)
class UsableRows:
    """Rows that hold something, their cleaned captions, and what was dropped on the way, by reason."""

    table: pa.Table
    rows: list[dict[str, Any]]
    captions: list[list[dict[str, str | None]]]
    dropped: Counter[str]


def usable_rows(table: pa.Table, languages: list[str] | None) -> UsableRows:
    """Clean the captions of a manifest, and leave out rows that then hold nothing.

    Parameters
    ----------
    languages
        Captions of these and of unknown language stay; None: all.

    Raises
    ------
    DataError
        There were captions and none is left, or no row holds anything.
    """
    dropped: Counter[str] = Counter()
    rows, captions, kept = [], [], []
    for number, row in enumerate(table.to_pylist()):
        texts = _clean_captions(row["captions"], languages, dropped)
        if texts or any(row[name] is not None for name in MEDIA):
            rows.append(row)
            captions.append(texts)
            kept.append(number)
        else:
            dropped["rows_without_content"] += 1
    emptied = sum(dropped[name] for name in ("captions_empty", "captions_other_language"))
    if emptied and not any(captions):
        raise DataError(
            f"all {emptied} captions are empty after cleaning and keeping {languages or 'all'} languages. "
            "Correct the source's text column in `ingest.columns`, widen prepare.languages, or set the text "
            "column to null to train without text."
        )
    if not rows:
        raise DataError(f"none of the {table.num_rows} rows holds a caption or a medium. Correct `ingest`.")
    return UsableRows(table.take(kept), rows, captions, dropped)


def _clean_captions(
    captions: list[dict[str, str | None]], languages: list[str] | None, dropped: Counter[str]
) -> list[dict[str, str | None]]:
    kept: dict[str, dict[str, str | None]] = {}
    for caption in captions:
        text, language = clean(caption["text"] or ""), caption["language"]
        if not text:
            dropped["captions_empty"] += 1
        elif languages is not None and language is not None and language not in languages:
            dropped["captions_other_language"] += 1
        elif text in kept:
            dropped["captions_repeated"] += 1
        else:
            kept[text] = {"text": text, "language": language}
    return list(kept.values())


def class_names(rows: list[dict[str, Any]]) -> list[str]:
    """The labels that exclude each other, sorted; a single one is a `DataError`."""
    classes = sorted({row["label"] for row in rows} - {None})
    if len(classes) == 1:
        raise DataError(
            f"every labelled row has the one label {classes[0]!r}; a classifier needs two classes at least. "
            "Name another label column in `ingest`, or none at all to train on image-text pairs alone."
        )
    return classes


def unseen_labels(rows: list[dict[str, Any]], order: dict[str, list[int]]) -> list[str]:
    """Labels, exclusive or not, that rows of validation or test bear and no row of train."""
    borne = {
        split: {name for n in numbers for name in (rows[n]["label"], *rows[n]["labels"]) if name is not None}
        for split, numbers in order.items()
    }
    return sorted(set().union(*(borne[split] for split in SPLITS[1:])) - borne["train"])
