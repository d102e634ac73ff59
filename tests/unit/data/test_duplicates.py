"""Near copies are found whatever their brightness, twins that differ in a detail are not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from polyweft.data.duplicates import (
    Copy,
    NearParams,
    Pair,
    Pixels,
    equal_pairs,
    find_copies,
    near_pairs,
    perceptual_hashes,
    shrink,
)


def picture(seed: int, side: int = 64) -> Pixels:
    """A smooth coloured picture with a few shapes."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, (5, 5, 3)).astype(np.uint8))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.integers(0, side - 16, 2)
        pen.ellipse([x, y, x + 14, y + 14], fill=tuple(int(v) for v in rng.integers(0, 255, 3)))
    return np.asarray(image)


def pairs_of(*pictures: Pixels, params: NearParams | None = None) -> list[tuple[int, int]]:
    small = shrink(np.stack(pictures))
    return [(i, j) for i, j, _ in near_pairs(small, params or NearParams())]


@given(st.integers(0, 500), st.sampled_from([0.9, 0.95, 1.05, 1.15]))
@settings(max_examples=25, deadline=None)
def test_a_brighter_or_darker_copy_is_near(seed: int, gain: float) -> None:
    one = picture(seed)
    two = np.clip(np.rint(one * gain), 0, 255).astype(np.uint8)
    assert pairs_of(one, two) == [(0, 1)]
    assert pairs_of(two, one) == [(0, 1)]


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_copy_is_near_and_another_picture_is_not(seed: int) -> None:
    one = picture(seed)
    noise = np.random.default_rng(seed).normal(0, 3, one.shape)
    noisy = np.clip(one + noise, 0, 255).astype(np.uint8)
    assert pairs_of(one, picture(seed + 100), noisy) == [(0, 2)]


@pytest.mark.parametrize("seed", range(5))
def test_a_twin_with_another_detail_is_not_near(seed: int) -> None:
    one = picture(seed)
    twin = one.copy()
    twin[20:28, 20:28] = 255 - twin[20:28, 20:28]  # an eighth of each side
    assert pairs_of(one, twin) == []


def test_flat_pictures_of_other_colours_are_not_near() -> None:
    red, blue = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64, 3), np.uint8)
    red[..., 0], blue[..., 2] = 200, 200
    assert pairs_of(red, blue) == []
    assert pairs_of(red, red.copy()) == [(0, 1)]


def test_equal_pictures_differ_by_nothing() -> None:
    small = shrink(np.stack([picture(1), picture(1)]))
    assert near_pairs(small, NearParams()) == [(0, 1, 0.0)]


def test_ten_thousand_pictures_take_seconds() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (10_000, 32, 32, 3)).astype(np.uint8)
    small[9_999] = small[17]
    begin = time.process_time()
    assert near_pairs(small, NearParams()) == [(17, 9_999, 0.0)]
    assert time.process_time() - begin < 20


def test_hashes_do_not_see_brightness() -> None:
    small = shrink(np.stack([picture(3) // 2 + 20, picture(3) // 2 + 60]))
    one, two = perceptual_hashes(small)
    assert int(np.bitwise_count(one ^ two)) <= 2


def test_shrinking_averages() -> None:
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    pixels[:, ::2] = 100
    assert np.unique(shrink(pixels)).tolist() == [50]
    with pytest.raises(ValueError, match="multiple"):
        shrink(np.zeros((1, 40, 40, 3), np.uint8))


def test_equal_keys_pair_with_the_first_of_every_split() -> None:
    keys = ["k", None, "k", "k", "other", None]
    splits = ["train", "train", "train", "test", "train", "train"]
    assert equal_pairs(keys, splits) == [(0, 2), (0, 3), (2, 3)]


def test_within_a_split_the_later_row_is_the_copy() -> None:
    pairs = [Pair(0, 1, False, 2.0), Pair(0, 2, True, 0.0), Pair(1, 2, False, 2.0)]
    found = find_copies(pairs, ["train", None, "train"], leaks_keep="evaluation")
    assert found == [Copy(1, 0, False, False, 2.0), Copy(2, 0, False, True, 0.0)]


@pytest.mark.parametrize(("keep", "row"), [("evaluation", 1), ("train", 0)])
def test_a_leak_names_the_side_that_does_not_stay(keep: str, row: int) -> None:
    pairs = [Pair(0, 1, True, 0.0)]
    found = find_copies(pairs, ["test", "train"], leaks_keep=keep)  # type: ignore[arg-type]
    assert found == [Copy(row, 1 - row, True, True, 0.0)]
