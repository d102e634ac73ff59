"""Bytes to frames: evenly spaced frames of a clip, one way for training, for checks and for serving.

Serving runs this file verbatim in an environment of its own, so it imports the standard library, numpy
(1.26 and 2) and PyAV only, and nothing of Polyweft. A clip's headers are held against the limits before any
frame is decoded.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RESIZE = ("squash", "crop")

# FFmpeg's formats by the first bytes. Naming the format keeps playlists out: those open other files.
_FORMATS = (
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (4, b"ftyp", "mov"),
    (4, b"moov", "mov"),
    (4, b"mdat", "mov"),
    (8, b"AVI ", "avi"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
)
_BITEXACT = 0x40000 | 0x80000  # swscale's ACCURATE_RND and BITEXACT: equal pixels on every processor
_AREA = 0x20  # swscale's averaging over an area, right for making frames smaller

Frames = npt.NDArray[np.uint8]


class VideoDecodeError(ValueError):
    """Bytes that are not a readable clip, or one over a limit; the message says which."""


@dataclass(frozen=True)
class VideoInfo:
    """What a clip's headers say: FFmpeg's name of the format, sides, packets of the video, length."""

    format: str
    width: int
    height: int
    frames: int
    seconds: float


@dataclass(frozen=True)
class VideoSpec:
    """How a clip's bytes become the model's frames; it is saved with the model.

    Attributes
    ----------
    frames
        Frames that are taken, each from the middle of its share of the clip; of a shorter clip, frames
        are repeated.
    size
        Side of the square frames, in pixels.
    resize
        `squash` ignores the aspect ratio, `crop` takes the largest centred square.
    mean, std
        Of each channel, for pixels in [0, 1].
    max_pixels, max_frames, max_seconds
        A clip over one of these is refused before it is decoded.
    """

    frames: int
    size: int
    resize: str
    mean: list[float]
    std: list[float]
    max_pixels: int
    max_frames: int
    max_seconds: float

    def __post_init__(self) -> None:
        if self.resize not in RESIZE:
            raise ValueError(f"resize is {self.resize!r}; expected one of {RESIZE}")
        if min(self.frames, self.size, self.max_pixels, self.max_frames) < 1 or self.max_seconds <= 0:
            raise ValueError("frames, size and every limit must be at least 1")
        if not len(self.mean) == len(self.std) == 3 or min(self.std) <= 0:
            raise ValueError("mean and std need three values each, and std above 0")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class Reader:
    """Modality `video`: encoded bytes to normalised frames; `spec` is `VideoSpec`'s dictionary."""

    tensor = "frames"
    dtype = "float32"
    raw_dtype = "uint8"
    pad = 0

    def __init__(self, spec: dict[str, Any], folder: Path | None = None) -> None:
        self.spec = VideoSpec(**spec)
        self.shape = [self.spec.frames, 3, self.spec.size, self.spec.size]
        self.raw_shape = [self.spec.frames, self.spec.size, self.spec.size, 3]

    def raw(self, content: bytes) -> Frames:
        """uint8 [frames, size, size, 3]; raises `VideoDecodeError`."""
        return decode_video(content, self.spec)

    def finish(self, raw: Frames) -> npt.NDArray[np.float32]:
        """uint8 [B, frames, size, size, 3] to normalised float32 [B, frames, 3, size, size]."""
        scale = 1.0 / (255.0 * np.asarray(self.spec.std))
        shift = np.asarray(self.spec.mean) / np.asarray(self.spec.std)
        scaled = raw * scale.astype(np.float32) - shift.astype(np.float32)
        return np.ascontiguousarray(scaled.transpose(0, 1, 4, 2, 3))

    def read(self, contents: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Encoded clips to float32 [B, frames, 3, size, size]."""
        rows = [self.raw(content) for content in contents]
        return self.finish(np.stack(rows) if rows else np.zeros((0, *self.raw_shape), np.uint8))


def probe_video(data: bytes, *, max_frames: int = 2**20) -> VideoInfo:
    """Read a clip's headers and count its packets; no frame is decoded.

    Raises
    ------
    VideoDecodeError
        The bytes are empty, of no known format, hold no video, end early, or hold over `max_frames`.
    """
    import av

    with _opened(data) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or 0)
        packets, end = 0, 0.0
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                packets += 1
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packets > max_frames:
                    raise VideoDecodeError(f"video holds over {max_frames} frames, which is the limit")
        except av.FFmpegError as error:
            raise _unreadable(data, error) from None
        seconds = _seconds(container, stream)
        alone = len(container.streams) == 1
        # A cut file demuxes without a word; what its header promises tells.
        promised = stream.frames or (math.floor(0.9 * seconds * rate) if alone else 0)
        if packets < promised and (stream.frames or end < 0.9 * seconds):
            raise VideoDecodeError(f"video is cut short: {packets} of about {promised} frames")
        if not packets:
            raise VideoDecodeError("video holds no frames")
        name = str(container.format.name).split(",")[0]
        return VideoInfo(name, stream.width, stream.height, packets, seconds or end)


def decode_video(data: bytes, spec: VideoSpec) -> Frames:
    """Decode `spec.frames` evenly spaced frames to RGB uint8 [frames, size, size, 3].

    Raises
    ------
    VideoDecodeError
        Not a video, damaged, cut short, or over a limit of `spec`.
    """
    import av

    info = probe_video(data, max_frames=spec.max_frames)
    if info.width * info.height > spec.max_pixels:
        raise VideoDecodeError(
            f"video of {info.width} x {info.height} pixels is over the limit of {spec.max_pixels}"
        )
    if info.seconds > spec.max_seconds:
        raise VideoDecodeError(
            f"video of {info.seconds:.1f} seconds is over the limit of {spec.max_seconds:g} seconds"
        )
    wanted = [int((place + 0.5) * info.frames / spec.frames) for place in range(spec.frames)]
    frames: list[Frames] = []
    decoded = 0
    with _opened(data) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1  # several threads may give damaged frames in another order
        try:
            for frame in container.decode(stream):
                if frame.width * frame.height > spec.max_pixels:
                    raise VideoDecodeError(
                        f"a frame of the video is over the limit of {spec.max_pixels} pixels"
                    )
                count = sum(place == decoded for place in wanted)
                if count:
                    frames += [_square(frame, spec)] * count
                decoded += 1
        except av.FFmpegError as error:
            raise _unreadable(data, error) from None
    if not frames:
        raise VideoDecodeError(f"video of {len(data)} bytes holds no frame that can be decoded")
    if decoded < 0.9 * info.frames:
        raise VideoDecodeError(f"video is damaged: {decoded} of {info.frames} frames can be decoded")
    # A few packets of some codecs show nothing: the last frame stands for them.
    frames += [frames[-1]] * (spec.frames - len(frames))
    return np.stack(frames)


def _square(frame: Any, spec: VideoSpec) -> Frames:
    width = height = spec.size
    if spec.resize == "crop":
        least = min(frame.width, frame.height)
        width = max(spec.size, round(frame.width * spec.size / least))
        height = max(spec.size, round(frame.height * spec.size / least))
        if width * height > spec.max_pixels:
            raise VideoDecodeError(f"video of {frame.width} x {frame.height} pixels is too long a strip")
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation=_AREA | _BITEXACT)
    pixels = small.to_ndarray()
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    square: Frames = pixels[top : top + spec.size, left : left + spec.size]
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # a phone held upright
    return np.ascontiguousarray(np.rot90(square, turns))


def _opened(data: bytes) -> Any:
    import av

    if not data:
        raise VideoDecodeError("video is empty (0 bytes)")
    name = next((name for at, magic, name in _FORMATS if data[at : at + len(magic)] == magic), None)
    if name is None:
        raise VideoDecodeError(
            f"video of {len(data)} bytes is of no known format (MP4, MOV, MKV, WebM, AVI, MPEG)"
        )
    try:
        container: Any = av.open(io.BytesIO(data), mode="r", format=name)
    except (av.FFmpegError, ValueError, UnicodeDecodeError) as error:
        raise _unreadable(data, error) from None
    if not container.streams.video:
        container.close()
        raise VideoDecodeError(f"{name} file of {len(data)} bytes holds no video stream")
    if container.streams.video[0].codec_context is None:  # PyAV's way of naming a codec unknown to it
        container.close()
        raise VideoDecodeError(f"{name} file of {len(data)} bytes holds video of an unknown codec")
    return container


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return float(container.duration or 0) / 1e6


def _unreadable(data: bytes, error: Exception) -> VideoDecodeError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return VideoDecodeError(f"video of {len(data)} bytes cannot be read: {reason}")
