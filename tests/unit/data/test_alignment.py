"""The score of pairs finds swapped captions, says when it knows nothing, and gives the same again."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from polyweft.data.alignment import MismatchParams, PairScores, Pixels, _separation, score_pairs
from polyweft.data.fault_scores import average_precision
from polyweft.data.grams import grams, has_han, presence

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (40, 60, 220), "white": (245, 245, 245)}
HAN = dict(zip(COLOURS, "红绿蓝白", strict=True))
PARAMS = MismatchParams(epochs=6, batch=32, width=8, word_rows=2, expected_fraction=0.05)


def squares(count: int, seed: int) -> tuple[Pixels, list[list[str]]]:
    """Pictures of a left and a right square, and captions that name their colours."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (count, 32, 32, 3)).astype(np.uint8)
    captions = []
    pairs = list(itertools.permutations(COLOURS, 2))
    for row in range(count):
        left, right = pairs[int(rng.integers(len(pairs)))]
        y = rng.integers(2, 16, 2)
        pixels[row, y[0] : y[0] + 12, 2:14] = COLOURS[left]
        pixels[row, y[1] : y[1] + 12, 18:30] = COLOURS[right]
        captions.append([f"a {left} square beside a {right} one", f"{HAN[left]}色在{HAN[right]}色旁边"])
    return pixels, captions


@pytest.fixture(scope="module")
def swapped() -> tuple[Pixels, list[list[str]], np.ndarray]:
    pixels, captions = squares(400, 1)
    wrong = np.zeros(400, dtype=bool)
    for one, two in ((0, 200), (10, 250), (20, 300), (30, 350), (40, 390)):
        if captions[one] != captions[two]:
            captions[one], captions[two] = captions[two], captions[one]
            wrong[[one, two]] = True
    assert wrong.sum() >= 6
    return pixels, captions, wrong


@pytest.fixture(scope="module")
def answer(swapped: tuple[Pixels, list[list[str]], np.ndarray]) -> PairScores:
    return score_pairs(swapped[0], swapped[1], PARAMS, seed=3, threads=2)


def test_swapped_captions_come_first(
    swapped: tuple[Pixels, list[list[str]], np.ndarray], answer: PairScores
) -> None:
    assert average_precision(swapped[2], answer.scores) > 0.8
    assert answer.separation > 0.9
    named = answer.named(PARAMS)
    assert named
    assert swapped[2][named].mean() > 0.7


def test_the_same_again_whatever_the_threads(
    swapped: tuple[Pixels, list[list[str]], np.ndarray], answer: PairScores
) -> None:
    again = score_pairs(swapped[0], swapped[1], PARAMS, seed=3, threads=1)
    assert again.scores.tobytes() == answer.scores.tobytes()


def test_captions_that_tell_nothing_of_the_picture_name_no_row() -> None:
    pixels, _ = squares(120, 2)
    rng = np.random.default_rng(0)
    words = ["stone", "river", "cloud", "apple"]
    captions = [[" ".join(rng.choice(words, 2))] for _ in range(120)]
    params = PARAMS.model_copy(update={"epochs": 2})
    found = score_pairs(pixels, captions, params, seed=3, threads=2)
    assert found.separation < params.min_separation
    assert found.named(params) == []


def test_rows_without_a_known_word_are_not_scored() -> None:
    pixels, captions = squares(60, 4)
    captions[7] = ["unheard-of"]
    found = score_pairs(pixels, captions, PARAMS.model_copy(update={"epochs": 1}), seed=3, threads=2)
    assert np.flatnonzero(np.isnan(found.scores)).tolist() == [7]


def test_too_few_rows_are_answered_without_learning() -> None:
    pixels, captions = squares(4, 5)
    found = score_pairs(pixels, captions, PARAMS, seed=3, threads=1)
    assert np.isnan(found.scores).all()
    assert found.named(PARAMS) == []


def test_no_more_than_the_largest_share_is_named() -> None:
    scores = PairScores(np.linspace(0, 1, 100), 0.99, 10)
    params = PARAMS.model_copy(update={"max_fraction": 0.05, "threshold": 0.5})
    assert scores.named(params) == [99, 98, 97, 96, 95]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
def test_separation_is_the_area_under_the_curve(own: list[int], other: list[int]) -> None:
    labels = [0] * len(own) + [1] * len(other)
    expected = roc_auc_score(labels, own + other)
    assert _separation(np.array(own, float), np.array(other, float)) == pytest.approx(expected)


def test_grams_are_words_and_characters_and_neighbours() -> None:
    assert grams(["A red Cat"]) == {"a", "red", "cat", "a red", "red cat"}
    assert grams(["红色cat"]) == {"红", "色", "cat", "红 色", "色 cat"}
    assert has_han("a 红")
    assert not has_han("plain")


def test_presence_keeps_grams_that_tell_rows_apart() -> None:
    held = presence([{"a", "b"}, {"a", "c"}, {"a", "b"}], at_least=1, at_most=10)
    assert held.tolist() == [[True, False], [False, True], [True, False]]  # b and c; a stands everywhere
    assert presence([{"a", "b"}, {"a"}, {"b"}], at_least=2, at_most=1).shape == (3, 1)
