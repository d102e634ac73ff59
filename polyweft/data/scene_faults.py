"""The rows of the built-in data, some faulty on purpose, and the truth about which.

The faults stand on rows of their own: no row has two, and the original of a copy has none. The truth is
for measuring the checks after they have spoken; no check may read it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageEnhance

from polyweft.data.scene_captions import captions
from polyweft.data.scene_media import clip, colours, corners, graph
from polyweft.data.scene_places import PLACES, sound
from polyweft.data.scenes import Scene, ScenesParams, draw, encode_png, sample_scenes

FAULTS = (
    "swapped_captions",
    "broken_image",
    "broken_audio",
    "missing_file",
    "exact_duplicate",
    "near_duplicate",
    "leak",
)

DAMAGE = ("truncated", "garbage", "empty")
"""Ways in which a file is broken."""


@dataclass(frozen=True)
class SceneRow:
    """One row: its media as bytes (None where there is no file) under the names that the source gives."""

    id: str
    image_name: str
    image: bytes | None
    audio_name: str | None
    audio: bytes | None
    captions: list[tuple[str, str]]
    label: str
    group: str
    split: str
    more: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    """Video and graph, by modality: the file's name and its content."""
    labels: list[str] = field(default_factory=list)
    target: float | None = None


@dataclass(frozen=True)
class Part:
    """What row `index` is: the row whose picture and words it shows, its split, and its fault, if any."""

    index: int
    shows: int
    speaks: int
    split: str
    fault: str | None = None
    other: int | None = None
    variant: str = field(default="")


def row_id(index: int) -> str:
    """The id of row `index`."""
    return f"scene-{index:05d}"


def plan(params: ScenesParams, scenes: list[Scene], seed: int) -> list[Part]:
    """Deal splits and faults to the rows, from the seed alone."""
    count = params.samples
    rng = np.random.default_rng([seed, 2])
    parts = [Part(i, i, i, split) for i, split in enumerate(_splits(params, rng))]
    order = [int(i) for i in rng.permutation(count)]

    def take(share: float) -> list[int]:
        number = round(count * share)
        taken, order[:number] = order[:number], []
        return taken

    for one, two in _pairs(take(params.swapped_captions), scenes):
        parts[one] = replace(parts[one], speaks=two, fault="swapped_captions", other=two)
        parts[two] = replace(parts[two], speaks=one, fault="swapped_captions", other=one)
    broken_audio = params.broken_audio if "audio" in params.media else 0.0
    for fault, share in (("broken_image", params.broken_images), ("broken_audio", broken_audio)):
        for number, index in enumerate(take(share)):
            parts[index] = replace(parts[index], fault=fault, variant=DAMAGE[number % len(DAMAGE)])
    for index in take(params.missing_files):
        parts[index] = replace(parts[index], fault="missing_file")
    _deal_copies(parts, "exact_duplicate", take(params.exact_duplicates), order)
    _deal_copies(parts, "near_duplicate", take(params.near_duplicates), order)
    _deal_copies(parts, "leak", take(params.leaks), order)
    return parts


def read(params: ScenesParams, seed: int) -> Iterator[SceneRow]:
    """Make the rows one by one; row `i` is made from the seed and `i`, whatever ran before."""
    scenes = sample_scenes(params.samples, seed)
    for part in plan(params, scenes, seed):
        yield _row(part, scenes, params, seed)


def truth(params: ScenesParams, seed: int) -> list[dict[str, str]]:
    """Every faulty row: `id`, `fault`, and `detail` (the original's or partner's id, or the damage)."""
    scenes = sample_scenes(params.samples, seed)
    return [
        {
            "id": row_id(part.index),
            "fault": part.fault,
            "detail": part.variant if part.other is None else row_id(part.other),
        }
        for part in plan(params, scenes, seed)
        if part.fault
    ]


def _splits(params: ScenesParams, rng: np.random.Generator) -> list[str]:
    train = round(params.samples * params.train_share)
    validation = round(params.samples * params.validation_share)
    rest = params.samples - train - validation
    names = ["train"] * train + ["validation"] * validation + ["test"] * rest
    return [names[i] for i in rng.permutation(params.samples)]


def _pairs(rows: list[int], scenes: list[Scene]) -> list[tuple[int, int]]:
    """Pair rows whose descriptions differ in two attributes or more; who finds no partner stays whole."""
    left, pairs = list(rows), []
    while left:
        one = left.pop(0)
        for two in left:
            told, other = scenes[one].described(), scenes[two].described()
            if sum(a != b for a, b in zip(told, other, strict=True)) >= 2:
                left.remove(two)
                pairs.append((one, two))
                break
    return pairs


def _deal_copies(parts: list[Part], fault: str, copies: list[int], order: list[int]) -> None:
    for number, copy in enumerate(copies):
        original = order.pop(0)
        if fault != "leak" and original > copy:
            original, copy = copy, original  # who reads from the top meets the original first
        split = parts[original].split
        if fault == "leak":
            parts[original] = replace(parts[original], split="train")
            split = ("test", "validation")[number // 2 % 2]
        exact = fault == "exact_duplicate" or (fault == "leak" and number % 2 == 0)
        parts[copy] = replace(
            parts[copy],
            shows=original,
            speaks=original,
            split=split,
            fault=fault,
            other=original,
            variant="exact" if exact else "near",
        )


def _row(part: Part, scenes: list[Scene], params: ScenesParams, seed: int) -> SceneRow:
    scene, exact = scenes[part.shows], part.variant == "exact"
    picture = draw(scene, params.image_size, np.random.default_rng([seed, 3, part.shows]))
    image, suffix = encode_png(picture), "png"
    if part.variant == "near":
        image, suffix = _disturb(picture, np.random.default_rng([seed, 4, part.index]))
    # A near copy has words and a sound of its own: only its picture tells that it is one.
    words = part.speaks if exact or part.fault == "swapped_captions" else part.index
    spoken = captions(
        scenes[part.speaks],
        np.random.default_rng([seed, 5, words]),
        place_named=params.place_named,
        single=params.single_caption,
    )
    own = part.shows if exact else part.index
    audio = _sound(part, scene, params, seed, own) if "audio" in params.media else None
    if part.fault == "broken_image":
        image = damage(image, part.variant, np.random.default_rng([seed, 6, part.index]))
    if part.fault == "broken_audio" and audio is not None:
        audio = damage(audio, part.variant, np.random.default_rng([seed, 6, part.index]))
    name = row_id(part.index)
    return SceneRow(
        id=name,
        image_name=f"images/{name}.{suffix}",
        image=None if part.fault == "missing_file" else image,
        audio_name=None if audio is None else f"audio/{name}.wav",
        audio=audio,
        captions=spoken,
        label=scene.place,
        group=name,
        split=part.split,
        more=_more(scene, params, seed, own, name),
        labels=colours(scene) if params.tasks else [],
        target=corners(scene) if params.tasks else None,
    )


def _more(
    scene: Scene, params: ScenesParams, seed: int, index: int, name: str
) -> dict[str, tuple[str, bytes]]:
    out = {}
    rng = np.random.default_rng([seed, 8, index])
    if "video" in params.media and rng.random() >= params.without_video:
        out["video"] = f"video/{name}.mp4", clip(scene, params.image_size, rng)
    rng = np.random.default_rng([seed, 9, index])
    if "graph" in params.media and rng.random() >= params.without_graph:
        out["graph"] = f"graphs/{name}.json", graph(scene, rng)
    return out


def _sound(part: Part, scene: Scene, params: ScenesParams, seed: int, index: int) -> bytes | None:
    rng = np.random.default_rng([seed, 7, index])
    absent, foreign = rng.random() < params.without_audio, rng.random() < params.foreign_audio
    place = str(rng.choice(PLACES)) if foreign else scene.place
    return None if absent and part.fault != "broken_audio" else sound(place, rng)


def damage(content: bytes, variant: str, rng: np.random.Generator) -> bytes:
    """Break a file: cut it short, replace it by random bytes, or empty it."""
    if variant == "truncated":
        return content[: int(len(content) * rng.uniform(0.3, 0.8))]
    return rng.bytes(int(rng.integers(200, 2000))) if variant == "garbage" else b""


def _disturb(picture: Image.Image, rng: np.random.Generator) -> tuple[bytes, str]:
    """A near copy: the same picture a little lighter or darker, and then resized, noisy or as JPEG."""
    copy = ImageEnhance.Brightness(picture).enhance(float(rng.choice([0.94, 0.96, 1.04, 1.06])))
    way, side = str(rng.choice(["resized", "noisy", "jpeg"])), picture.width
    if way == "resized":
        smaller = side - max(2, side // 10)
        copy = copy.resize((smaller, smaller), Image.Resampling.BICUBIC)
    elif way == "noisy":
        noise = rng.normal(0, 3, (side, side, 3))
        copy = Image.fromarray(np.clip(np.rint(np.asarray(copy) + noise), 0, 255).astype(np.uint8))
    else:
        out = io.BytesIO()
        copy.save(out, format="JPEG", quality=int(rng.integers(75, 93)))
        return out.getvalue(), "jpg"
    return encode_png(copy), "png"
