"""Rows that show the same picture: equal bytes, equal pixels, and near copies; and which of them leak.

Near copies are found in two steps. A 64-bit perceptual hash (the signs of a picture's low frequencies)
proposes pairs; the pixels confirm them, after one gain and one offset of brightness are allowed for. The
second step is strict, so that twins which differ in a detail stay apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from polyweft.config import Section
from polyweft.data.records import SPLITS

SIDE = 32
"""Side of the pictures that are hashed and compared, in pixels."""

BLOCK = 4
"""Side of the blocks of which the worst one must agree, too."""

Pixels = npt.NDArray[np.uint8]


class NearParams(Section):
    """How alike two pictures must be to be near copies."""

    max_hash_distance: int = Field(default=12, ge=0, le=32, description="bits of 64 that may differ")
    max_difference: float = Field(
        default=3.0, ge=0.0, le=64.0, description="root mean square over all pixels, in levels of 0 to 255"
    )
    max_block_difference: float = Field(
        default=9.0, ge=0.0, le=128.0, description="the same over the worst block of 4 x 4 of 32 x 32 pixels"
    )
    max_gain: float = Field(
        default=1.2, ge=1.0, le=2.0, description="by how much brighter or darker a copy may be"
    )
    max_offset: float = Field(default=16.0, ge=0.0, le=64.0, description="the same as a sum, in levels")


@dataclass(frozen=True)
class Pair:
    """Rows `first` < `second` (places) that hold the same `medium`; `difference` is 0 for equal bytes."""

    first: int
    second: int
    exact: bool
    difference: float
    medium: str = "image"


@dataclass(frozen=True)
class Copy:
    """Row `row` repeats row `other`: within one split, or as a leak between two."""

    row: int
    other: int
    leak: bool
    exact: bool
    difference: float
    medium: str = "image"


def shrink(pixels_NSS3: Pixels) -> Pixels:
    """Average uint8 [N, S, S, 3] down to [N, 32, 32, 3]; S is a multiple of 32."""
    count, side = pixels_NSS3.shape[:2]
    if side % SIDE:
        raise ValueError(f"pictures of side {side} cannot be averaged to {SIDE}; take a multiple of it")
    step = side // SIDE
    out = np.empty((count, SIDE, SIDE, 3), dtype=np.uint8)
    for begin in range(0, count, 1024):
        part = pixels_NSS3[begin : begin + 1024].astype(np.float32)
        blocks = part.reshape(len(part), SIDE, step, SIDE, step, 3).mean(axis=(2, 4))
        out[begin : begin + 1024] = np.rint(blocks)
    return out


def perceptual_hashes(small_N: Pixels) -> npt.NDArray[np.uint64]:
    """64-bit hashes [N] of uint8 [N, 32, 32, 3]: signs against the median of 8 x 8 low DCT frequencies.

    After pHash (C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010):
    the constant term is left out, so brightness does not count.
    """
    grey = small_N.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = np.arange(SIDE)
    basis = np.cos(np.pi / SIDE * (steps[None] + 0.5) * np.arange(9)[:, None]).astype(np.float32)
    frequencies = (basis @ grey @ basis.T).reshape(len(grey), 81)
    # 9 x 9 without the first row's and column's corner leaves 80; the 64 of lowest order are taken.
    order = np.argsort([u + v + 0.01 * u for u in range(9) for v in range(9)], kind="stable")[1:65]
    low = frequencies[:, order]
    bits = low > np.median(low, axis=1, keepdims=True)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)[:, 0]


def near_pairs(small_N: Pixels, params: NearParams) -> list[tuple[int, int, float]]:
    """Pairs (i < j, difference) of uint8 [N, 32, 32, 3] that are near copies, in order of i and j.

    Every pair of hashes is compared: 10,000 pictures take about a second, and memory stays bounded.
    """
    hashes = perceptual_hashes(small_N)
    found: list[tuple[int, int, float]] = []
    for begin in range(0, len(hashes), 512):
        block = hashes[begin : begin + 512]
        distance = np.bitwise_count(block[:, None] ^ hashes[None, begin:])
        first, second = np.nonzero(distance <= params.max_hash_distance)
        later = second > first
        first, second = first[later] + begin, second[later] + begin
        for part in range(0, len(first), 1024):
            i, j = first[part : part + 1024], second[part : part + 1024]
            difference, alike = _compare(small_N[i], small_N[j], params)
            found += [
                (int(a), int(b), float(d))
                for a, b, d in zip(i[alike], j[alike], difference[alike], strict=True)
            ]
    return found


def _compare(
    one_P: Pixels, two_P: Pixels, params: NearParams
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Root mean square difference of pairs [P, 32, 32, 3], brightness aside, and which pairs are alike."""
    one, two = (part.reshape(len(part), -1).astype(np.float32) for part in (one_P, two_P))
    forth, back = _difference(one, two, params), _difference(two, one, params)
    # A copy that was made brighter is cut at 255: it follows from the original, not the other way round.
    better = forth[0] <= back[0]
    return np.where(better, forth[0], back[0]), np.where(better, forth[1], back[1])


def _difference(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.float32], params: NearParams
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """What is left of y [P, 3072] after the best clip(gain x + offset, 0, 255), and whether it is little."""
    free = ((np.minimum(x, y) > 4) & (np.maximum(x, y) < 251)).astype(np.float32)
    weight = free.sum(axis=1) + 1.0
    x_mean, y_mean = (x * free).sum(axis=1) / weight, (y * free).sum(axis=1) / weight
    centred = (x - x_mean[:, None]) * free
    # The small terms make a flat picture's gain 1 instead of 0 / 0.
    gain = ((centred * (y - y_mean[:, None])).sum(axis=1) + 1.0) / ((centred**2).sum(axis=1) + 1.0)
    offset = y_mean - x_mean * gain
    rest = (y - np.clip(x * gain[:, None] + offset[:, None], 0, 255)) ** 2
    total = np.sqrt(rest.mean(axis=1))
    side = SIDE // BLOCK
    blocks = rest.reshape(len(rest), side, BLOCK, side, BLOCK, 3).mean(axis=(2, 4, 5))
    worst = np.sqrt(blocks.reshape(len(rest), -1).max(axis=1))
    alike = (gain <= params.max_gain) & (gain >= 1 / params.max_gain) & (np.abs(offset) <= params.max_offset)
    return total, alike & (total <= params.max_difference) & (worst <= params.max_block_difference)


def equal_pairs(keys: Sequence[str | None], splits: Sequence[str | None]) -> list[tuple[int, int]]:
    """Pairs (i < j) of places with equal keys; a None is equal to nothing. Of many with one key, each is
    paired with the first of every split, so that k rows give at most 3k pairs and no leak is lost."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, key in enumerate(keys):
        if key is not None:
            places[key].append(place)
    pairs = set()
    for group in places.values():
        firsts = {splits[place]: place for place in reversed(group)}.values()
        pairs |= {(min(a, b), max(a, b)) for a in firsts for b in group if a != b}
    return sorted(pairs)


def find_copies(
    pairs: Iterable[Pair], splits: Sequence[str | None], *, leaks_keep: Literal["evaluation", "train"]
) -> list[Copy]:
    """From pairs to rows to set aside: within a split the later row, between two splits one side.

    Parameters
    ----------
    splits
        Of every row; a row without one leaks nowhere.
    leaks_keep
        `evaluation`: of a leak, the row of the earlier split (train before validation before test) is
        named, so that the test set stays as it was given. `train`: the row of the later one.
    """
    best: dict[tuple[int, bool], Pair] = {}
    for pair in pairs:
        one, two = splits[pair.first], splits[pair.second]
        leak = one is not None and two is not None and one != two
        row = pair.second
        if leak:
            assert one is not None
            assert two is not None
            first_is_earlier = SPLITS.index(one) < SPLITS.index(two)
            row = pair.first if first_is_earlier == (leaks_keep == "evaluation") else pair.second
        known = best.get((row, leak))
        if known is None or _rank(pair, row) < _rank(known, row):
            best[row, leak] = pair
    return [
        Copy(row, pair.first + pair.second - row, leak, pair.exact, pair.difference, pair.medium)
        for (row, leak), pair in sorted(best.items())
    ]


def _rank(pair: Pair, row: int) -> tuple[bool, bool, float, int]:
    """Of several reasons to name a row the picture's comes first, then the closest, then the earliest row."""
    return pair.medium != "image", not pair.exact, pair.difference, pair.first + pair.second - row
