"""Splits without leaks: what belongs together goes to one split, and leaks that a source brings are marked.

Rows belong together when they share a group or equal media, or when a check found them to be duplicates;
the relation is closed under chains (union-find). A given `split` column is honoured as it is. Rows that
we place go by a hash of what they hold, never by their position: a row keeps its split when others are
added, up to the repair of labels that a split would miss.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from polyweft.data.records import SPLITS
from polyweft.errors import DataError

_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev", "development", "eval"), "validation"),
    **dict.fromkeys(("test", "testing", "heldout", "held_out"), "test"),
}


@dataclass(frozen=True)
class Row:
    """What splitting needs of one row.

    Attributes
    ----------
    id
        Unique.
    group
        Rows that share it belong together; None: none.
    content
        Media keys; rows that share one belong together.
    label
        For stratification; None: none.
    split
        As given by the source, or None.
    """

    id: str
    group: str | None = None
    content: tuple[str, ...] = ()
    label: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class SplitPlan:
    """The answer of `plan_splits`, in the order of the rows.

    Attributes
    ----------
    splits
        `train`, `validation` or `test` for each row.
    leaks
        True for a row outside train whose content stands in train.
    origin
        For each split: `column`, `carved` (from train, by component) or `assigned`.
    groups_across
        Groups that the given column spreads over train and another split.
    """

    splits: list[str]
    leaks: list[bool]
    origin: dict[str, str]
    groups_across: int


def plan_splits(
    rows: Sequence[Row],
    duplicates: Iterable[tuple[str, str]],
    *,
    test_fraction: float,
    validation_fraction: float,
    seed: int,
) -> SplitPlan:
    """Give every row one split.

    Parameters
    ----------
    rows
        Unique ids, any order: the answer for a row does not depend on it.
    duplicates
        Pairs of ids with the same or nearly the same content; ids that are no row's are passed over.
    test_fraction, validation_fraction
        Parts of the rows we place (of train's rows, where a missing split is carved from it).
    seed
        Another seed, another assignment.

    Raises
    ------
    DataError
        A split's name is unknown, or a split would have no rows; the message names it and the remedy.
    """
    given = [None if row.split is None else split_name(row.split, row.id) for row in rows]
    pairs = list(duplicates)
    if not any(given):
        joined = components(rows, pairs)
        fractions = {"test": test_fraction, "validation": validation_fraction}
        placed = _place(rows, joined, fractions, seed)
        splits = [placed.get(number, "train") for number in range(len(rows))]
        origin = dict.fromkeys(SPLITS, "assigned")
    else:
        splits = _fill(rows, given, pairs)
        origin = dict.fromkeys(SPLITS, "column")
        wanted = {"test": test_fraction, "validation": validation_fraction}
        missing = {name: part for name, part in wanted.items() if name not in splits}
        for number, name in _carve(rows, splits, pairs, missing, seed).items():
            splits[number] = name
        origin |= dict.fromkeys(missing, "carved")
    _check_none_empty(splits, origin)
    return SplitPlan(splits, find_leaks(rows, splits, pairs), origin, _groups_across(rows, splits))


def split_name(given: str, row: str) -> str:
    """Our name for a source's split (`val`, `valid` and `dev` are `validation`, ...); see `plan_splits`."""
    name = _NAMES.get(given.strip().lower())
    if name is None:
        raise DataError(
            f"row {row!r} has the split {given!r}; expected one of {sorted(_NAMES)}. "
            "Correct the split column, or leave it out to have the rows split by content."
        )
    return name


def components(rows: Sequence[Row], pairs: Iterable[tuple[str, str]], *, by_group: bool = True) -> list[int]:
    """For each row the number of its component: rows that belong together have equal numbers.

    With `by_group` false, groups do not join.
    """
    parent = list(range(len(rows)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for first, second in _edges(rows, pairs, by_group):
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    return [root(number) for number in range(len(rows))]


def find_leaks(rows: Sequence[Row], splits: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[bool]:
    """For each row: whether it stands outside train while equal or duplicate content stands in train.

    Chains count: checks name for each copy one row that it repeats, not all of them. Groups do not.
    """
    joined = components(rows, pairs, by_group=False)
    in_train = {part for part, split in zip(joined, splits, strict=True) if split == "train"}
    return [split != "train" and part in in_train for part, split in zip(joined, splits, strict=True)]


def _edges(
    rows: Sequence[Row], pairs: Iterable[tuple[str, str]], by_group: bool
) -> Iterator[tuple[int, int]]:
    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows):
        keys = [("content", key) for key in row.content]
        if by_group and row.group is not None:
            keys.append(("group", row.group))
        for key in keys:
            yield first.setdefault(key, number), number
    place = {row.id: number for number, row in enumerate(rows)}
    for one, other in pairs:
        if one in place and other in place:
            yield place[one], place[other]


def _fill(rows: Sequence[Row], given: Sequence[str | None], pairs: list[tuple[str, str]]) -> list[str]:
    """Rows that a given column leaves out join the held-out split that their content stands in, or train."""
    if all(given):
        return [name for name in given if name is not None]
    joined = components(rows, pairs)
    held: dict[int, str] = {}
    for name in ("validation", "test"):
        held |= {part: name for part, split in zip(joined, given, strict=True) if split == name}
    return [name or held.get(part, "train") for part, name in zip(joined, given, strict=True)]


def _carve(
    rows: Sequence[Row],
    splits: Sequence[str],
    pairs: list[tuple[str, str]],
    fractions: dict[str, float],
    seed: int,
) -> dict[int, str]:
    """Places for the missing splits, taken from train by component: row number to split.

    Components that reach into another given split are spared while others suffice, so that a carved test
    split is far from the given validation split too.
    """
    if not fractions:
        return {}
    numbers = [number for number, split in enumerate(splits) if split == "train"]
    everywhere = components(rows, pairs)
    held = {part for part, split in zip(everywhere, splits, strict=True) if split != "train"}
    apart = [number for number in numbers if everywhere[number] not in held]
    quota = sum(fractions.values()) * len(numbers)
    if apart and len(apart) >= 2 * quota:
        share = {name: part * len(numbers) / len(apart) for name, part in fractions.items()}
        numbers, fractions = apart, share
    chosen = [rows[number] for number in numbers]
    placed = _place(chosen, components(chosen, pairs), fractions, seed)
    return {numbers[number]: name for number, name in placed.items()}


def _place(
    rows: Sequence[Row], joined: Sequence[int], fractions: dict[str, float], seed: int
) -> dict[int, str]:
    """Row number to split for the rows that leave train.

    A component leaves when its hash, uniform on [0, 1), falls into the split's interval. A component
    larger than the split is to be stays in train while there are others. A label frequent enough to be
    expected in a split and missed by chance lends its component of the lowest hash.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for number, part in enumerate(joined):
        members[part].append(number)
    hashes = {part: _hash([rows[n] for n in numbers], seed) for part, numbers in members.items()}
    order = sorted(members, key=lambda part: (hashes[part], min(rows[n].id for n in members[part])))
    strata: dict[str, list[int]] = defaultdict(list)
    for part in order:
        strata[_label(rows, members[part])].append(part)
    limits = {name: max(1.0, fraction * len(rows)) for name, fraction in fractions.items()}

    chosen: dict[int, str] = {}
    start = 0.0
    for name, fraction in fractions.items():
        for part in order:
            if start <= hashes[part] < start + fraction and len(members[part]) <= limits[name]:
                chosen[part] = name
        start += fraction
    for name, fraction in fractions.items():
        due = [stratum for stratum in strata.values() if fraction * len(stratum) >= 1]
        for stratum in [*due, order]:
            free = [part for part in stratum if part not in chosen]
            if len(free) > 1 and name not in (chosen.get(part) for part in stratum):
                fitting = [part for part in free if len(members[part]) <= limits[name]]
                chosen[fitting[0] if fitting else min(free, key=lambda part: len(members[part]))] = name
    return {number: name for part, name in chosen.items() for number in members[part]}


def _hash(rows: Sequence[Row], seed: int) -> float:
    """A component's place on [0, 1), uniform whatever its size: the hash of one identity in it.

    The identity is the one of the lowest fingerprint, so that a row that joins seldom changes it; taking
    the lowest hash itself would draw large components to 0.
    """
    identities = {_identity(row) for row in rows}
    chosen = min(identities, key=lambda identity: (_uniform(f"choose {seed}", identity), identity))
    return _uniform(f"place {seed}", chosen)


def _identity(row: Row) -> str:
    """What ties the row to others where something does, its id otherwise."""
    if row.group is not None:
        return f"group:{row.group}"
    return f"content:{min(row.content)}" if row.content else f"id:{row.id}"


def _uniform(salt: str, text: str) -> float:
    digest = hashlib.blake2b(f"{salt}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _label(rows: Sequence[Row], numbers: list[int]) -> str:
    counts = Counter(rows[number].label or "" for number in numbers)
    return min(counts, key=lambda label: (-counts[label], label))


def _groups_across(rows: Sequence[Row], splits: Sequence[str]) -> int:
    seen: dict[str, set[str]] = defaultdict(set)
    for row, split in zip(rows, splits, strict=True):
        if row.group is not None:
            seen[row.group].add(split)
    return sum("train" in found and len(found) > 1 for found in seen.values())


def _check_none_empty(splits: Sequence[str], origin: dict[str, str]) -> None:
    for name in SPLITS:
        if name in splits:
            continue
        if origin[name] == "column":
            remedy = f"Give rows with split = {name}, or leave the split column out."
        else:
            remedy = (
                f"Too few of the {len(splits)} rows are independent (groups, equal media, duplicates stay "
                f"together). Give more rows, smaller groups, or rows with split = {name}."
            )
        raise DataError(f"the split {name!r} has no rows. {remedy}")
