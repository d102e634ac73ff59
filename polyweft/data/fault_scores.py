"""How well the checks did: their findings against a truth that was opened after they had spoken."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

BROKEN = ("broken_image", "broken_audio", "missing_file")
COPIES = {"exact_duplicate": "exact_duplicates", "near_duplicate": "near_duplicates", "leak": "leaks"}
"""Faults that are pairs of rows, and the facts that they are counted under."""


def fault_facts(
    truth: Sequence[Mapping[str, str]],
    findings: Sequence[Mapping[str, str | float | None]],
    set_aside: Collection[str],
    scores: Mapping[str, float],
) -> dict[str, float]:
    """Precision and recall by kind of fault, and the average precision of the score of wrong pairs.

    Parameters
    ----------
    truth
        Rows of `id`, `fault`, `detail`; of copies, `detail` is the original's id.
    findings
        Rows of `id`, `other_id`, `check`.
    set_aside
        Ids that ingest and validate quarantined, or kept with a medium masked.
    scores
        Of every row that was scored as a pair, higher is more suspicious. A swapped row that was not
        scored counts as missed.

    Returns
    -------
    Only of faults that the truth has. A precision with nothing found is 0.
    """
    faults: dict[str, dict[str, str]] = defaultdict(dict)
    for entry in truth:
        faults[entry["fault"]][entry["id"]] = entry["detail"]
    facts = _copies(faults, findings)
    broken = {name for kind in BROKEN for name in faults[kind]}
    if broken:
        facts |= _rates("broken", len(broken & set(set_aside)), len(set_aside), len(broken))
        for kind in BROKEN:
            if faults[kind]:
                facts[f"{kind}_recall"] = len(faults[kind].keys() & set(set_aside)) / len(faults[kind])
    swapped = set(faults["swapped_captions"])
    if swapped:
        named = {str(f["id"]) for f in findings if f["check"] == "mismatched_pairs"}
        facts |= _rates("swapped_captions", len(named & swapped), len(named), len(swapped))
        ids = sorted(scores)
        facts["swapped_captions_average_precision"] = average_precision(
            np.array([name in swapped for name in ids], dtype=np.bool_),
            np.array([scores[name] for name in ids], dtype=np.float64),
            positives=len(swapped),
        )
    return {name: round(value, 6) for name, value in facts.items()}


def average_precision(
    right: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64], *, positives: int | None = None
) -> float:
    """Sum over thresholds of (recall's step) x precision, equal scores taken together (as scikit-learn does).

    `positives` counts those that are not among the scored too; without any, the answer is 0.
    """
    total = int(right.sum()) if positives is None else positives
    if not total or not len(scores):
        return 0.0
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(right[order]), scores[order]
    last = np.append(ordered[1:] != ordered[:-1], True)
    hits, taken = hits[last], np.flatnonzero(last) + 1
    steps = np.diff(hits, prepend=0)
    return float((steps * hits / taken).sum() / total)


def _copies(
    faults: Mapping[str, Mapping[str, str]], findings: Iterable[Mapping[str, str | float | None]]
) -> dict[str, float]:
    """A finding is right when it names a true pair of its family, whichever of the two rows comes first."""
    pairs = {
        kind: {frozenset((copy, original)) for copy, original in faults.get(kind, {}).items()}
        for kind in COPIES
    }
    named: dict[str, set[frozenset[str]]] = defaultdict(set)
    for finding in findings:
        named[str(finding["check"])].add(frozenset((str(finding["id"]), str(finding["other_id"]))))
    facts: dict[str, float] = {}
    both = pairs["exact_duplicate"] | pairs["near_duplicate"]
    found = named["exact_duplicates"] | named["near_duplicates"]
    if both:
        facts |= _rates("duplicates", len(both & found), len(found), len(both))
    for kind, check in COPIES.items():
        if not pairs[kind]:
            continue
        if kind == "leak":
            facts |= _rates("leaks", len(pairs[kind] & named[check]), len(named[check]), len(pairs[kind]))
        else:
            facts[f"{check}_recall"] = len(pairs[kind] & found) / len(pairs[kind])
    return facts


def _rates(name: str, right: int, found: int, true: int) -> dict[str, float]:
    return {
        f"{name}_precision": right / found if found else 0.0,
        f"{name}_recall": right / true,
    }
