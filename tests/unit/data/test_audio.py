"""Clips become the spectrogram that others compute; what is no clip, or is too long, is refused."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.audio import (
    AudioDecodeError,
    MelSpec,
    Reader,
    decode_audio,
    log_mel,
    mel_filters,
    probe_audio,
    resample,
)

RATE = 8000


def wav(samples: Any, *, rate: int = RATE, channels: int = 1) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as handle:
        handle.setnchannels(channels)
        handle.setsampwidth(2)
        handle.setframerate(rate)
        handle.writeframes(np.rint(np.asarray(samples) * 32767).astype("<i2").tobytes())
    return out.getvalue()


def tone(hertz: float, *, rate: int = RATE, seconds: float = 0.5, loud: float = 0.5) -> Any:
    return loud * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def spec(**changes: Any) -> MelSpec:
    fields: dict[str, Any] = {
        **{"rate": RATE, "seconds": 0.5, "mels": 40, "window": 200, "hop": 80, "scale": "slaney"},
        **{"range_db": 80.0, "mean": None, "std": None, "max_seconds": 10.0},
    }
    return MelSpec(**fields | changes)


@pytest.mark.parametrize("scale", ["slaney", "htk"])
def test_filters_and_spectrogram_are_those_of_transformers(scale: str) -> None:
    reference = pytest.importorskip("transformers.audio_utils")
    # Our windows are centred: with a hop of 20 the one that begins with the clip is number 5.
    fine = spec(scale=scale, range_db=200.0, hop=20)
    filters = reference.mel_filter_bank(129, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale=scale)
    np.testing.assert_allclose(mel_filters(fine), filters.T, atol=1e-9)
    samples = (tone(440) + 0.1 * np.random.default_rng(1).normal(size=4000)).astype(np.float32)
    window = reference.window_function(200, "hann")
    options = {"fft_length": 256, "power": 2.0, "center": False, "log_mel": "log10", "mel_filters": filters}
    wanted = reference.spectrogram(samples, window, frame_length=200, hop_length=80, **options)
    ours = log_mel(samples, fine, mel_filters(fine))
    assert ours.shape == (40, fine.frames)
    np.testing.assert_allclose(ours[:, 5::4][:, : wanted.shape[1]], wanted, atol=1e-3)


def test_a_tone_lights_the_band_that_holds_it() -> None:
    settings_ = spec(mels=24)
    filters = mel_filters(settings_)
    bins = np.linspace(0, RATE / 2, filters.shape[1])
    for hertz in (300.0, 1000.0, 2500.0):
        loud = log_mel(tone(hertz).astype(np.float32), settings_, filters).mean(axis=1)
        assert filters[loud.argmax(), np.abs(bins - hertz).argmin()] > 0


@settings(max_examples=20, deadline=None)
@given(
    seconds=st.floats(0.01, 1.2),
    rate=st.sampled_from([4000, 8000, 11025]),
    channels=st.sampled_from([1, 2]),
)
def test_every_clip_becomes_the_same_shape(seconds: float, rate: int, channels: int) -> None:
    reader = Reader(spec().to_dict())
    samples = np.repeat(tone(200, rate=rate, seconds=seconds), channels)
    out = reader.read([wav(samples, rate=rate, channels=channels), wav(tone(300))])
    assert (out.dtype, list(out.shape[1:])) == (np.float32, reader.shape)
    assert np.isfinite(out).all()


def test_loudness_is_taken_out_unless_a_mean_is_given() -> None:
    quiet, loud = (wav(tone(500, loud=loud)) for loud in (0.05, 0.5))
    own = Reader(spec(range_db=30.0).to_dict()).read([quiet, loud])
    np.testing.assert_allclose(own[0], own[1], atol=0.02)
    fixed = Reader(spec(mean=-2.0, std=2.0).to_dict())
    one, two = fixed.read([quiet, loud])
    assert two.max() - one.max() == pytest.approx(1.0, abs=0.02)  # 20 dB are 2 decades, over a std of 2
    np.testing.assert_allclose(fixed.raw(loud), 2.0 * two - 2.0, atol=1e-5)


def test_silence_is_finite_and_no_clip_gives_no_rows() -> None:
    reader = Reader(spec().to_dict())
    assert not reader.read([wav(np.zeros(100))]).any()
    assert reader.read([]).shape == (0, *reader.shape)


def test_a_longer_clip_is_cut_at_its_end() -> None:
    reader = Reader(spec().to_dict())
    longer = np.concatenate([tone(500), tone(2000)])
    np.testing.assert_array_equal(reader.raw(wav(longer)), reader.raw(wav(tone(500))))


def test_a_clip_over_the_limit_is_refused_by_its_header() -> None:
    with pytest.raises(AudioDecodeError, match=r"0\.5 seconds is over the limit of 0\.2"):
        Reader(spec(max_seconds=0.2).to_dict()).raw(wav(tone(500)))


@pytest.mark.parametrize(
    "changes", [{"scale": "bark"}, {"hop": 0}, {"seconds": 0.001}, {"mean": 1.0}, {"mean": 1.0, "std": 0.0}]
)
def test_a_spec_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scale|at least 1|std"):
        spec(**changes)


def test_audio_is_mono_float() -> None:
    left, right = np.full(100, 0.5), np.full(100, -0.25)
    data = wav(np.stack([left, right], 1).reshape(-1), channels=2)
    assert probe_audio(data) == (100, 8000, 2)
    samples, rate = decode_audio(data, None)
    assert (samples.dtype, samples.shape, rate) == (np.float32, (100,), 8000)
    np.testing.assert_allclose(samples, 0.125, atol=1e-3)


def test_resampling_keeps_a_tone_and_drops_what_is_above_the_new_limit() -> None:
    low, high = (tone(hertz, seconds=1.0, loud=1.0).astype(np.float32) for hertz in (440, 3500))
    up = resample(low, 8000, 16000)
    wanted = tone(440, rate=16000, seconds=1.0, loud=1.0)
    np.testing.assert_allclose(up[200:-200], wanted[200:-200], atol=2e-3)
    down = resample(high, 8000, 4000)
    assert len(down) == 4000
    assert np.abs(down[200:-200]).max() < 0.02


@pytest.mark.parametrize("data", [b"", b"\0" * 200, b"RIFF\x24\0\0\0WAVEfmt ", b"ID3" + b"\0" * 50])
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    with pytest.raises(AudioDecodeError):
        probe_audio(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 80))
def test_damaged_bytes_raise_nothing_else(noise: bytes, place: int) -> None:
    whole = wav(tone(300, seconds=0.05))
    with contextlib.suppress(AudioDecodeError):
        Reader(spec().to_dict()).raw(whole[:place] + noise + whole[place + len(noise) :])


def test_a_wav_that_ends_early_is_refused_by_its_header() -> None:
    with pytest.raises(AudioDecodeError, match="cut short"):
        probe_audio(wav(np.zeros(1000))[:-500])


def test_audio_without_samples_or_with_nan_is_refused() -> None:
    import soundfile

    with pytest.raises(AudioDecodeError, match="no samples"):
        decode_audio(wav(np.zeros(0)), None)
    out = io.BytesIO()
    soundfile.write(out, np.full(10, np.nan, np.float32), 8000, format="WAV", subtype="FLOAT")
    with pytest.raises(AudioDecodeError, match="not finite"):
        decode_audio(out.getvalue(), None)


@pytest.mark.parametrize("module", ["audio", "graph", "video"])
def test_readers_import_nothing_that_serving_lacks(module: str) -> None:
    code = (
        f"import sys; from polyweft.data import {module}; "
        "heavy = {'torch', 'pandas', 'pyarrow', 'pydantic', 'polyweft.errors'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
