"""Bytes to sound: clips and their log-mel spectrograms, one way for training, for checks and for serving.

Serving runs this file verbatim in an environment of its own, so it imports the standard library, numpy
(1.26 and 2) and soundfile only, and nothing of Polyweft.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_AUDIO_SAMPLES = 2**28
"""Longest clip that is decoded, in samples over all channels (46 minutes of stereo at 48 kHz)."""

MEL_SCALES = ("slaney", "htk")
_LEAST = 1e-10  # below it, energy counts as silence
_SIGNATURES = (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS", b"ID3", b"caff", b".snd")

Floats = npt.NDArray[np.float32]


class AudioDecodeError(ValueError):
    """Bytes that are not a readable clip, or one over the limit; the message says which."""


@dataclass(frozen=True)
class MelSpec:
    """How a clip's bytes become the model's log-mel spectrogram; it is saved with the model.

    Attributes
    ----------
    rate
        Samples a second to which every clip is brought.
    seconds
        Length of every clip: a longer one is cut at its end, a shorter one is followed by silence.
    mels
        Bands, from 0 Hz to half the rate.
    window, hop
        Length and distance of the windows, in samples at `rate`.
    scale
        `slaney` (linear below 1 kHz, then logarithmic) or `htk` (2595 log10(1 + f / 700)).
    range_db
        Energies more than this below a clip's loudest are raised to that level.
    mean, std
        Of log10 energies; None: each clip's own, so that its loudness does not matter.
    max_seconds
        A longer clip is refused by its header.
    """

    rate: int
    seconds: float
    mels: int
    window: int
    hop: int
    scale: str
    range_db: float
    mean: float | None
    std: float | None
    max_seconds: float

    def __post_init__(self) -> None:
        if self.scale not in MEL_SCALES:
            raise ValueError(f"scale is {self.scale!r}; expected one of {MEL_SCALES}")
        if min(self.rate, self.mels, self.window, self.hop) < 1 or self.samples < self.window:
            raise ValueError(
                f"rate {self.rate}, mels {self.mels}, window {self.window}, hop {self.hop}: at least 1 each, "
                f"and a window must fit in the {self.samples} samples of a clip"
            )
        if (self.mean is None) != (self.std is None) or (self.std is not None and self.std <= 0):
            raise ValueError("mean and std must both be given, std above 0, or both be None")

    @property
    def samples(self) -> int:
        """Samples of every clip."""
        return round(self.rate * self.seconds)

    @property
    def frames(self) -> int:
        """Windows of every clip."""
        return 1 + self.samples // self.hop

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class Reader:
    """Modality `audio`: encoded bytes to a log-mel spectrogram; `spec` is `MelSpec`'s dictionary."""

    tensor = "log_mel"
    dtype = raw_dtype = "float32"
    pad = 0

    def __init__(self, spec: dict[str, Any], folder: Path | None = None) -> None:
        self.spec = MelSpec(**spec)
        self.shape = self.raw_shape = [self.spec.mels, self.spec.frames]
        self._filters = mel_filters(self.spec)

    def raw(self, content: bytes) -> Floats:
        """log10 energies, float32 [mels, frames]; raises `AudioDecodeError`."""
        spec = self.spec
        samples, _ = decode_audio(content, spec.rate, max_seconds=spec.max_seconds)
        fixed = np.zeros(spec.samples, np.float32)
        length = min(len(samples), spec.samples)
        fixed[:length] = samples[:length]
        return log_mel(fixed, spec, self._filters)

    def finish(self, raw: Floats) -> Floats:
        """log10 energies [B, mels, frames], normalised."""
        mean, std = self.spec.mean, self.spec.std
        if mean is None or std is None:
            wide = raw.astype(np.float64)
            centred = wide - wide.mean(axis=(1, 2), keepdims=True)
            # Silence has no deviation; a thousandth of a decade is below what any clip has.
            scaled = centred / np.maximum(wide.std(axis=(1, 2), keepdims=True), 1e-3)
            return np.asarray(scaled, np.float32)
        normalised: Floats = ((raw - mean) / std).astype(np.float32)
        return normalised

    def read(self, contents: Sequence[bytes]) -> Floats:
        """Encoded clips to float32 [B, mels, frames]."""
        rows = [self.raw(content) for content in contents]
        return self.finish(np.stack(rows) if rows else np.zeros((0, *self.shape), np.float32))


def mel_filters(spec: MelSpec) -> npt.NDArray[np.float64]:
    """Triangular filters [mels, bins] of equal area over the bins of a transform of `spec`'s windows.

    The mel scales are those of Slaney (Auditory Toolbox, 1998) and of the Hidden Markov Model Toolkit
    (Young et al., The HTK Book, 2006); each triangle is scaled to unit area, as Slaney does.
    """
    bins = np.linspace(0.0, spec.rate / 2, _size(spec.window) // 2 + 1)
    top = _to_mel(np.array([spec.rate / 2.0]), spec.scale)[0]
    edges = _to_hertz(np.linspace(0.0, top, spec.mels + 2), spec.scale)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    filters: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (high - low))
    return filters


def log_mel(samples: Floats, spec: MelSpec, filters: npt.NDArray[np.float64]) -> Floats:
    """log10 of the mel energies of float32 [samples], as float32 [mels, frames].

    The short-time Fourier transform has centred, periodic Hann windows; the clip is followed and preceded
    by half a window of silence. As in Whisper (Radford et al., 2022), energies far below the clip's
    loudest are raised to a floor.
    """
    size = _size(spec.window)
    # float64 throughout: numpy 1 transforms in it whatever comes, and numpy 2 does not.
    padded = np.pad(samples.astype(np.float64), (spec.window // 2, spec.window))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spec.window)[:: spec.hop][: spec.frames]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(spec.window) / spec.window)
    power = np.abs(np.fft.rfft(windows * hann, n=size, axis=1)) ** 2
    logs = np.log10(np.maximum(filters @ power.T, _LEAST))
    floored: Floats = np.maximum(logs, logs.max() - spec.range_db / 10).astype(np.float32)
    return floored


def probe_audio(data: bytes) -> tuple[int, int, int]:
    """Read a clip's header only: frames, rate in Hz, channels.

    Raises
    ------
    AudioDecodeError
        The bytes are empty, of no known format, or a WAV whose samples end before its header says.
    """
    import soundfile

    _refuse_unsigned(data)
    _refuse_short_wav(data)
    try:
        info = soundfile.info(io.BytesIO(data))
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError) as error:
        raise _unreadable(data, error) from None
    return int(info.frames), int(info.samplerate), int(info.channels)


def decode_audio(data: bytes, rate: int | None, *, max_seconds: float | None = None) -> tuple[Floats, int]:
    """Decode WAV, FLAC, OGG or MP3 to mono float32 [samples] in [-1, 1], and its rate in Hz.

    Channels are averaged. With `rate`, the clip is resampled to it; `None` keeps the clip's own.

    Raises
    ------
    AudioDecodeError
        Not audio, cut short, without samples, not finite, longer than `max_seconds` or `MAX_AUDIO_SAMPLES`.
    """
    import soundfile

    frames, own_rate, channels = probe_audio(data)
    if frames * channels > MAX_AUDIO_SAMPLES:
        raise AudioDecodeError(f"audio of {frames} frames x {channels} channels is over {MAX_AUDIO_SAMPLES}")
    if max_seconds is not None and frames > max_seconds * own_rate:
        raise AudioDecodeError(
            f"audio of {frames / own_rate:.1f} seconds is over the limit of {max_seconds:g} seconds"
        )
    try:
        samples, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise _unreadable(data, error) from None
    mono: Floats = samples.mean(axis=1, dtype=np.float32)
    if not len(mono):
        raise AudioDecodeError("audio holds no samples")
    if not np.isfinite(mono).all():
        raise AudioDecodeError("audio holds samples that are not finite numbers")
    if rate is None or rate == own_rate:
        return mono, own_rate
    return resample(mono, own_rate, rate), rate


def resample(samples: Floats, from_rate: int, to_rate: int, *, crossings: int = 16) -> Floats:
    """Resample float32 [n] to float32 [ceil(n * to_rate / from_rate)] by a Hann-windowed sinc.

    Band-limited interpolation (J. O. Smith, "Digital Audio Resampling Home Page", CCRMA): the cut-off is
    the lower of the two Nyquist frequencies, and the filter spans `crossings` zero crossings a side.
    """
    count = -(-len(samples) * to_rate // from_rate)
    cutoff = min(1.0, to_rate / from_rate)
    reach = int(np.ceil(crossings / cutoff))
    padded = np.pad(samples, (reach, reach + 1)).astype(np.float64)
    out = np.empty(count, dtype=np.float32)
    offsets = np.arange(-reach + 1, reach + 1)
    for begin in range(0, count, 65536):  # bounds the memory of the (outputs, taps) matrix
        times = np.arange(begin, min(begin + 65536, count)) * (from_rate / to_rate)
        whole = np.floor(times).astype(np.int64)
        distance = (times - whole)[:, None] - offsets
        window = np.where(np.abs(distance) < reach, 0.5 + 0.5 * np.cos(np.pi * distance / reach), 0.0)
        weights = cutoff * np.sinc(cutoff * distance) * window
        out[begin : begin + len(times)] = (padded[whole[:, None] + offsets + reach] * weights).sum(axis=1)
    return out


def _size(window: int) -> int:
    """The transform's length: the power of two that holds a window."""
    return 1 << (window - 1).bit_length()


def _to_mel(hertz: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(2595.0 * np.log10(1.0 + hertz / 700.0))
    above = 15.0 + np.log(np.maximum(hertz, 1000.0) / 1000.0) * (27.0 / np.log(6.4))
    return np.where(hertz < 1000.0, hertz * 3.0 / 200.0, above)


def _to_hertz(mels: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return np.asarray(700.0 * (10.0 ** (mels / 2595.0) - 1.0))
    above = 1000.0 * np.exp((np.maximum(mels, 15.0) - 15.0) * (np.log(6.4) / 27.0))
    return np.where(mels < 15.0, mels * 200.0 / 3.0, above)


def _unreadable(data: bytes, error: Exception) -> AudioDecodeError:
    reason = str(error).split("<_io")[0].strip().rstrip(":") or type(error).__name__
    return AudioDecodeError(f"audio of {len(data)} bytes cannot be read: {reason}")


def _refuse_unsigned(data: bytes) -> None:
    """Without this, libsndfile tries any bytes as MP3 and prints its search for a frame on standard error."""
    if not data:
        raise AudioDecodeError("audio is empty (0 bytes)")
    frame = len(data) > 1 and data[0] == 0xFF and data[1] >= 0xE0
    if not frame and not data.startswith(_SIGNATURES):
        raise AudioDecodeError(f"audio of {len(data)} bytes is of no known format (WAV, FLAC, OGG, MP3)")


def _refuse_short_wav(data: bytes) -> None:
    """libsndfile reads a cut WAV as a shorter one without a word; its chunk sizes tell."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    place = 12
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name == b"data":
            left = len(data) - place - 8
            if left < size and size < 0xFFFFFF00:  # streams write a size near 2**32, meaning unknown
                raise AudioDecodeError(f"audio is cut short: {left} of {size} bytes of samples")
            return
        place += 8 + size + size % 2
