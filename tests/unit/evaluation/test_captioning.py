"""A model that writes captions is scored on what it writes, image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyweft.data.reader import Reader
from polyweft.data.shards import Sample
from polyweft.errors import DataError
from polyweft.evaluation.confidence import paired_difference
from polyweft.evaluation.evaluator import evaluate_split
from polyweft.evaluation.report import page
from polyweft.models.predictor import FloatArray, IntArray
from tests.unit.evaluation.table_model import TableModel, params, readers, sample

WORDS = ["a", "red", "green", "blue", "square", "circle", "stands", "here", "now"]
SENTENCES = [
    "a red square stands here",
    "a green circle stands here now",
    "a blue square stands now here",
    "a red circle stands here now",
]


class Alphabet:
    """A tokenizer over `WORDS`; ids below three are padding, start and end."""

    pad_id, start_id, end_id = 0, 1, 2

    def decode(self, ids: Any) -> str:
        return " ".join(WORDS[i - 3] for i in ids)


class Writer(TableModel):
    """Says of image n what `said[n]` has, a word at a time."""

    generates = True

    def __init__(self, words: dict[str, Reader], said: list[str]) -> None:
        super().__init__(words, np.eye(len(said), dtype=np.float32), {})
        reader = words["text"]
        self.readers = {**self.readers, "text": reader}
        self.said = [[WORDS.index(word) + 3 for word in text.split()] + [2] for text in said]
        reader.tokenizer.decode = Alphabet().decode  # type: ignore[attr-defined]

    def decode(self, input_ids_BT: IntArray, image_features_BLF: FloatArray) -> FloatArray:
        images = image_features_BLF.argmax(axis=1)
        logits = np.full((*input_ids_BT.shape, len(WORDS) + 3), -9.0, np.float32)
        for row, image in enumerate(images):
            for place in range(input_ids_BT.shape[1]):
                said = self.said[image]
                logits[row, place, said[min(place, len(said) - 1)]] = 9.0
        return logits


@pytest.fixture
def words(tmp_path: Path) -> dict[str, Reader]:
    return readers(tmp_path)


def rows() -> list[Sample]:
    made = [sample(i, i, [text, f"{text} now"]) for i, text in enumerate(SENTENCES)]
    return [*made, sample(10, 0, ["a red circle"]), sample(11, None, ["a"]), sample(12, 2, [])]


def test_the_right_words_score_one_and_wrong_ones_nothing(words: dict[str, Reader]) -> None:
    right = evaluate_split(Writer(words, SENTENCES), rows(), params(), seed=0)
    wrong = evaluate_split(Writer(words, ["now"] * 4), rows(), params(), seed=0)
    assert right.metrics["bleu_4"] == right.metrics["rouge_l"] == pytest.approx(1.0)
    assert right.metrics["cider"] > 5 > wrong.metrics["cider"]
    assert wrong.metrics["bleu_4"] < 0.1
    difference, low, _ = paired_difference(right.rows, wrong.rows, "bleu_4", samples=100, seed=0)
    assert difference == pytest.approx(right.metrics["bleu_4"] - wrong.metrics["bleu_4"])
    assert low > 0.5


def test_each_image_is_described_once_and_against_all_its_captions(words: dict[str, Reader]) -> None:
    found = evaluate_split(Writer(words, SENTENCES), rows(), params(), seed=0)
    assert [one.caption for one in found.captions] == SENTENCES
    assert found.captions[0].references == [SENTENCES[0], f"{SENTENCES[0]} now", "a red circle"]
    assert found.predictions["generated"] == [*SENTENCES, SENTENCES[0], None, None]
    assert found.rows["rouge_l.count"].sum() == 4


def test_an_interval_spans_images_that_are_described_well_and_badly(words: dict[str, Reader]) -> None:
    half = [*SENTENCES[:2], "now", "here"]
    found = evaluate_split(Writer(words, half), rows(), params(), seed=0).metrics
    for name in ("bleu_4", "rouge_l", "cider"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"], name


def test_a_tokenizer_that_cannot_be_read_back_is_an_error_of_the_data(words: dict[str, Reader]) -> None:
    writer = Writer(words, SENTENCES)
    del words["text"].tokenizer.decode  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="bpe or clip"):
        evaluate_split(writer, rows(), params(), seed=0)


def test_the_page_shows_what_is_written_beside_what_was_given(words: dict[str, Reader]) -> None:
    html = page(evaluate_split(Writer(words, SENTENCES), rows(), params(), seed=0), rows(), split="test")
    assert "What it writes" in html
    assert f"<li>{SENTENCES[0]} now" in html
