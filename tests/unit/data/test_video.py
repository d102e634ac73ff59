"""Frames are taken evenly and whole; what is no video, is damaged or over a limit is refused."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.video import Reader, VideoDecodeError, VideoSpec, decode_video, probe_video

CODECS = {"matroska": ("ffv1", "bgr0"), "mp4": ("mpeg4", "yuv420p"), "avi": ("mjpeg", "yuvj444p")}


def clip(
    levels: list[int], *, width: int = 32, height: int = 24, form: str = "matroska", rate: int = 10
) -> bytes:
    """A clip of one grey level a frame, with a white mark on its left half."""
    out = io.BytesIO()
    codec, pixels = CODECS[form]
    with av.open(out, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for place, level in enumerate(levels):
            picture = np.full((height, width, 3), level, np.uint8)
            picture[:, : width // 2, 0] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = place
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def spec(**changes: Any) -> VideoSpec:
    fields: dict[str, Any] = {
        **{"frames": 4, "size": 8, "resize": "squash", "mean": [0.5] * 3, "std": [0.25] * 3},
        **{"max_pixels": 10_000, "max_frames": 100, "max_seconds": 20.0},
    }
    return VideoSpec(**fields | changes)


LEVELS = [10 * n for n in range(16)]


@pytest.mark.parametrize("form", CODECS)
def test_frames_come_from_the_middle_of_their_share(form: str) -> None:
    pixels = decode_video(clip(LEVELS, form=form), spec())
    assert (pixels.dtype, pixels.shape) == (np.uint8, (4, 8, 8, 3))
    np.testing.assert_allclose(pixels[:, 4, 7, 1], [20, 60, 100, 140], atol=6)
    assert (pixels[:, 4, 1, 0] > 240).all()  # red, on the left


def test_a_short_clip_repeats_its_frames() -> None:
    pixels = decode_video(clip([50, 200]), spec(frames=5))
    np.testing.assert_allclose(pixels[:, 4, 7, 1], [50, 50, 200, 200, 200], atol=2)
    assert decode_video(clip([50]), spec())[:, 4, 7, 1].tolist() == [50] * 4


def test_crop_takes_the_middle_square() -> None:
    wide = clip([90], width=48, height=16)
    np.testing.assert_array_equal(decode_video(wide, spec(resize="crop"))[0, :, :4, 0], 255)
    np.testing.assert_array_equal(decode_video(wide, spec(resize="crop"))[0, :, 4:, 0], 90)


def test_the_reader_normalises() -> None:
    reader = Reader(spec().to_dict())
    out = reader.read([clip(LEVELS), clip([255])])
    assert (out.dtype, out.shape) == (np.float32, (2, 4, 3, 8, 8))
    assert list(out.shape[1:]) == reader.shape
    np.testing.assert_allclose(out[1, :, 2], (1.0 - 0.5) / 0.25, atol=1e-5)
    np.testing.assert_allclose(out[0, 1, 1, 4, 7], (60 / 255 - 0.5) / 0.25, atol=0.02)
    assert reader.read([]).shape == (0, *reader.shape)


@pytest.mark.parametrize("form", CODECS)
def test_headers_tell_sides_frames_and_length(form: str) -> None:
    info = probe_video(clip(LEVELS, form=form))
    assert (info.width, info.height, info.frames) == (32, 24, 16)
    assert info.seconds == pytest.approx(1.6, abs=0.11)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_pixels": 700}, "32 x 24 pixels is over the limit of 700"),
        ({"max_frames": 15}, "over 15 frames"),
        ({"max_seconds": 1.0}, r"1\.6 seconds is over the limit of 1 "),
    ],
)
def test_a_clip_over_a_limit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VideoDecodeError, match=message):
        Reader(spec(**changes).to_dict()).raw(clip(LEVELS))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a video at all, but long enough",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"\x1aE\xdf\xa3" + b"\0" * 100,
        b"\0\0\0\x1cftypisom" + b"\0" * 100,
    ],
)
def test_what_is_no_video_is_refused(content: bytes) -> None:
    with pytest.raises(VideoDecodeError):
        probe_video(content)


def test_a_sound_alone_is_no_video() -> None:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(VideoDecodeError, match="no video stream"):
        probe_video(out.getvalue())


@pytest.mark.parametrize(("form", "codec"), [("matroska", b"FFV1"), ("avi", b"MJPG")])
def test_an_unknown_codec_is_refused(form: str, codec: bytes) -> None:
    content = clip(LEVELS, form=form).replace(codec, b"????")
    with pytest.raises(VideoDecodeError, match="unknown codec"):
        decode_video(content, spec())


@pytest.mark.parametrize("form", CODECS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_clip_that_ends_early_is_refused(form: str, share: float) -> None:
    content = clip(LEVELS, form=form)
    with pytest.raises(VideoDecodeError):
        decode_video(content[: int(share * len(content))], spec())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.binary(min_size=1, max_size=40), st.floats(0, 1))
def test_damaged_bytes_give_frames_or_a_refusal(form: str, noise: bytes, place: float) -> None:
    content = clip(LEVELS[:4], form=form)
    at = int(place * (len(content) - len(noise)))
    try:
        pixels = decode_video(content[:at] + noise + content[at + len(noise) :], spec())
    except VideoDecodeError:
        return
    assert pixels.shape == (4, 8, 8, 3)
