"""Splits: laws of placing rows, and what is a leak."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from polyweft.data.splits import Row, SplitPlan, components, find_leaks, plan_splits, split_name
from polyweft.errors import DataError


def plan(rows: list[Row], pairs: list[tuple[str, str]] | None = None, **changes: Any) -> SplitPlan:
    settings = {"test_fraction": 0.2, "validation_fraction": 0.1, "seed": 0} | changes
    return plan_splits(rows, pairs or [], **settings)


def by_id(rows: list[Row], answer: SplitPlan) -> dict[str, str]:
    return {row.id: split for row, split in zip(rows, answer.splits, strict=True)}


@st.composite
def linked_rows(draw: st.DrawFn, *, given_split: bool = False) -> tuple[list[Row], list[tuple[str, str]]]:
    """Up to 50 rows, some sharing groups, pictures and duplicate findings, most of them alone."""
    count = draw(st.integers(12, 50))
    small = st.integers(0, count)
    rows = [
        Row(
            f"row-{number}",
            group=draw(st.none() | st.builds("group-{}".format, small)),
            content=tuple(f"picture-{n}" for n in draw(st.lists(st.integers(0, 3 * count), max_size=1))),
            label=draw(st.sampled_from(["a", "b", None])),
            split=draw(st.sampled_from(["train", "train", "test"])) if given_split else None,
        )
        for number in range(count)
    ]
    pairs = draw(st.lists(st.tuples(small, small), max_size=count // 4))
    return rows, [(f"row-{a}", f"row-{b}") for a, b in pairs]


@settings(max_examples=25, deadline=None)
@given(linked_rows(), st.integers(0, 5))
def test_no_component_straddles_and_nothing_we_place_leaks(
    linked: tuple[list[Row], list[tuple[str, str]]], seed: int
) -> None:
    rows, pairs = linked
    joined = components(rows, pairs)
    assume(len(set(joined)) >= 3)
    answer = plan(rows, pairs, seed=seed)
    assert len(answer.splits) == len(rows)
    assert set(answer.splits) == {"train", "validation", "test"}
    places = defaultdict(set)
    for part, split in zip(joined, answer.splits, strict=True):
        places[part].add(split)
    assert all(len(found) == 1 for found in places.values())
    assert not any(answer.leaks)
    assert answer.groups_across == 0


@settings(max_examples=25, deadline=None)
@given(linked_rows(), st.randoms(use_true_random=False))
def test_the_answer_depends_on_content_and_not_on_order(
    linked: tuple[list[Row], list[tuple[str, str]]], chance: random.Random
) -> None:
    rows, pairs = linked
    assume(len(set(components(rows, pairs))) >= 3)
    shuffled, turned = chance.sample(rows, len(rows)), [(b, a) for a, b in reversed(pairs)]
    assert by_id(rows, plan(rows, pairs)) == by_id(shuffled, plan(shuffled, turned))


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 5),
    seed=st.integers(0, 1000),
    test=st.floats(0.05, 0.4),
    validation=st.floats(0.05, 0.4),
)
def test_fractions_hold_within_what_hashing_allows(
    size: int, seed: int, test: float, validation: float
) -> None:
    groups = 600
    rows = [Row(f"{n}", group=f"{n % groups}", label=f"{n % groups % 4}") for n in range(groups * size)]
    counts = Counter(plan(rows, test_fraction=test, validation_fraction=validation, seed=seed).splits)
    for name, fraction in (("test", test), ("validation", validation)):
        deviation = (fraction * (1 - fraction) / groups) ** 0.5
        assert abs(counts[name] / len(rows) - fraction) < 6 * deviation


def test_components_of_many_pictures_are_not_drawn_to_test() -> None:
    """The lowest hash of many would be low: here components of 20 pictures share with those of one."""
    rows = [Row(f"{g}-{n}", content=(f"{g}-{n}",)) for g in range(400) for n in range(20 if g % 2 else 1)]
    pairs = [(f"{g}-{n}", f"{g}-{n + 1}") for g in range(1, 400, 2) for n in range(19)]
    answer = by_id(rows, plan(rows, pairs))
    large, single = ([answer[f"{g}-0"] for g in range(odd, 400, 2)] for odd in (1, 0))
    assert abs(large.count("test") - single.count("test")) < 30
    assert 20 < large.count("test") < 60


def test_rows_keep_their_split_when_others_are_added() -> None:
    rows = [Row(f"{n}", content=(f"picture {n}",), label=f"{n % 3}") for n in range(900)]
    early, late = by_id(rows[:300], plan(rows[:300])), by_id(rows, plan(rows))
    assert all(late[name] == split for name, split in early.items())


def test_another_seed_gives_another_assignment() -> None:
    rows = [Row(f"{n}") for n in range(100)]
    assert plan(rows, seed=1).splits != plan(rows, seed=2).splits == plan(rows, seed=2).splits


def test_every_label_that_is_frequent_enough_stands_in_every_split() -> None:
    rows = [Row(f"{n}", label=f"{n % 40}") for n in range(40 * 12)]
    for seed in range(5):
        answer = plan(rows, seed=seed, test_fraction=0.1)
        for split in ("train", "validation", "test"):
            labels = {row.label for row, name in zip(rows, answer.splits, strict=True) if name == split}
            assert len(labels) == 40


def test_a_component_larger_than_the_split_stays_in_train() -> None:
    rows = [Row(f"{n}", group="large" if n < 60 else None) for n in range(200)]
    for seed in range(20):
        assert set(plan(rows, seed=seed).splits[:60]) == {"train"}


def test_groups_media_and_findings_chain() -> None:
    rows = [
        Row("a", group="g"),
        Row("b", group="g", content=("p",)),
        Row("c", content=("q", "p")),
        Row("d", content=("q",)),
        Row("e"),
        Row("f"),
    ]
    joined = components(rows, [("e", "d"), ("f", "nobody")])
    assert len(set(joined[:5])) == 1
    assert joined[5] != joined[0]


def test_a_given_column_is_honoured_and_its_leaks_marked() -> None:
    rows = [
        Row("a", content=("p",), split="train"),
        Row("b", content=("p",), split="Test"),
        Row("c", content=("q",), split="dev", group="g"),
        Row("d", content=("r",), split="train", group="g"),
        Row("e", content=("q",), split="test"),
        Row("f", content=("s",), split="test"),
    ]
    answer = plan(rows, [("f", "d")])
    assert answer.splits == ["train", "test", "validation", "train", "test", "test"]
    assert answer.leaks == [False, True, False, False, False, True]
    assert set(answer.origin.values()) == {"column"}
    assert answer.groups_across == 1


def test_leaks_chain_over_copies_and_not_over_groups() -> None:
    rows = [
        Row("a", group="g"),
        Row("b"),
        Row("c", content=("p",)),
        Row("d", content=("p",)),
        Row("e", group="g"),
    ]
    splits = ["train", "test", "test", "validation", "test"]
    assert find_leaks(rows, splits, [("a", "b"), ("c", "b")]) == [False, True, True, True, False]


@settings(max_examples=25, deadline=None)
@given(linked_rows(given_split=True))
def test_carving_moves_rows_of_train_alone(linked: tuple[list[Row], list[tuple[str, str]]]) -> None:
    rows, pairs = linked
    train = [row for row in rows if row.split == "train"]
    assume(len(train) < len(rows) and len(set(components(train, pairs))) >= 2)
    answer = plan(rows, pairs)
    assert answer.origin == {"train": "column", "validation": "carved", "test": "column"}
    moved = zip(rows, answer.splits, answer.leaks, strict=True)
    for row, split, leak in moved:
        assert split == row.split or (row.split, split) == ("train", "validation")
        assert not (leak and split == "validation")


def test_carving_spares_what_a_given_split_shares() -> None:
    rows = [Row(f"{n}", content=(f"{n % 100}",), split="train") for n in range(100)]
    rows += [Row(f"v{n}", content=(f"{n}",), split="val") for n in range(40)]
    answer = by_id(rows, plan(rows))
    assert all(answer[f"{n}"] == "train" for n in range(40))
    assert 8 <= Counter(answer.values())["test"] <= 32


def test_rows_that_a_column_leaves_out_join_what_they_belong_to() -> None:
    rows = [
        Row("a", split="train"),
        Row("b", group="g", split="test"),
        Row("c", group="g"),
        Row("d"),
        Row("e", split="val"),
    ]
    assert plan(rows).splits == ["train", "test", "test", "train", "validation"]


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("val", "validation"),
        ("Valid", "validation"),
        ("dev", "validation"),
        (" TEST ", "test"),
        ("training", "train"),
    ],
)
def test_names_of_splits(given_name: str, name: str) -> None:
    assert split_name(given_name, "row") == name


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [Row("a", split="tset")],
            r"row 'a' has the split 'tset'; expected one of .*Correct the split column",
        ),
        ([Row("a", split="test"), Row("b", split="val")], r"'train' has no rows.*split = train"),
        ([Row("a"), Row("b")], r"'validation' has no rows.*independent"),
        ([Row(f"{n}", group="g") for n in range(9)], r"'validation' has no rows.*smaller groups"),
        ([Row("a", split="train"), Row("b", split="test")], r"'validation' has no rows"),
    ],
)
def test_a_split_without_rows_or_of_unknown_name_is_an_error(rows: list[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan(rows)
