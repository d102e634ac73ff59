"""Augmentation depends on the row alone, and zeros leave an image as it is."""

from __future__ import annotations

import numpy as np
import torch

from polyweft.training.augment import NUMBERS, AugmentParams, augment, draws

OFF = AugmentParams(shift=0, scale=0, rotate=0, flip=False, brightness=0, contrast=0, color=0)
STRONG = AugmentParams(
    shift=0.2, scale=0.2, stretch=0.1, rotate=30, shear=0.1, elastic=0.1, flip=True, hue=30, saturation=0.5,
    gray=0.2, brightness=0.3, contrast=0.3, color=0.2, gamma=0.3, cutout=0.5,
)  # fmt: skip
WHITE = torch.ones(3)


def _images(rows: int) -> torch.Tensor:
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_zeros_leave_the_image_as_it_is() -> None:
    images = _images(3)
    numbers = torch.from_numpy(draws(3, seed=0, epoch=0))
    assert torch.equal(augment(images, numbers, OFF, WHITE, 16), images)


def test_a_row_is_changed_alike_in_any_batch() -> None:
    images, numbers = _images(6), torch.from_numpy(draws(6, seed=3, epoch=2))
    whole = augment(images, numbers, STRONG, WHITE, 16)
    alone = augment(images[4:5], numbers[4:5], STRONG, WHITE, 16)
    torch.testing.assert_close(whole[4:5], alone)
    assert not torch.allclose(whole, images, atol=0.05)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_an_epoch_draws_other_numbers_than_the_last_and_the_same_again() -> None:
    assert np.array_equal(draws(5, seed=1, epoch=1), draws(5, seed=1, epoch=1))
    assert not np.allclose(draws(5, seed=1, epoch=1), draws(5, seed=1, epoch=2))


def test_what_comes_in_at_the_border_is_the_background() -> None:
    shifted = AugmentParams(shift=0.5, scale=0, rotate=0, flip=False, brightness=0, contrast=0, color=0)
    numbers = torch.zeros(1, NUMBERS)
    numbers[0, 3] = 1.0
    out = augment(torch.zeros(1, 3, 16, 16), numbers, shifted, WHITE, 16)
    assert torch.equal(out[0, :, :, -1], torch.ones(3, 16))
    assert torch.equal(out[0, :, :, 0], torch.zeros(3, 16))


def test_a_smaller_side_is_the_mean_over_pixels() -> None:
    out = augment(torch.full((1, 3, 16, 16), 0.25), torch.zeros(1, NUMBERS), OFF, WHITE, 8)
    torch.testing.assert_close(out, torch.full((1, 3, 8, 8), 0.25))


def test_turning_the_hue_leaves_grey_as_it_is_and_keeps_red_from_being_red() -> None:
    turned = AugmentParams(hue=120.0)
    numbers = torch.ones(1, NUMBERS)
    grey = torch.full((1, 3, 4, 4), 0.4)
    torch.testing.assert_close(augment(grey, numbers, turned, WHITE, 4), grey)
    red = torch.zeros(1, 3, 4, 4)
    red[:, 0] = 1.0
    assert augment(red, numbers, turned, WHITE, 4)[0, 0].max() < 0.01


def test_without_colour_all_channels_are_equal() -> None:
    out = augment(_images(2), -torch.ones(2, NUMBERS), AugmentParams(gray=1.0), WHITE, 16)
    torch.testing.assert_close(out[:, 0], out[:, 1])
    torch.testing.assert_close(out[:, 1], out[:, 2])


def test_a_cover_hides_a_patch_with_one_colour() -> None:
    numbers = torch.zeros(1, NUMBERS)
    numbers[0, 10] = -1.0
    out = augment(_images(1), numbers, AugmentParams(cutout=1.0), WHITE, 16)
    assert torch.equal(out[0, :, 6:10, 6:10], torch.full((3, 4, 4), 0.5))
    assert torch.equal(out[0, :, 0], _images(1)[0, :, 0])


def test_everything_is_computed_where_the_images_are() -> None:
    # The device without values takes part in no operation with a tensor of another.
    images, numbers = _images(3).to("meta"), torch.zeros(3, NUMBERS, device="meta")
    assert augment(images, numbers, STRONG, WHITE.to("meta"), 16).device.type == "meta"
