"""The built-in data: pictures of two coloured shapes in a relation, on the ground of a place, from a seed.

A scene is two things (a shape, a colour and a size each), a relation between them, and a place. The place
is the class; captions describe the things and name the place only now and then, so that the text does not
determine the label. Everything about row `i` follows from the seed and `i` alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, model_validator

from polyweft.config import Section
from polyweft.data.scene_places import PLACES, paint

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = {
    "red": (222, 38, 38),
    "orange": (246, 136, 16),
    "yellow": (250, 222, 44),
    "green": (34, 168, 66),
    "blue": (40, 88, 224),
    "purple": (140, 52, 182),
    "white": (246, 246, 246),
    "black": (24, 24, 28),
}
SIZES = ("small", "big")
RELATIONS = ("left_of", "right_of", "above", "below", "inside")

_OVERSAMPLING = 4


class ScenesParams(Section):
    """What is drawn, how much of it, and which share of the rows is faulty on purpose."""

    samples: int = Field(default=4000, ge=16, le=200_000)
    image_size: int = Field(default=64, ge=32, le=512, description="side of the pictures, in pixels")
    media: list[Literal["image", "audio", "video", "graph"]] = Field(
        default=["image", "audio"], description="what is made beside the captions; image always"
    )
    tasks: bool = Field(default=False, description="also labels (the colours) and a target (the corners)")
    train_share: float = Field(default=0.7, ge=0.1, le=0.9)
    validation_share: float = Field(default=0.15, ge=0.0, le=0.4)
    place_named: float = Field(
        default=0.3, ge=0.0, le=1.0, description="share of captions that name the place"
    )
    single_caption: float = Field(
        default=0.1, ge=0.0, le=1.0, description="share of rows in one language only"
    )
    without_audio: float = Field(default=0.05, ge=0.0, le=1.0)
    without_video: float = Field(default=0.05, ge=0.0, le=1.0)
    without_graph: float = Field(default=0.05, ge=0.0, le=1.0)
    foreign_audio: float = Field(default=0.12, ge=0.0, le=1.0, description="share of clips of another place")
    swapped_captions: float = Field(default=0.025, ge=0.0, le=0.5)
    broken_images: float = Field(default=0.005, ge=0.0, le=0.5)
    broken_audio: float = Field(default=0.003, ge=0.0, le=0.5)
    missing_files: float = Field(default=0.005, ge=0.0, le=0.5)
    exact_duplicates: float = Field(default=0.007, ge=0.0, le=0.2)
    near_duplicates: float = Field(default=0.007, ge=0.0, le=0.2)
    leaks: float = Field(default=0.007, ge=0.0, le=0.2)

    @model_validator(mode="after")
    def _faults_fit(self) -> ScenesParams:
        if "image" not in self.media:
            raise ValueError(f"media is {self.media}; it must name image, which the faults are about")
        alone = self.swapped_captions + self.broken_images + self.broken_audio + self.missing_files
        pairs = self.exact_duplicates + self.near_duplicates + self.leaks
        if alone + 2 * pairs > 0.9:
            raise ValueError(
                "the faults take more than 90% of the rows (each copy takes two): lower their shares"
            )
        if self.train_share + self.validation_share >= 1:
            raise ValueError("train_share + validation_share must stay below 1: the rest is the test split")
        return self


@dataclass(frozen=True)
class Thing:
    """One drawn shape."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `first` stands in `relation` to `second`, on the ground of `place`."""

    first: Thing
    second: Thing
    relation: str
    place: str

    def described(self) -> tuple[str, ...]:
        """What every caption of the scene tells, in a fixed order."""
        one, two = self.first, self.second
        return (one.shape, one.colour, two.shape, two.colour, self.relation)


def sample_scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes, no two alike in place, relation, shapes and colours as long as there are enough."""
    seen: set[tuple[str, ...]] = set()
    scenes = []
    for index in range(count):
        rng = np.random.default_rng([seed, 1, index])
        scene = _sample(rng)
        for _ in range(50):
            if (scene.place, *scene.described()) not in seen:
                break
            scene = _sample(rng)
        seen.add((scene.place, *scene.described()))
        scenes.append(scene)
    return scenes


def draw(scene: Scene, size: int, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as an RGB picture of `size` x `size` pixels; place, angle and tint vary with `rng`."""
    picture = Image.fromarray(paint(scene.place, size, rng))
    places = centres(scene.relation, rng)
    things = [(scene.first, places[0]), (scene.second, places[1])]
    if scene.relation == "inside":
        things.reverse()  # the outer one first, or it would cover the inner one
    for thing, centre in things:
        radius = float(rng.uniform(0.2, 0.225) if thing.size == "big" else rng.uniform(0.135, 0.155))
        if scene.relation == "inside":
            radius = float(rng.uniform(0.37, 0.41) if thing is scene.second else rng.uniform(0.13, 0.15))
        put(picture, thing, centre, radius, rng)
    return picture


def encode_png(picture: Image.Image) -> bytes:
    """The picture as PNG bytes; the same picture gives the same bytes."""
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=4)
    return out.getvalue()


def _sample(rng: np.random.Generator) -> Scene:
    place, relation = str(rng.choice(PLACES)), str(rng.choice(RELATIONS))
    first, second = _thing(rng), _thing(rng)
    while first.colour == second.colour and (relation == "inside" or first.shape == second.shape):
        second = _thing(rng)
    if relation == "inside":
        first, second = Thing(first.shape, first.colour, "small"), Thing(second.shape, second.colour, "big")
    return Scene(first, second, relation, place)


def _thing(rng: np.random.Generator) -> Thing:
    return Thing(str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS))), str(rng.choice(SIZES)))


def centres(relation: str, rng: np.random.Generator) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centres (x, y) of the first and the second thing, in shares of the picture's side."""
    jitter = rng.uniform(-1, 1, 4)
    if relation == "inside":
        x, y = 0.5 + 0.06 * float(jitter[0]), 0.5 + 0.06 * float(jitter[1])
        return (x, y), (x, y)
    near, far = 0.26 + 0.03 * float(jitter[0]), 0.74 + 0.03 * float(jitter[1])
    aside = (0.5 + 0.14 * float(jitter[2]), 0.5 + 0.14 * float(jitter[3]))
    if relation in ("right_of", "below"):
        near, far = far, near
    if relation in ("left_of", "right_of"):
        return (near, aside[0]), (far, aside[1])
    return (aside[0], near), (aside[1], far)


def put(
    picture: Image.Image, thing: Thing, centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> None:
    """Draw a thing into the picture; centre and radius are shares of its side, angle and tint from `rng`."""
    side = picture.width
    angle = float(rng.uniform(-0.22, 0.22))
    tint = rng.integers(-10, 11, 3)
    colour = np.clip(np.array(COLOURS[thing.colour]) + tint, 0, 255)
    light = colour @ np.array([0.299, 0.587, 0.114]) > 140
    rim = (28, 28, 32) if light else (250, 250, 250)
    width = max(1.1, side / 50)
    left, top = (round(c * side - radius * side - width) for c in centre)
    box = math.ceil(2 * (radius * side + width)) + 1
    middle = (centre[0] * side - left, centre[1] * side - top)
    for grow, fill in ((width, rim), (0.0, tuple(int(value) for value in colour))):
        mask = _mask(thing.shape, box, middle, radius * side, grow, angle)
        picture.paste(fill, (left, top), mask)


def _mask(
    shape: str, box: int, middle: tuple[float, float], radius: float, grow: float, angle: float
) -> Image.Image:
    """The shape's coverage of each pixel of a box; `grow` widens its outline by that many pixels."""
    k = _OVERSAMPLING
    big = Image.new("L", (box * k, box * k), 0)
    points = [((middle[0] + x) * k, (middle[1] + y) * k) for x, y in _outline(shape, radius, angle)]
    pen = ImageDraw.Draw(big)
    pen.polygon(points, fill=255)
    if grow:
        joint = "curve" if len(points) < 20 else None  # a smooth outline needs no rounding of its corners
        pen.line([*points, points[0], points[1]], fill=255, width=round(2 * grow * k), joint=joint)
    return big.reduce(k)


def _outline(shape: str, radius: float, angle: float) -> list[tuple[float, float]]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return [
        (radius * (x * cosine - y * sine), radius * (x * sine + y * cosine)) for x, y in _UNIT_OUTLINES[shape]
    ]


def _star() -> list[tuple[float, float]]:
    radii = [1.0, 0.45] * 5
    turns = [math.pi * (i / 5 - 0.5) for i in range(10)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in zip(radii, turns, strict=True)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    wave = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(math.sin(t) ** 3, -(w + 2.5) / 16) for t, w in zip(turns, wave, strict=True)]


def _cross(arm: float = 0.34) -> list[tuple[float, float]]:
    corners: Sequence[tuple[float, float]] = ((arm, -1), (arm, -arm), (1, -arm))
    out = []
    for turn in range(4):
        c, s = (1, 0, -1, 0)[turn], (0, 1, 0, -1)[turn]
        out += [(x * c - y * s, x * s + y * c) for x, y in corners]
    return out


_UNIT_OUTLINES: dict[str, list[tuple[float, float]]] = {
    "circle": [(0.92 * math.cos(math.pi * i / 24), 0.92 * math.sin(math.pi * i / 24)) for i in range(48)],
    "square": [(-0.82, -0.82), (0.82, -0.82), (0.82, 0.82), (-0.82, 0.82)],
    "triangle": [(0.0, -1.0), (0.95, 0.72), (-0.95, 0.72)],
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}
