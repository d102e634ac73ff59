"""Augmentation depends on the row alone, and zeros leave an image as it is."""

from __future__ import annotations

import numpy as np
import torch

from polyweft.training.augment import AugmentParams, augment, draws

OFF = AugmentParams(shift=0, scale=0, rotate=0, flip=False, brightness=0, contrast=0, color=0)
STRONG = AugmentParams(shift=0.2, scale=0.2, rotate=30, flip=True, brightness=0.3, contrast=0.3, color=0.2)
WHITE = torch.ones(3)


def _images(rows: int) -> torch.Tensor:
    return torch.rand(rows, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_zeros_leave_the_image_as_it_is() -> None:
    images = _images(3)
    numbers = torch.from_numpy(draws(3, seed=0, epoch=0))
    assert torch.equal(augment(images, numbers, OFF, WHITE), images)


def test_a_row_is_changed_alike_in_any_batch() -> None:
    images, numbers = _images(6), torch.from_numpy(draws(6, seed=3, epoch=2))
    whole = augment(images, numbers, STRONG, WHITE)
    alone = augment(images[4:5], numbers[4:5], STRONG, WHITE)
    torch.testing.assert_close(whole[4:5], alone)
    assert not torch.allclose(whole, images, atol=0.05)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_an_epoch_draws_other_numbers_than_the_last_and_the_same_again() -> None:
    assert np.array_equal(draws(5, seed=1, epoch=1), draws(5, seed=1, epoch=1))
    assert not np.allclose(draws(5, seed=1, epoch=1), draws(5, seed=1, epoch=2))


def test_what_comes_in_at_the_border_is_the_background() -> None:
    shifted = AugmentParams(shift=0.5, scale=0, rotate=0, flip=False, brightness=0, contrast=0, color=0)
    numbers = torch.zeros(1, 10)
    numbers[0, 3] = 1.0
    out = augment(torch.zeros(1, 3, 16, 16), numbers, shifted, WHITE)
    assert torch.equal(out[0, :, :, -1], torch.ones(3, 16))
    assert torch.equal(out[0, :, :, 0], torch.zeros(3, 16))
