"""Augmentation of sound depends on the row alone, and zeros leave a spectrogram as it is."""

from __future__ import annotations

import numpy as np
import torch

from polyweft.training.audio_augment import AudioAugmentParams, audio_draws, augment_audio

STRONG = AudioAugmentParams(shift=0.3, stretch=0.2, pitch=0.2, time_mask=0.2, mel_mask=0.2)


def _clips(rows: int) -> torch.Tensor:
    return torch.randn(rows, 20, 50, generator=torch.Generator().manual_seed(1))


def _half() -> torch.Tensor:
    return torch.full((1, 11), 0.5)


def test_zeros_leave_the_clip_as_it_is() -> None:
    numbers = torch.from_numpy(audio_draws(3, seed=0, epoch=0))
    assert torch.equal(augment_audio(_clips(3), numbers, AudioAugmentParams()), _clips(3))


def test_a_clip_is_changed_alike_in_any_batch() -> None:
    clips, numbers = _clips(6), torch.from_numpy(audio_draws(6, seed=3, epoch=2))
    whole = augment_audio(clips, numbers, STRONG)
    torch.testing.assert_close(whole[4:5], augment_audio(clips[4:5], numbers[4:5], STRONG))
    assert not torch.allclose(whole, clips, atol=0.05)


def test_an_epoch_draws_other_numbers_than_the_last_and_the_same_again() -> None:
    assert np.array_equal(audio_draws(5, seed=1, epoch=1), audio_draws(5, seed=1, epoch=1))
    assert not np.allclose(audio_draws(5, seed=1, epoch=1), audio_draws(5, seed=1, epoch=2))


def test_a_shifted_clip_begins_after_silence_and_keeps_what_follows() -> None:
    clip, numbers = _clips(1), _half()
    out = augment_audio(clip, numbers, AudioAugmentParams(shift=0.4))  # half of 0.4 of 50 windows
    torch.testing.assert_close(out[:, :, :10], clip.amin().expand(1, 20, 10))
    torch.testing.assert_close(out[:, :, 10:], clip[:, :, :-10], rtol=0, atol=1e-4)


def test_tempo_and_pitch_keep_the_first_window_and_the_lowest_band_in_place() -> None:
    peak = torch.zeros(1, 20, 50)
    peak[0, 8, 20] = 1.0
    numbers = _half()
    numbers[0, 1:3] = 0.0  # the slowest and the lowest: what is heard moves away from the begin
    out = augment_audio(peak, numbers, AudioAugmentParams(stretch=0.5, pitch=0.5))
    assert divmod(int(out.argmax()), 50) in {(16, 40), (16, 41), (17, 40), (17, 41)}
    still = augment_audio(peak, _half(), AudioAugmentParams(stretch=0.5, pitch=0.5))
    torch.testing.assert_close(still, peak, rtol=0, atol=1e-5)


def test_masks_put_the_mean_over_whole_bands_and_windows_no_wider_than_asked() -> None:
    clips, numbers = _clips(40), torch.from_numpy(audio_draws(40, seed=5, epoch=0))
    out = augment_audio(clips, numbers, AudioAugmentParams(time_mask=0.2, mel_mask=0.1))
    hidden = out != clips
    assert torch.equal(out[hidden], clips.mean(dim=(1, 2), keepdim=True).expand_as(clips)[hidden])
    assert hidden.all(dim=1).sum(dim=1).max() <= 2 * 10
    assert hidden.all(dim=2).sum(dim=1).max() <= 2 * 2
    assert hidden.any(dim=(1, 2)).sum() > 30
