"""Checks of media by themselves: whether each opens fully, and what the manifest's rows look like flat.

`check_media` decodes every medium once. `flat_view` turns the manifest and what was measured into plain
columns, which `polyweft.data.expectations` holds against a Great Expectations suite.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from polyweft.config import Section
from polyweft.data import audio, decode, graph, video
from polyweft.data.media import MediaStore
from polyweft.modalities import MEDIA, medium_or, reader_module
from polyweft.progress import track

IMAGE_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of 16 and 32 bits a channel."""

MAY_LACK = ("captions", "label", "split")
"""What `max_missing` may name besides the media."""

Present = Annotated[str, AfterValidator(medium_or("captions", "label", "labels", "target", "group", "split"))]
MayLack = Annotated[str, AfterValidator(medium_or(*MAY_LACK))]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class ValidateParams(Section):
    """Section `validate`: what a row must hold, the ranges of its values, and how much may fail."""

    broken_media: Literal["quarantine", "mask"] = Field(
        default="quarantine", description="mask: keep a row without its broken medium while others are left"
    )
    required: list[Present] = Field(default=[], description="rows without one of these are quarantined")
    max_missing: dict[MayLack, Share] = Field(
        default={}, description="largest share of rows that may lack something; above it the stage fails"
    )
    min_rows: int = Field(default=1, ge=1, description="rows that must be left")
    min_labels: int = Field(default=0, ge=0, description="distinct labels that must be left; 0: none")
    labels: list[str] | None = Field(default=None, min_length=1, description="allowed labels; null: any")
    image_min_side: int = Field(default=8, ge=1, le=100_000)
    image_max_side: int = Field(default=8192, ge=1, le=100_000)
    image_max_aspect: float = Field(default=4.0, ge=1.0, description="longer side over shorter side")
    image_max_pixels: int = Field(
        default=40_000_000, ge=1, le=10**9, description="told by the header, before pixels are decoded"
    )
    image_modes: list[str] = Field(default=["L", "LA", "P", "RGB", "RGBA"], min_length=1)
    audio_min_seconds: float = Field(default=0.05, ge=0.0)
    audio_max_seconds: float = Field(default=60.0, gt=0.0, le=86_400.0)
    audio_min_rate: int = Field(default=8_000, ge=1, description="Hz")
    audio_max_rate: int = Field(default=192_000, ge=1, description="Hz")
    video_max_pixels: int = Field(default=8_294_400, ge=1, le=10**9, description="of a frame; 3840 x 2160")
    video_max_frames: int = Field(default=36_000, ge=1, le=10**6)
    video_min_seconds: float = Field(default=0.05, ge=0.0)
    video_max_seconds: float = Field(default=600.0, gt=0.0, le=86_400.0)
    graph_max_nodes: int = Field(default=256, ge=1, le=100_000)
    caption_max_characters: int = Field(default=2_000, ge=1)
    caption_max_invalid: int = Field(
        default=0, ge=0, description="control, private, unassigned and replacement characters in a caption"
    )
    captions_max: int = Field(default=100, ge=1, description="captions of one row")
    max_quarantined_fraction: float = Field(
        default=0.1, ge=0.0, le=1.0, description="of the source's rows, those set aside by ingest included"
    )
    workers: int = Field(default=2, ge=1, le=256, description="threads that decode")

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> ValidateParams:
        for low, high in (
            ("image_min_side", "image_max_side"),
            ("audio_min_seconds", "audio_max_seconds"),
            ("audio_min_rate", "audio_max_rate"),
            ("video_min_seconds", "video_max_seconds"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low} is above {high}")
        unknown = sorted(set(self.image_modes) - {*IMAGE_MODES, *WIDE_MODES})
        if unknown:
            raise ValueError(f"image_modes has {unknown}; Pillow's modes are {[*IMAGE_MODES, *WIDE_MODES]}")
        return self


@dataclass(frozen=True)
class Measured:
    """What was found on one medium: `fault` is (check, reason) where it cannot be used, else None."""

    width: int | None = None
    height: int | None = None
    seconds: float | None = None
    rate: int | None = None
    nodes: int | None = None
    fault: tuple[str, str] | None = None


@dataclass
class MediaCheck:
    """What `check_media` answers: the rows that are left, what was set aside, and measures by media key."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    masked: dict[str, int] = field(default_factory=dict)
    measured: dict[str, Measured] = field(default_factory=dict)


def check_image(content: bytes, params: ValidateParams) -> Measured:
    """Read the header, hold it against the limits, then decode every pixel."""
    try:
        _, width, height, mode = decode.probe_image(content)
        if width * height > params.image_max_pixels:
            reason = f"{width} x {height} pixels are over validate.image_max_pixels {params.image_max_pixels}"
            return Measured(width, height, fault=("image_too_large", reason))
        if mode not in params.image_modes:
            reason = f"mode {mode} is not in validate.image_modes {params.image_modes}"
            return Measured(width, height, fault=("image_mode", reason))
        mean, std = decode.STATISTICS["half"]
        spec = decode.ImageSpec(8, "squash", mean, std, [255, 255, 255], params.image_max_pixels)
        decode.decode_image_uint8(content, spec)
    except decode.MediaDecodeError as error:
        return Measured(fault=("image_broken", str(error)))
    return Measured(width, height)


def check_audio(content: bytes, params: ValidateParams) -> Measured:
    """Read the header, refuse a clip far over the limit, then decode every sample.

    A clip of four times `audio_max_seconds` is not decoded; the suite names it by its length.
    """
    try:
        frames, rate, _ = audio.probe_audio(content)
        if frames <= 4 * params.audio_max_seconds * rate:
            frames = len(audio.decode_audio(content, None)[0])
    except audio.AudioDecodeError as error:
        return Measured(fault=("audio_broken", str(error)))
    return Measured(seconds=frames / rate, rate=rate)


def check_video(content: bytes, params: ValidateParams) -> Measured:
    """Read the headers, then decode every frame; a clip over a limit is not decoded.

    A clip over `video_max_seconds` is not decoded; the suite names it by its length.
    """
    half = [0.5, 0.5, 0.5]
    try:
        info = video.probe_video(content, max_frames=params.video_max_frames)
        if info.width * info.height > params.video_max_pixels:
            reason = f"{info.width} x {info.height} pixels are over validate.video_max_pixels"
            return Measured(info.width, info.height, fault=("video_too_large", reason))
        if info.seconds <= params.video_max_seconds:
            limits = (params.video_max_pixels, params.video_max_frames, params.video_max_seconds)
            video.decode_video(content, video.VideoSpec(1, 8, "squash", half, half, *limits))
    except video.VideoDecodeError as error:
        return Measured(fault=("video_broken", str(error)))
    return Measured(info.width, info.height, seconds=info.seconds)


def check_graph(content: bytes) -> Measured:
    """Hold a scene graph against its schema, see `polyweft.data.graph`."""
    try:
        return Measured(nodes=len(graph.parse_graph(content).nodes))
    except graph.GraphDecodeError as error:
        return Measured(fault=("graph_broken", str(error)))


def check_by_reader(kind: str, content: bytes) -> Measured:
    """Ask the file that holds a modality's reader, where there are no limits of ours to hold it against."""
    try:
        reader_module(kind).check(content)
    except ValueError as error:
        return Measured(fault=(f"{kind}_broken", str(error)))
    return Measured()


def check_media(rows: Iterable[dict[str, Any]], store: MediaStore, params: ValidateParams) -> MediaCheck:
    """Open every medium of `rows` fully, each key once, and set aside or mask the rows with broken ones."""
    out = MediaCheck()
    rows = list(rows)
    with ThreadPoolExecutor(params.workers) as pool:
        for batch in track(list(_batches(_media_keys(rows), 256)), "opening media"):
            contents = [(key, store.read(key)) for key in batch]  # one reader: the store's handles are shared
            found = pool.map(lambda pair: _check(pair[0], pair[1], params), contents)
            out.measured.update(zip(batch, found, strict=True))
    for row in rows:
        _sort(dict(row), params, out)
    return out


def flat_view(rows: Sequence[dict[str, Any]], measured: dict[str, Measured]) -> dict[str, list[Any]]:
    """Columns of plain values, a value a row: what the suite of expectations is about.

    Lengths are in characters, sides in pixels, `audio_seconds` in seconds, `audio_rate` in Hz; `row` is
    the row's place. What a row lacks is null.
    """
    columns: dict[str, list[Any]] = {name: [] for name in FLAT}
    for place, row in enumerate(rows):
        texts = [caption["text"] for caption in row["captions"]]
        image = measured.get(row["image"] or "", Measured())
        sound = measured.get(row["audio"] or "", Measured())
        sides = (image.width, image.height)
        values = {
            "row": place,
            **{name: row[name] for name in ("id", *MEDIA, "label", "target", "group", "split")},
            **{name: row[name] for name in ("source", "content_hash")},
            "labels": len(row["labels"]) or None,
            "captions": len(texts) or None,
            "caption_characters": max(map(len, texts), default=None),
            "caption_invalid": max(map(invalid_characters, texts), default=None),
            "image_width": image.width,
            "image_height": image.height,
            "image_aspect": max(sides) / min(sides) if sides[0] and sides[1] else None,  # type: ignore[type-var, operator]
            "audio_seconds": sound.seconds,
            "audio_rate": sound.rate,
            "video_seconds": measured.get(row["video"] or "", Measured()).seconds,
            "graph_nodes": measured.get(row["graph"] or "", Measured()).nodes,
        }
        for name, value in values.items():
            columns[name].append(value)
    return columns


FLAT = (
    *("row", "id", *MEDIA, "label", "target", "group", "split", "source", "content_hash"),
    *("labels", "captions", "caption_characters", "caption_invalid"),
    *("image_width", "image_height", "image_aspect", "audio_seconds", "audio_rate"),
    *("video_seconds", "graph_nodes"),
)
"""The columns of the flat view."""


def invalid_characters(text: str) -> int:
    """Characters that no text should hold: controls but tab and line ends, the replacement character,
    private and unassigned ones, and halves of surrogate pairs."""
    bad = ("Cc", "Co", "Cn", "Cs")
    return sum(c == "\ufffd" or (unicodedata.category(c) in bad and c not in "\t\n\r") for c in text)


def _check(key: str, content: bytes, params: ValidateParams) -> Measured:
    kind = key.split("/", 1)[0]
    if not content:
        return Measured(fault=(f"{kind}_broken", f"{kind} is empty (0 bytes)"))
    if kind == "image":
        return check_image(content, params)
    if kind == "audio":
        return check_audio(content, params)
    if kind == "video":
        return check_video(content, params)
    return check_graph(content) if kind == "graph" else check_by_reader(kind, content)


def _sort(row: dict[str, Any], params: ValidateParams, out: MediaCheck) -> None:
    faults = {kind: fault for kind in MEDIA if row[kind] and (fault := out.measured[row[kind]].fault)}
    left = [kind for kind in MEDIA if row[kind] and kind not in faults]
    if faults and (params.broken_media == "quarantine" or not (left or row["captions"])):
        check = next(iter(faults.values()))[0]
        reason = "; ".join(reason for _, reason in faults.values())
        out.quarantined.append({"id": row["id"], "stage": "validate", "check": check, "reason": reason})
        return
    for kind in faults:
        row[kind] = None
        row["masked"] = sorted({*row["masked"], kind})
        out.masked[kind] = out.masked.get(kind, 0) + 1
    out.rows.append(row)


def _media_keys(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row[kind] for row in rows for kind in MEDIA if row[kind]))


def _batches(keys: Sequence[str], size: int) -> Iterator[list[str]]:
    iterator = iter(keys)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
