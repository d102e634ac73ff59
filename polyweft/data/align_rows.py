"""All checks across modalities on one manifest, and what each does with what it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field

from polyweft.config import RuntimeParams, Section
from polyweft.data import decode, pair_checks
from polyweft.data.alignment import MismatchParams, PairScores, score_pairs
from polyweft.data.duplicates import (
    Copy,
    NearParams,
    Pair,
    Pixels,
    equal_pairs,
    find_copies,
    near_pairs,
    shrink,
)
from polyweft.data.grams import canonical
from polyweft.data.pair_checks import WHOLE, Finding, LabelFromText
from polyweft.errors import CheckFailedError
from polyweft.modalities import medium_or

if TYPE_CHECKING:
    from polyweft.data.media import MediaStore

Action = Literal["report", "quarantine", "fail"]

CHECKS = (
    "pairs_complete",
    "captions_empty",
    "captions_repeated",
    "language",
    "exact_duplicates",
    "near_duplicates",
    "leaks",
    "label_from_text",
    "mismatched_pairs",
)


class AlignParams(Section):
    """Section `align`: what each check does with what it finds, and its thresholds."""

    pairs_complete: Action = "report"
    required: list[Annotated[str, AfterValidator(medium_or("captions", "label"))]] = Field(
        default=["image", "captions"], description="what a row needs to be complete"
    )
    captions_empty: Action = "quarantine"
    captions_repeated: Action = "report"
    max_rows_per_caption: int = Field(default=20, ge=1)
    language: Action = "report"
    languages: list[str] = Field(default=["en", "zh"], min_length=1)
    exact_duplicates: Action = "report"
    near_duplicates: Action = "report"
    near: NearParams = NearParams()
    leaks: Action = "report"
    leak_media: list[Annotated[str, AfterValidator(medium_or(but="image"))]] = Field(
        default=[], description="media besides pictures that leak where two splits share one"
    )
    leaks_keep: Literal["evaluation", "train"] = Field(
        default="evaluation", description="which side of a leak stays where `leaks` is quarantine"
    )
    label_from_text: Literal["report", "fail"] = "report"
    label_from_text_at: float = Field(
        default=0.95, ge=0.0, le=1.0, description="accuracy from which it counts"
    )
    mismatched_pairs: Action = "report"
    mismatch: MismatchParams = MismatchParams()
    image_size: Literal[32, 64, 96, 128] = Field(
        default=64, description="side at which pictures are compared"
    )
    background: list[int] = Field(
        default=[128, 128, 128], min_length=3, max_length=3, description="RGB, under transparent pixels"
    )


@dataclass
class Aligned:
    """What `align_rows` answers; `scores` is the score of the pair by id, of every row that was scored."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    told: LabelFromText | None = None
    pairs: PairScores | None = None


def align_rows(
    rows: Sequence[dict[str, Any]], store: MediaStore, params: AlignParams, runtime: RuntimeParams
) -> Aligned:
    """Run every check; rows that one of them sets aside are not scored as pairs.

    Raises
    ------
    CheckFailedError
        A check whose action is `fail` found something.
    MediaError
        A picture cannot be decoded: the manifest did not come from `validate`.
    """
    out = Aligned()
    out.findings += pair_checks.pairs_complete(rows, params.required)
    out.findings += pair_checks.captions_empty(rows)
    out.findings += pair_checks.captions_repeated(rows, params.max_rows_per_caption)
    out.findings += pair_checks.language(rows, params.languages)
    out.told = pair_checks.label_from_text(rows, folds=5, seed=runtime.seed)
    if out.told.best >= params.label_from_text_at:
        out.findings.append(_told_finding(out.told))
    keys, pixels = small_pictures(rows, store, params)
    out.findings += copies(rows, store, keys, pixels, params)
    refuse(out.findings, params)
    gone = _set_aside(out, params)
    if not gone < {row["id"] for row in rows}:
        raise CheckFailedError(_nothing_left(out.quarantined))
    _score(out, [row for row in rows if row["id"] not in gone], keys, pixels, params, runtime)
    refuse(out.findings, params)
    gone = _set_aside(out, params)
    out.rows = [row for row in rows if row["id"] not in gone]
    return out


def small_pictures(
    rows: Sequence[dict[str, Any]], store: MediaStore, params: AlignParams
) -> tuple[dict[str, int], Pixels]:
    """Every picture once as uint8 [N, S, S, 3], squashed to a square, and the place of each media key."""
    keys = {key: place for place, key in enumerate(dict.fromkeys(r["image"] for r in rows if r["image"]))}
    mean, std = decode.STATISTICS["half"]
    spec = decode.ImageSpec(params.image_size, "squash", mean, std, params.background, 10**9)
    pixels = np.empty((len(keys), params.image_size, params.image_size, 3), dtype=np.uint8)
    for key, place in keys.items():
        try:
            pixels[place] = decode.decode_image_uint8(store.read(key), spec)
        except decode.MediaDecodeError as error:
            raise CheckFailedError(
                f"picture {key} cannot be decoded: {error}. Run `dvc repro validate`."
            ) from None
    return keys, pixels


def copies(
    rows: Sequence[dict[str, Any]],
    store: MediaStore,
    keys: dict[str, int],
    pixels: Pixels,
    params: AlignParams,
) -> list[Finding]:
    """Findings of `exact_duplicates`, `near_duplicates` and `leaks`.

    Rows are exact duplicates when their pictures have equal bytes or equal pixels, or, without a picture,
    when all they hold is equal.
    """
    splits = [row["split"] for row in rows]
    found = near_pairs(shrink(pixels), params.near)
    names = list(keys)
    same = {(i, j) for i, j, d in found if d == 0 and _equal_pixels(store, names[i], names[j])}
    bearers: list[list[int]] = [[] for _ in keys]
    for place, row in enumerate(rows):
        if row["image"]:
            bearers[keys[row["image"]]].append(place)
    content = [row["image"] or f"row/{row['content_hash']}" for row in rows]
    pairs = [Pair(i, j, True, 0.0) for i, j in equal_pairs(content, splits)]
    for i, j, difference in found:
        for a in _first_of_splits(bearers[i], splits):
            pairs += [Pair(min(a, b), max(a, b), (i, j) in same, difference) for b in bearers[j]]
        for b in _first_of_splits(bearers[j], splits):
            pairs += [Pair(min(a, b), max(a, b), (i, j) in same, difference) for a in bearers[i]]
    for medium in params.leak_media:
        shared = equal_pairs([row[medium] for row in rows], splits)
        pairs += [Pair(i, j, True, 0.0, medium) for i, j in shared if _apart(splits[i], splits[j])]
    return [_copy_finding(copy, rows) for copy in find_copies(pairs, splits, leaks_keep=params.leaks_keep)]


def refuse(findings: Sequence[Finding], params: AlignParams) -> None:
    """Raise `CheckFailedError` for what checks with action `fail` found."""
    failed = [finding for finding in findings if getattr(params, finding.check) == "fail"]
    if not failed:
        return
    parts = []
    for check, number in sorted(Counter(finding.check for finding in failed).items()):
        some = [f"{f.id!r}: {f.detail}" for f in failed if f.check == check][:2]
        parts.append(f"{check} ({number} findings, for example {'; '.join(some)})")
    raise CheckFailedError(
        f"checks that section `align` sets to `fail` found something: {' and '.join(parts)}. Correct the "
        "data, or set the check to `quarantine` or `report`."
    )


def _score(
    out: Aligned,
    rows: Sequence[dict[str, Any]],
    keys: dict[str, int],
    pixels: Pixels,
    params: AlignParams,
    runtime: RuntimeParams,
) -> None:
    rows = [row for row in rows if row["image"] and any(canonical(c["text"]) for c in row["captions"])]
    pictures = pixels[[keys[row["image"]] for row in rows]]
    captions = [[caption["text"] for caption in row["captions"]] for row in rows]
    pairs = score_pairs(pictures, captions, params.mismatch, seed=runtime.seed, threads=runtime.threads)
    scored = zip(rows, pairs.scores, strict=True)
    out.scores = {row["id"]: round(float(score), 9) for row, score in scored if not np.isnan(score)}
    for place in pairs.named(params.mismatch):
        row, score = rows[place], out.scores[rows[place]["id"]]
        detail = f"{row['captions'][0]['text'][:80]!r} does not seem to belong to the picture"
        out.findings.append(Finding(row["id"], "mismatched_pairs", detail, score=score))
    out.pairs = pairs


def _set_aside(out: Aligned, params: AlignParams) -> set[str]:
    """Enter every finding of a check with action `quarantine`, and answer the ids of the rows."""
    found = [f for f in out.findings if getattr(params, f.check) == "quarantine" and f.id != WHOLE]
    out.quarantined = [
        {
            "id": f.id,
            "stage": "align",
            "check": f.check,
            "reason": f.detail if f.score is None else f"{f.detail} (score {f.score:g})",
        }
        for f in found
    ]
    return {f.id for f in found}


def _nothing_left(quarantined: Sequence[dict[str, str]]) -> str:
    check, number = Counter(entry["check"] for entry in quarantined).most_common(1)[0]
    return (
        f"no row is left: the checks of section `align` set all of them aside, {check} alone {number}. "
        "Set it to `report`, or correct its thresholds."
    )


def _told_finding(told: LabelFromText) -> Finding:
    detail = (
        f"the captions alone tell the label of {told.best:.1%} of {told.rows} rows (the commonest label: "
        f"{told.chance:.1%}); let the class head see the image alone"
    )
    return Finding(WHOLE, "label_from_text", detail, score=round(told.best, 6))


def _copy_finding(copy: Copy, rows: Sequence[dict[str, Any]]) -> Finding:
    row, other = rows[copy.row], rows[copy.other]
    alike = "the same content as" if copy.exact else "nearly the same picture as"
    if copy.medium != "image":
        alike = f"the same {copy.medium} as"
    check = "leaks" if copy.leak else "exact_duplicates" if copy.exact else "near_duplicates"
    where = f" of split {other['split']}, itself in {row['split']}" if copy.leak else ""
    detail = f"{alike} {other['id']}{where}"
    return Finding(row["id"], check, detail, other_id=other["id"], score=round(copy.difference, 6))


def _apart(one: str | None, two: str | None) -> bool:
    return one is not None and two is not None and one != two


def _first_of_splits(places: Sequence[int], splits: Sequence[str | None]) -> list[int]:
    return list({splits[place]: place for place in reversed(places)}.values())


def _equal_pixels(store: MediaStore, one: str, two: str) -> bool:
    mean, std = decode.STATISTICS["half"]
    sides = []
    for key in (one, two):
        _, width, height, _ = decode.probe_image(store.read(key))
        sides.append((width, height))
    if sides[0] != sides[1]:
        return False
    # Padded to a square of its own size a picture keeps every pixel.
    spec = decode.ImageSpec(max(sides[0]), "pad", mean, std, [128, 128, 128], 10**9)
    first, second = (decode.decode_image_uint8(store.read(key), spec) for key in (one, two))
    return bool((first == second).all())
