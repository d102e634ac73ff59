"""Checks of captions and labels, one finding a row, with the reason in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyweft.data.pair_checks import (
    Finding,
    captions_empty,
    captions_repeated,
    findings_table,
    label_from_text,
    language,
    pairs_complete,
)


def row(name: str, *texts: str, language: str | None = "en", **columns: Any) -> dict[str, Any]:
    empty = {"image": None, "audio": None, "video": None, "graph": None, "label": None}
    captions = [{"text": text, "language": language} for text in texts]
    return {"id": name, **empty, "captions": captions, **columns}


def ids(found: list[Finding]) -> list[str]:
    return [finding.id for finding in found]


def test_a_row_without_what_is_required_is_incomplete() -> None:
    rows = [row("a", "x", image="k"), row("b", "x"), row("c", "\u200b ", image="k"), row("d")]
    found = pairs_complete(rows, ["image", "captions"])
    assert ids(found) == ["b", "c", "d"]
    assert found[2].detail == "has no image, captions"


def test_a_caption_of_nothing_but_invisible_signs_is_empty() -> None:
    found = captions_empty([row("a", "x", "\u200b\u00ad"), row("b", "x"), row("c", " http://x.y ")])
    assert ids(found) == ["a", "c"]
    assert found[0].detail == "1 of 2 captions hold no text"


def test_a_caption_on_many_rows_is_repeated_whatever_its_case_and_width() -> None:
    rows = [
        row("a", "A Cat"),
        row("b", "a cat"),
        row("c", "ａ  cat"),
        row("d", "a dog"),
        row("e", "a cat", "rare"),
    ]
    assert ids(captions_repeated(rows, 3)) == ["a", "b", "c"]  # `e` has a caption of its own
    assert captions_repeated(rows, 4) == []


@pytest.mark.parametrize(
    ("text", "named", "allowed", "right"),
    [
        ("a cat", "en", ["en"], True),
        ("un chat", "fr", ["en", "zh"], False),
        ("一只猫", "zh", ["en", "zh"], True),
        ("一只猫", "en", ["en", "zh"], False),
        ("a cat", "zh", ["en", "zh"], False),
        ("a cat", None, ["en"], True),
        ("一只猫", None, ["en"], False),
        ("", "fr", ["en"], True),
    ],
)
def test_language_is_held_against_the_list_and_the_script(
    text: str, named: str | None, allowed: list[str], right: bool
) -> None:
    assert (language([row("a", text, language=named)], allowed) == []) is right


def test_a_text_that_is_the_label_tells_it() -> None:
    rows = [row(str(i), f"a picture of a {'cat' if i % 2 else 'dog'}", label=f"l{i % 2}") for i in range(60)]
    told = label_from_text(rows, folds=5, seed=0)
    assert (told.lookup, told.classifier, told.chance) == (1.0, 1.0, 0.5)


def test_words_tell_the_label_even_where_no_text_comes_twice() -> None:
    rows = [row(str(i), f"number {i} {'cat' if i % 2 else 'dog'}", label=f"l{i % 2}") for i in range(60)]
    told = label_from_text(rows, folds=5, seed=0)
    assert told.classifier == 1.0
    assert told.lookup < 0.8


def test_a_text_that_has_nothing_to_do_with_the_label_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [row(str(i), f"word {rng.integers(20)}", label=f"l{rng.integers(4)}") for i in range(400)]
    assert label_from_text(rows, folds=5, seed=0).best < 0.4


def test_one_label_cannot_be_told() -> None:
    rows = [row(str(i), "text", label="only") for i in range(20)]
    assert label_from_text(rows, folds=5, seed=0).best == 0.0


def test_the_table_is_ordered_by_check_and_id() -> None:
    found = [Finding("b", "leaks", "x", "a", 0.0), Finding("a", "leaks", "x"), Finding("z", "language", "x")]
    assert findings_table(found).column("id").to_pylist() == ["z", "a", "b"]
