"""Decoding against its definitions: brute force on a small vocabulary, and the laws between strategies."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.generation import (
    FloatArray,
    GenerationSpec,
    IntArray,
    Special,
    Step,
    generate,
    length_factor,
)

SPECIAL = Special(start=1, end=2, pad=0)
VOCABULARY = 6


def random_model(seed: int, sharpness: float = 2.0) -> Step:
    """Logits that are a function of the row and of all tokens so far."""

    def step(ids_BT: IntArray, rows_B: IntArray) -> FloatArray:
        return np.stack(
            [
                np.random.default_rng([seed, int(row), *map(int, ids)]).normal(0, sharpness, VOCABULARY)
                for ids, row in zip(ids_BT, rows_B, strict=True)
            ]
        )

    return step


def shifted(model: Step, row: int) -> Step:
    """A model whose row 0 is `model`'s row `row`."""
    return lambda ids_BT, rows_B: model(ids_BT, rows_B + row)


def log_p(step: Step, row: int, ids: list[int], max_tokens: int) -> tuple[float, int]:
    """A caption's log-probability over the allowed tokens, and its length with the end token."""
    total = 0.0
    emitted = [*ids, SPECIAL.end] if len(ids) < max_tokens else ids
    for length, token in enumerate(emitted):
        logits = step(np.array([[SPECIAL.start, *ids[:length]]]), np.array([row]))[0].copy()
        logits[[SPECIAL.start, SPECIAL.pad]] = -np.inf
        total += logits[token] - np.logaddexp.reduce(logits)
    return total, len(emitted)


def score(step: Step, row: int, ids: list[int], spec: GenerationSpec) -> float:
    total, length = log_p(step, row, ids, spec.max_tokens)
    return total / length_factor(length, spec.length_penalty)


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, max_tokens=st.integers(1, 6))
def test_one_beam_and_one_of_k_and_an_empty_nucleus_are_greedy(seed: int, max_tokens: int) -> None:
    step = random_model(seed)
    greedy = generate(step, 3, GenerationSpec("greedy", max_tokens=max_tokens), SPECIAL)
    for spec in (
        GenerationSpec("beam", beams=1, max_tokens=max_tokens),
        GenerationSpec("beam", beams=1, max_tokens=max_tokens, length_penalty=1.0),
        GenerationSpec("top_k", k=1, max_tokens=max_tokens, seed=seed, temperature=3.0),
        GenerationSpec("top_p", p=1e-9, max_tokens=max_tokens, seed=seed),
        GenerationSpec("top_p", p=1.0, max_tokens=max_tokens, seed=seed, temperature=1e-6),
    ):
        assert generate(step, 3, spec, SPECIAL) == greedy


@settings(max_examples=40, deadline=None)
@given(seed=seeds, beams=st.integers(2, 5), alpha=st.sampled_from([0.0, 0.6, 1.0]))
def test_beam_search_is_never_worse_than_greedy(seed: int, beams: int, alpha: float) -> None:
    step = random_model(seed, sharpness=1.0)
    spec = GenerationSpec("beam", beams=beams, max_tokens=6, length_penalty=alpha)
    greedy = generate(step, 1, GenerationSpec("greedy", max_tokens=6), SPECIAL)[0]
    found = generate(step, 1, spec, SPECIAL)[0]
    assert score(step, 0, found, spec) >= score(step, 0, greedy, spec) - 1e-9


@settings(max_examples=20, deadline=None)
@given(seed=seeds, alpha=st.sampled_from([0.0, 1.0]))
def test_enough_beams_find_the_best_of_all_captions(seed: int, alpha: float) -> None:
    step = random_model(seed, sharpness=1.0)
    spec = GenerationSpec("beam", beams=200, max_tokens=3, length_penalty=alpha)
    words = [token for token in range(VOCABULARY) if token not in (0, 1, 2)]
    everything = [list(ids) for n in range(4) for ids in itertools.product(words, repeat=n)]
    best = max(everything, key=lambda ids: score(step, 0, ids, spec))
    assert generate(step, 1, spec, SPECIAL)[0] == best


@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    spec=st.builds(
        GenerationSpec,
        strategy=st.sampled_from(["greedy", "beam", "top_k", "top_p"]),
        beams=st.integers(1, 4),
        k=st.integers(1, 9),
        p=st.floats(0.01, 1.0),
        temperature=st.floats(0.1, 5.0),
        max_tokens=st.integers(1, 7),
        seed=st.integers(0, 99),
        length_penalty=st.floats(0.0, 2.0),
    ),
)
def test_captions_hold_no_special_token_keep_the_limit_and_do_not_depend_on_their_neighbours(
    seed: int, spec: GenerationSpec
) -> None:
    longest = 0
    model = random_model(seed)

    def step(ids_BT: IntArray, rows_B: IntArray) -> FloatArray:
        nonlocal longest
        longest = max(longest, ids_BT.shape[1])
        assert (ids_BT[:, 0] == SPECIAL.start).all()
        return model(ids_BT, rows_B)

    together = generate(step, 3, spec, SPECIAL)
    for row, ids in enumerate(together):
        assert len(ids) <= spec.max_tokens
        assert not {SPECIAL.pad, SPECIAL.start, SPECIAL.end} & set(ids)
        assert generate(shifted(model, row), 1, spec, SPECIAL) == [ids]
    assert longest <= spec.max_tokens
    assert generate(model, 3, spec, SPECIAL) == together
    assert GenerationSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        (GenerationSpec("top_k", k=2, max_tokens=1), {3: 0.5 / 0.8, 4: 0.3 / 0.8}),
        (GenerationSpec("top_p", p=0.75, max_tokens=1), {3: 0.5 / 0.8, 4: 0.3 / 0.8}),
        (GenerationSpec("top_p", p=0.81, max_tokens=1), {3: 0.5, 4: 0.3, 5: 0.2}),
        (GenerationSpec("top_k", k=9, max_tokens=1, temperature=0.5), {3: 25 / 38, 4: 9 / 38, 5: 4 / 38}),
    ],
)
def test_draws_follow_the_truncated_distribution(spec: GenerationSpec, allowed: dict[int, float]) -> None:
    # The likeliest ids of all are those that must never come.
    logits = np.log(np.array([9.0, 9.0, 1e-30, 0.5, 0.3, 0.2]))
    draws = 3000
    counts = np.zeros(VOCABULARY)
    for seed in range(draws):
        drawn = GenerationSpec.from_dict(spec.to_dict() | {"seed": seed})
        counts[generate(lambda ids_BT, rows_B: logits[None], 1, drawn, SPECIAL)[0]] += 1
    assert set(np.flatnonzero(counts)) == set(allowed)
    for token, p in allowed.items():
        assert counts[token] / draws == pytest.approx(p, abs=0.04)


def test_a_path_that_greedy_cannot_see_is_found_by_two_beams() -> None:
    # 3 looks better than 4 at first (0.6 to 0.4) but leads to a coin toss; 4 is sure to end.
    table = {(1,): [0.6, 0.4, 0], (1, 3): [0.45, 0.45, 0.1], (1, 4): [0, 0, 1.0]}

    def step(ids_BT: IntArray, rows_B: IntArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            rows = [table.get(tuple(map(int, ids)), [0.3, 0.3, 0.4]) for ids in ids_BT]
            return np.array([np.log([0, 0, row[2], row[0], row[1], 0]) for row in rows])

    assert generate(step, 1, GenerationSpec("greedy", max_tokens=3), SPECIAL)[0][0] == 3
    assert generate(step, 1, GenerationSpec("beam", beams=2, max_tokens=3), SPECIAL) == [[4]]


def test_no_rows_give_no_captions_and_never_ask_the_model() -> None:
    def step(ids_BT: IntArray, rows_B: IntArray) -> FloatArray:
        raise AssertionError("asked")

    assert generate(step, 0, GenerationSpec("beam", beams=3), SPECIAL) == []
    assert generate(step, 0, GenerationSpec("top_p"), SPECIAL) == []


@pytest.mark.parametrize(
    "bad",
    [
        {"strategy": "magic"},
        {"beams": 0},
        {"k": 0},
        {"p": 0.0},
        {"p": 1.5},
        {"temperature": 0.0},
        {"max_tokens": 0},
        {"seed": -1},
        {"length_penalty": -0.1},
    ],
)
def test_settings_out_of_range_are_refused_by_name(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        GenerationSpec.from_dict(bad)


def test_logits_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        generate(lambda i, r: np.full((1, VOCABULARY), np.nan), 1, GenerationSpec(), SPECIAL)
