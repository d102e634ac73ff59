"""Media checks: what opens, what is refused and why, and the flat view of the manifest."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyweft.config import parse_section
from polyweft.data.checks import (
    FLAT,
    ValidateParams,
    check_audio,
    check_graph,
    check_image,
    check_media,
    check_video,
    flat_view,
    invalid_characters,
)
from polyweft.data.media import MediaStore, MediaWriter
from polyweft.data.records import manifest
from polyweft.data.scene_media import clip
from polyweft.data.scenes import sample_scenes
from polyweft.errors import ConfigError

PARAMS = ValidateParams()


def png(width: int = 32, height: int = 24, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8))
    noise.convert(mode).save(out, format="PNG")
    return out.getvalue()


def wav(seconds: float = 0.5, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(round(seconds * rate), np.float32), rate, format="WAV")
    return out.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG that says it is huge and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def test_a_whole_image_is_measured() -> None:
    found = check_image(png(32, 24), PARAMS)
    assert (found.width, found.height, found.fault) == (32, 24, None)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_broken(share: float) -> None:
    whole = png(64, 64)
    fault = check_image(whole[: int(len(whole) * share)], PARAMS).fault
    assert fault is not None
    assert fault[0] == "image_broken"


def test_a_huge_header_is_refused_without_decoding() -> None:
    fault = check_image(header_of(50_000, 50_000), PARAMS).fault
    assert fault is not None
    assert fault[0] in ("image_too_large", "image_broken")
    assert "limit" in fault[1] or "over" in fault[1]


def test_the_pixel_limit_is_a_parameter() -> None:
    params = ValidateParams(image_max_pixels=32 * 24 - 1)
    fault = check_image(png(32, 24), params).fault
    assert fault is not None
    assert fault[0] == "image_too_large"
    assert "32 x 24" in fault[1]


def test_a_mode_that_is_not_listed_is_refused() -> None:
    assert check_image(png(mode="1"), PARAMS).fault == (
        "image_mode",
        "mode 1 is not in validate.image_modes ['L', 'LA', 'P', 'RGB', 'RGBA']",
    )


def test_audio_is_measured_and_cut_audio_is_broken() -> None:
    assert check_audio(wav(0.5), PARAMS).seconds == pytest.approx(0.5)
    fault = check_audio(wav(0.5)[:-100], PARAMS).fault
    assert fault is not None
    assert fault[0] == "audio_broken"


def video() -> bytes:
    return clip(sample_scenes(1, 0)[0], 32, np.random.default_rng(0))


def test_a_clip_is_measured_and_a_damaged_or_oversized_one_refused() -> None:
    found = check_video(video(), PARAMS)
    assert (found.width, found.height, found.seconds, found.fault) == (32, 32, 1.0, None)
    for content, params, check in (
        (video()[:-400], PARAMS, "video_broken"),
        (b"x" * 100, PARAMS, "video_broken"),
        (video(), ValidateParams(video_max_frames=7), "video_broken"),
        (video(), ValidateParams(video_max_pixels=1000), "video_too_large"),
    ):
        fault = check_video(content, params).fault
        assert fault is not None
        assert fault[0] == check
    assert check_video(video(), ValidateParams(video_max_seconds=0.5)).seconds == 1.0  # the suite's to name


def test_a_graph_is_measured_and_a_malformed_one_refused() -> None:
    assert check_graph(b'{"nodes": [{}, {}]}').nodes == 2
    fault = check_graph(b'{"nodes": [{}], "edges": [{"source": 0, "target": 4}]}').fault
    assert fault is not None
    assert (fault[0], "target is 4" in fault[1]) == ("graph_broken", True)


def store_with(folder: Path, image: bytes, audio: bytes) -> tuple[list[dict[str, Any]], MediaStore]:
    with MediaWriter(folder) as writer:
        keys = {"image": writer.add("image", image, "png"), "audio": writer.add("audio", audio, "wav")}
    rows = manifest([{"id": "a", **keys, "captions": [], "source": "test:1"}]).to_pylist()
    return rows, MediaStore(folder)


def test_a_broken_medium_sets_its_row_aside(tmp_path: Path) -> None:
    rows, store = store_with(tmp_path, png()[:100], wav())
    found = check_media(rows, store, PARAMS)
    assert found.rows == []
    assert [(entry["id"], entry["check"]) for entry in found.quarantined] == [("a", "image_broken")]


def test_masking_keeps_the_row_without_the_medium(tmp_path: Path) -> None:
    rows, store = store_with(tmp_path, png()[:100], wav())
    found = check_media(rows, store, ValidateParams(broken_media="mask"))
    assert found.quarantined == []
    assert found.rows[0]["image"] is None
    assert found.rows[0]["audio"] is not None
    assert found.rows[0]["masked"] == ["image"]
    assert found.masked == {"image": 1}


def test_masking_does_not_keep_a_row_with_nothing_left(tmp_path: Path) -> None:
    rows, store = store_with(tmp_path, png()[:100], wav()[:-10])
    found = check_media(rows, store, ValidateParams(broken_media="mask"))
    assert found.rows == []
    assert "image" in found.quarantined[0]["reason"]
    assert "audio" in found.quarantined[0]["reason"]


def test_the_flat_view_has_a_value_a_row_in_every_column(tmp_path: Path) -> None:
    rows, store = store_with(tmp_path, png(32, 16), wav())
    columns = flat_view(rows, check_media(rows, store, PARAMS).measured)
    assert tuple(columns) == FLAT
    assert all(len(values) == 1 for values in columns.values())
    assert columns["image_aspect"] == [2.0]
    assert columns["captions"] == [None]


def test_line_ends_are_text_and_controls_are_not() -> None:
    assert invalid_characters("two\nlines\tand more") == 0
    assert invalid_characters("a\x00b\ufffd\x1b") == 3


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"], exclude_characters="\ufffd")))
def test_plain_text_has_no_invalid_character(text: str) -> None:
    assert invalid_characters(text) == 0


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"image_min_side": 64, "image_max_side": 32}, "image_min_side is above"),
        ({"image_modes": ["RGB", "XYZ"]}, "XYZ"),
        ({"max_quarantined_fraction": 1.5}, "max_quarantined_fraction"),
        (
            {"max_missing": {"imag": 0.1}},
            r"validate.max_missing.imag` is 'imag': there are image, .* split\.",
        ),
        ({"max_missing": {"image": 1.1}}, r"validate.max_missing.image` is 1.1: Input should be less than"),
        ({"required": ["image", "smell"]}, r"required.1` is 'smell': there are image, audio, .* captions, "),
    ],
)
def test_params_that_make_no_sense_are_refused(content: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        parse_section(ValidateParams, "validate", content, where="params.yaml")
