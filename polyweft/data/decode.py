"""Image bytes to arrays, one way for training, for checks and for serving.

Serving runs this file verbatim in an environment of its own, so it imports the standard library, numpy
(1.26 and 2) and Pillow only, and nothing of Polyweft. An image's header is checked before its
pixels are decoded, and whatever a decoder raises on bad bytes becomes a `MediaDecodeError`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Formats that are read (MPO with JPEG). Those that start programs (EPS) are left out on purpose."""

RESIZE = ("squash", "crop", "pad")

STATISTICS: dict[str, tuple[list[float], list[float]]] = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "half": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}
"""Channel means and standard deviations of pixels in [0, 1]: ImageNet's, CLIP's, and plain [-1, 1]."""

_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    AttributeError,
    OverflowError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class MediaDecodeError(ValueError):
    """Bytes that are not a readable image, or one over the limit; the message says which."""


@dataclass(frozen=True)
class ImageSpec:
    """How an image's bytes become the model's pixels; it is saved with the model.

    Attributes
    ----------
    size
        Side of the square result, in pixels.
    resize
        `squash` ignores the aspect ratio, `crop` takes the largest centred square, `pad` keeps all of
        the image and fills the rest with `background`.
    mean, std
        Of each channel, for pixels in [0, 1]; see `STATISTICS`.
    background
        RGB in 0..255, laid under transparent pixels.
    max_pixels
        Width times height above which an image is refused by its header.
    """

    size: int
    resize: str
    mean: list[float]
    std: list[float]
    background: list[int]
    max_pixels: int

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_pixels < 1:
            raise ValueError(f"size {self.size} and max_pixels {self.max_pixels} must be at least 1")
        if self.resize not in RESIZE:
            raise ValueError(f"resize is {self.resize!r}; expected one of {RESIZE}")
        if not len(self.mean) == len(self.std) == len(self.background) == 3 or min(self.std) <= 0:
            raise ValueError("mean, std and background need three values each, and std above 0")
        if not all(0 <= value <= 255 for value in self.background):
            raise ValueError(f"background is {self.background}; expected values of 0 to 255")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ImageSpec:
        """The inverse of `to_dict`."""
        return cls(**content)


class Reader:
    """Modality `image`: encoded bytes to normalised pixels; `spec` is `ImageSpec`'s dictionary."""

    tensor = "pixel_values"
    dtype = "float32"
    raw_dtype = "uint8"
    pad = 0

    def __init__(self, spec: dict[str, Any], folder: Path | None = None) -> None:
        self.spec = ImageSpec.from_dict(spec)
        self.shape = [3, self.spec.size, self.spec.size]
        self.raw_shape = [self.spec.size, self.spec.size, 3]

    def raw(self, content: bytes) -> npt.NDArray[np.uint8]:
        """uint8 [size, size, 3]; raises `MediaDecodeError`."""
        return decode_image_uint8(content, self.spec)

    def finish(self, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [B, size, size, 3] to float32 [B, 3, size, size]."""
        return normalise(raw, self.spec)

    def read(self, contents: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Encoded images to float32 [B, 3, size, size]."""
        rows = [self.raw(content) for content in contents]
        return self.finish(np.stack(rows) if rows else np.zeros((0, *self.raw_shape), np.uint8))


def probe_image(data: bytes) -> tuple[str, int, int, str]:
    """Read an image's header only: format (`PNG`), width, height, mode (`RGBA`). Pixels are not decoded.

    Raises
    ------
    MediaDecodeError
        The bytes are empty, of no known format, or so large that Pillow refuses the header.
    """
    with _faults(data), Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        return str(image.format), image.width, image.height, image.mode


def decode_image(data: bytes, spec: ImageSpec) -> npt.NDArray[np.float32]:
    """Decode to normalised float32 [3, size, size]; see `decode_image_uint8` for what is raised."""
    pixels: npt.NDArray[np.float32] = normalise(decode_image_uint8(data, spec)[None], spec)[0]
    return pixels


def decode_image_uint8(data: bytes, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """Decode to RGB uint8 [size, size, 3].

    EXIF orientation is applied, 16-bit images are scaled to 8 bits, and transparent pixels are laid over
    `spec.background` before resizing (bicubic, antialiased). Of an animation, the first frame is taken.

    Raises
    ------
    MediaDecodeError
        Not an image, truncated, or over `spec.max_pixels` (which the header tells, before decoding).
    """
    with _faults(data), Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
        if image.width * image.height > spec.max_pixels:
            raise MediaDecodeError(
                f"image of {image.width} x {image.height} pixels is over the limit of {spec.max_pixels}"
            )
        image.draft(None, (2 * spec.size, 2 * spec.size))  # a large JPEG is reduced while it is decoded
        image.load()
        rgb = _flatten(ImageOps.exif_transpose(image), spec.background)
        return np.array(_resize(rgb, spec), dtype=np.uint8)


def normalise(images_BSS3: npt.NDArray[np.uint8], spec: ImageSpec) -> npt.NDArray[np.float32]:
    """(x / 255 - mean) / std of uint8 [B, S, S, 3] as contiguous float32 [B, 3, S, S]."""
    batch, height, width, _ = images_BSS3.shape
    out = np.empty((batch, 3, height, width), dtype=np.float32)
    for channel in range(3):
        scale = np.float32(1.0 / (255.0 * spec.std[channel]))
        shift = np.float32(spec.mean[channel] / spec.std[channel])
        plane = out[:, channel]
        np.multiply(images_BSS3[..., channel], scale, out=plane, dtype=np.float32)
        np.subtract(plane, shift, out=plane)
    return out


@contextmanager
def _faults(data: bytes) -> Iterator[None]:
    if not data:
        raise MediaDecodeError("image is empty (0 bytes)")
    try:
        yield
    except MediaDecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise MediaDecodeError(f"image is over the pixel limit: {error}") from None
    except _FAULTS as error:
        reason = str(error).split("<_io")[0].strip().rstrip(":") or type(error).__name__
        raise MediaDecodeError(f"image of {len(data)} bytes cannot be read: {reason}") from None


def _flatten(image: Image.Image, background: list[int]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image).astype(np.float64)
        top = 65535.0 if image.mode.startswith("I") else (1.0 if wide.max(initial=0.0) <= 1.0 else 255.0)
        narrow = np.rint(np.clip(np.nan_to_num(wide) / top, 0.0, 1.0) * 255.0).astype(np.uint8)
        return Image.fromarray(narrow).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        under = Image.new("RGBA", rgba.size, (background[0], background[1], background[2], 255))
        return Image.alpha_composite(under, rgba).convert("RGB")
    return image.convert("RGB")


def _resize(image: Image.Image, spec: ImageSpec) -> Image.Image:
    size, filter_ = spec.size, Image.Resampling.BICUBIC
    width, height = image.size
    if spec.resize == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        # `box` reads the square alone: cropping after resizing would blow a 1 x 10,000 image up first.
        return image.resize((size, size), filter_, box=(left, top, left + side, top + side))
    if spec.resize == "pad" and width != height:
        scale = size / max(width, height)
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        red, green, blue = spec.background
        canvas = Image.new("RGB", (size, size), (red, green, blue))
        canvas.paste(image.resize(inner, filter_), ((size - inner[0]) // 2, (size - inner[1]) // 2))
        return canvas
    return image if image.size == (size, size) else image.resize((size, size), filter_)
