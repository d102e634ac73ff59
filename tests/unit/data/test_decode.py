"""Bytes become arrays one way, and bad bytes become one kind of error."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from polyweft.data.decode import (
    STATISTICS,
    ImageSpec,
    MediaDecodeError,
    decode_image,
    decode_image_uint8,
    normalise,
    probe_image,
)


def spec(size: int = 8, resize: str = "squash", max_pixels: int = 10_000) -> ImageSpec:
    mean, std = STATISTICS["imagenet"]
    return ImageSpec(size, resize, mean, std, [255, 0, 0], max_pixels)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=form, **options)
    return out.getvalue()


def huge_png(side: int) -> bytes:
    """A PNG whose header promises `side` x `side` pixels, in 70 bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"0"))
        + chunk(b"IEND", b"")
    )


def test_decoding_is_normalising_the_uint8_pixels() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    pixels = decode_image_uint8(data, spec())
    assert pixels.shape == (8, 8, 3)
    np.testing.assert_array_equal(decode_image(data, spec()), normalise(pixels[None], spec())[0])
    mean, std = (np.array(values) for values in STATISTICS["imagenet"])
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(decode_image(data, spec()), expected, atol=2e-6)


def test_transparent_pixels_show_the_background() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 255, 0, 0))
    assert decode_image_uint8(encoded(clear), spec())[0, 0].tolist() == [255, 0, 0]
    half = Image.new("RGBA", (4, 4), (0, 0, 255, 128))
    assert decode_image_uint8(encoded(half), spec())[0, 0].tolist() == [127, 0, 128]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255])
    assert decode_image_uint8(encoded(palette, transparency=0), spec())[0, 0].tolist() == [255, 0, 0]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    grey = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    assert decode_image_uint8(encoded(grey), spec())[0, 0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_gives_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((5, 7), 60000, np.uint16)) if mode == "I;16" else Image.new(mode, (7, 5))
    form = "TIFF" if mode == "CMYK" else "PNG"
    assert decode_image_uint8(encoded(image, form), spec()).shape == (8, 8, 3)


def test_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (8, 8), "blue")
    picture.paste((255, 255, 0), (0, 0, 8, 4))  # yellow above
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: yellow on the right
    pixels = decode_image_uint8(encoded(picture, "PNG", exif=exif.tobytes()), spec())
    assert pixels[4, 7].tolist() == [255, 255, 0]
    assert pixels[4, 0].tolist() == [0, 0, 255]


def test_crop_takes_the_middle_and_pad_keeps_all() -> None:
    wide = Image.new("RGB", (30, 10), "blue")
    wide.paste((0, 255, 0), (10, 0, 20, 10))
    cropped = decode_image_uint8(encoded(wide), spec(resize="crop"))
    assert (cropped[:, 2:6] == [0, 255, 0]).all()
    padded = decode_image_uint8(encoded(wide), spec(size=30, resize="pad"))
    assert padded[0, 15].tolist() == [255, 0, 0]
    assert padded[15, 0].tolist() == [0, 0, 255]
    assert padded[15, 15].tolist() == [0, 255, 0]


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_extreme_shapes_stay_small_in_memory(resize: str) -> None:
    line = encoded(Image.new("RGB", (5000, 1), "blue"))
    assert decode_image_uint8(line, spec(resize=resize)).shape == (8, 8, 3)


def test_the_pixel_limit_is_checked_by_the_header() -> None:
    data = huge_png(5000)
    assert probe_image(data)[:3] == ("PNG", 5000, 5000)
    with pytest.raises(MediaDecodeError, match="5000 x 5000 pixels is over the limit of 10000"):
        decode_image(data, spec())
    with pytest.raises(MediaDecodeError, match="limit"):
        probe_image(huge_png(50_000))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO"])
def test_every_format_is_read(form: str) -> None:
    data = encoded(Image.new("RGB", (16, 8), "blue"), form)
    assert probe_image(data)[:3] == ("JPEG" if form == "MPO" else form, 16, 8)
    assert np.abs(decode_image_uint8(data, spec())[4, 4].astype(int) - [0, 0, 255]).max() < 8


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_truncated_image_is_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(MediaDecodeError):
        decode_image(data[: len(data) // 2], spec())


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"GIF89a", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(MediaDecodeError):
        probe_image(data)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]), st.data())
def test_flipped_bytes_never_raise_anything_else(form: str, data: st.DataObject) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    content = bytearray(encoded(Image.fromarray(noise), form))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(MediaDecodeError):
        assert decode_image(bytes(content), spec()).dtype == np.float32


def test_a_spec_goes_through_json() -> None:
    assert ImageSpec.from_dict(spec().to_dict()) == spec()
    with pytest.raises(ValueError, match="resize"):
        spec(resize="stretch")


def test_the_file_imports_nothing_that_serving_lacks() -> None:
    code = (
        "import sys; from polyweft.data import decode; "
        "heavy = {'torch', 'pandas', 'pyarrow', 'pydantic', 'polyweft.errors'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
