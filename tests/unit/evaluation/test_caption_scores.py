"""Caption metrics: their ends, their laws, and BLEU from statistics against sacrebleu's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.errors import DataError
from polyweft.evaluation.generation import bleu, caption_scores, score_captions, tokens

REFERENCES = [
    ["a small red circle on a white field", "one red circle, white behind it"],
    ["two blue squares stand above a line"],
    ["a yellow star shines over the quiet sea"],
]


def test_the_reference_itself_scores_highest_and_other_words_nothing() -> None:
    perfect = caption_scores([texts[0] for texts in REFERENCES], REFERENCES)
    assert perfect["bleu_4"] == pytest.approx(1.0)
    assert perfect["rouge_l"] == pytest.approx(1.0)
    assert perfect["cider"] > 5
    none = caption_scores(["nothing matches here at all"] * 3, REFERENCES)
    assert none == {"bleu_4": 0.0, "rouge_l": 0.0, "cider": 0.0}


def test_case_and_full_stops_do_not_count_for_rouge_and_cider() -> None:
    plain = caption_scores(["a red circle on a field", "two squares", "a star"], REFERENCES)
    loud = caption_scores(["A Red circle, on a FIELD!", "Two squares", "a STAR"], REFERENCES)
    assert (plain["rouge_l"], plain["cider"]) == (loud["rouge_l"], loud["cider"])


def test_chinese_is_compared_by_character() -> None:
    references = [["一个红色的圆形在白色背景上"], ["两个蓝色的方块"], ["海上的黄色星星"]]
    near = caption_scores(["一个红色的圆形在黑色背景上", "两个蓝色的方块", "海上的星星"], references)
    assert 0.5 < near["bleu_4"] < 1.0
    assert 0.8 < near["rouge_l"] < 1.0
    assert near["cider"] > 1.0
    assert caption_scores(["完全不同", "别的东西", "没有关联"], references)["cider"] == 0.0
    assert tokens("红色 circle在3D里!") == ["红", "色", "circle", "在", "3d", "里"]


def test_rouge_takes_the_reference_that_fits_best() -> None:
    scores = score_captions(["one red circle"], [["two blue squares", "one red circle"]])
    assert scores.rouge_l_N.tolist() == [1.0]
    # Longest common subsequence "red circle": precision 2/3, recall 2/4.
    assert score_captions(["red big circle"], [["the red plain circle"]]).rouge_l_N[0] == pytest.approx(4 / 7)


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "红", "e f"]), max_size=9).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(pairs=st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_bleu_of_summed_statistics_is_that_of_sacrebleu(pairs: list[tuple[str, list[str]]]) -> None:
    from sacrebleu.metrics.bleu import BLEU

    candidates, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    ours = score_captions(candidates, references)
    chinese = any("红" in text for texts in references for text in texts)
    metric = BLEU(lowercase=True, tokenize="zh" if chinese else "13a")
    most = max(map(len, references))
    streams = [[texts[min(n, len(texts) - 1)] for texts in references] for n in range(most)]
    assert ours.means()["bleu_4"] == pytest.approx(metric.corpus_score(candidates, streams).score / 100)
    assert (ours.rouge_l_N >= 0).all()
    assert (ours.rouge_l_N <= 1).all()
    assert np.isfinite(ours.cider_N).all()


def test_weights_of_statistics_count_like_repetitions() -> None:
    scores = score_captions(["a small red circle on a field", "two blue dots", "a star"], REFERENCES)
    once, twice = scores.bleu_statistics_NX, scores.bleu_statistics_NX[[0, 0, 1, 2]]
    np.testing.assert_allclose(bleu(np.array([[2.0, 1.0, 1.0]]) @ once), bleu(twice.sum(axis=0)[None]))


@pytest.mark.parametrize(
    ("candidates", "references"), [([], []), (["a"], []), (["a"], [[]]), (["a", "b"], [["a"]])]
)
def test_samples_without_a_caption_or_a_reference_are_refused(
    candidates: list[str], references: list[list[str]]
) -> None:
    with pytest.raises(DataError, match="one caption and at least one reference"):
        score_captions(candidates, references)


def test_references_without_a_word_score_nothing() -> None:
    assert caption_scores(["!", ""], [["?"], ["..."]])["cider"] == 0.0
