"""What a place of the built-in scenes looks and sounds like: eight grounds, eight sounds.

Grounds vary in horizon, tint and texture, so that no single colour gives the place away.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
Rgb = tuple[int, int, int]

PLACES = ("brick", "city", "desert", "forest", "meadow", "night", "sea", "snow")
SAMPLE_RATE = 8000
SECONDS = 0.5


def paint(place: str, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Paint a place's ground: uint8 [size, size, 3]."""
    canvas = _PAINTERS[place](size, rng)
    canvas *= rng.uniform(0.88, 1.1)
    canvas += rng.uniform(-8, 8, 3).astype(np.float32)
    canvas += rng.normal(0, 2.5, (size, size, 1)).astype(np.float32)
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def sound(place: str, rng: np.random.Generator) -> bytes:
    """Half a second of a place: mono 16-bit WAV at 8 kHz. Pitch, phase and noise vary with `rng`."""
    voice, count = _VOICES[place], int(SAMPLE_RATE * SECONDS)
    time = np.arange(count) / SAMPLE_RATE
    clip = np.zeros(count)
    for pitch, pulse in voice.tones:
        pitch *= rng.uniform(0.94, 1.06)
        swell = 0.5 + 0.5 * np.sin(2 * np.pi * (pulse * rng.uniform(0.9, 1.1) * time + rng.uniform()))
        clip += np.sin(2 * np.pi * (pitch * time + rng.uniform())) * swell**2
    breath = rng.normal(0, 1, count + voice.smooth)
    breath = np.convolve(breath, np.ones(voice.smooth) / np.sqrt(voice.smooth), mode="valid")[:count]
    clip = clip / len(voice.tones) + voice.noise * breath + rng.uniform(0.05, 0.3) * rng.normal(0, 1, count)
    clip *= rng.uniform(0.25, 0.6) / np.abs(clip).max()
    out = io.BytesIO()
    with wave.open(out, "wb") as handle:
        handle.setnchannels(1)
        handle.setsampwidth(2)
        handle.setframerate(SAMPLE_RATE)
        handle.writeframes(np.rint(clip * 32767).astype("<i2").tobytes())
    return out.getvalue()


@dataclass(frozen=True)
class _Voice:
    """`tones`: pitch and pulse in Hz; `noise`: its level; `smooth`: samples it is averaged over."""

    tones: tuple[tuple[float, float], ...]
    noise: float
    smooth: int


_VOICES = {
    "brick": _Voice(((900, 12), (1350, 12)), 0.10, 1),
    "city": _Voice(((110, 2), (165, 3), (440, 4)), 0.15, 4),
    "desert": _Voice(((520, 2),), 0.50, 2),
    "forest": _Voice(((350, 4), (700, 9)), 0.35, 3),
    "meadow": _Voice(((2100, 9), (2600, 14)), 0.10, 2),
    "night": _Voice(((3300, 26),), 0.08, 2),
    "sea": _Voice(((70, 2),), 0.90, 9),
    "snow": _Voice(((1600, 3), (3200, 3)), 0.25, 12),
}


def _rows(size: int) -> Field:
    return np.linspace(0, 1, size, dtype=np.float32)[:, None]


def _columns(size: int) -> Field:
    return np.linspace(0, 1, size, dtype=np.float32)[None, :]


def _blend(weight: Field, low: Rgb, high: Rgb) -> Field:
    """Colours [S, S, 3] from `low` where the weight is 0 to `high` where it is 1."""
    weight = np.clip(weight, 0, 1)[..., None]
    blended: Field = np.array(low, np.float32) * (1 - weight) + np.array(high, np.float32) * weight
    return blended


def _over(canvas: Field, ground: Field, below: npt.NDArray[np.bool_]) -> Field:
    joined: Field = np.where(below[..., None], ground, canvas)
    return joined


def _full(size: int, weight: Field) -> Field:
    return np.broadcast_to(weight, (size, size)).astype(np.float32)


def _blotches(size: int, cells: int, rng: np.random.Generator, amplitude: float) -> Field:
    """Soft blotches [size, size]: a coarse random grid, enlarged linearly."""
    grid = rng.normal(0, amplitude, (cells + 1, cells + 1))
    at = np.linspace(0, cells, size, endpoint=False)
    whole = at.astype(int)
    part = (at - whole)[:, None]
    tall = grid[whole] * (1 - part) + grid[whole + 1] * part
    wide = tall[:, whole] * (1 - part.T) + tall[:, whole + 1] * part.T
    blotches: Field = wide.astype(np.float32)
    return blotches


def _dots(canvas: Field, count: int, colours: list[Rgb], rng: np.random.Generator, top: int = 0) -> None:
    """Scatter small dots, in place, over the rows from `top` down."""
    size = len(canvas)
    dot = max(1, size // 64)
    for _ in range(count):
        y, x = int(rng.integers(top, size)), int(rng.integers(0, size))
        canvas[y : y + dot, x : x + dot] = colours[int(rng.integers(len(colours)))]


def _meadow(size: int, rng: np.random.Generator) -> Field:
    y, x = _rows(size), _columns(size)
    horizon = rng.uniform(0.3, 0.55) + 0.04 * np.sin(2 * np.pi * (x * rng.uniform(0.5, 1.5) + rng.uniform()))
    sky = _blend(_full(size, y / 0.5), (132, 196, 244), (216, 238, 250))
    grass = _blend(_full(size, (y - 0.3) / 0.7), (150, 204, 84), (58, 132, 46))
    blades = rng.normal(0, 1, (size + 3, size)).astype(np.float32)
    grass += 9 * (blades[:-3] + blades[1:-2] + blades[2:-1])[:size, :, None]
    below = y > horizon
    canvas = _over(sky, grass, below)
    _dots(canvas, 16, [(255, 255, 255), (255, 232, 110), (250, 160, 200)], rng, top=int(size * 0.62))
    return canvas


def _sea(size: int, rng: np.random.Generator) -> Field:
    y, x = _rows(size), _columns(size)
    horizon = float(rng.uniform(0.22, 0.48))
    tops: list[tuple[Rgb, Rgb]] = [((170, 214, 244), (232, 244, 250)), ((244, 178, 140), (252, 226, 180))]
    sky = _blend(_full(size, y / horizon), *tops[int(rng.random() < 0.3)])
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    water = _blend(_full(size, depth), (52, 142, 190), (10, 58, 122))
    wobble = 0.25 * np.sin(2 * np.pi * (x * rng.uniform(1, 2.5) + rng.uniform()))
    waves = np.sin(2 * np.pi * (rng.uniform(6, 9) * np.sqrt(depth) + wobble * (0.4 + depth) + rng.uniform()))
    water += 26 * (np.clip(waves, 0.2, 1) - 0.2)[..., None]
    return _over(sky, water, _full(size, y) > horizon)


def _desert(size: int, rng: np.random.Generator) -> Field:
    y, x = _rows(size), _columns(size)
    skies: list[tuple[Rgb, Rgb]] = [((250, 214, 160), (255, 242, 214)), ((136, 190, 226), (240, 232, 210))]
    canvas = _blend(_full(size, y / 0.5), *skies[int(rng.random() < 0.5)])
    sands: list[Rgb] = [(238, 204, 140), (226, 182, 112), (208, 158, 88)]
    for level, sand in enumerate(sands):
        ridge = rng.uniform(0.28, 0.4) + 0.2 * level
        line = ridge + 0.07 * np.sin(2 * np.pi * (x * rng.uniform(0.6, 1.6) + rng.uniform()))
        shade = 30 * np.sin(2 * np.pi * (14 * (y - line) + 1.5 * x)) * 0.25 - 40 * (y - line)
        canvas = _over(canvas, np.array(sand, np.float32) + shade[..., None].astype(np.float32), y > line)
    return canvas


def _night(size: int, rng: np.random.Generator) -> Field:
    y = _rows(size)
    lows: list[Rgb] = [(52, 42, 104), (24, 56, 100), (74, 40, 92)]
    canvas = _blend(_full(size, y), (8, 10, 34), lows[int(rng.integers(3))])
    canvas += _blotches(size, 4, rng, 7)[..., None]
    _dots(canvas, int(rng.integers(40, 70)), [(255, 255, 236), (190, 200, 240), (130, 140, 190)], rng)
    return canvas


def _snow(size: int, rng: np.random.Generator) -> Field:
    y, x = _rows(size), _columns(size)
    line = rng.uniform(0.35, 0.6) + 0.05 * np.sin(2 * np.pi * (x * rng.uniform(0.5, 1.3) + rng.uniform()))
    skies: list[Rgb] = [(150, 176, 206), (176, 184, 200)]
    sky = _blend(_full(size, y / 0.6), skies[int(rng.integers(2))], (222, 230, 240))
    ground = _blend(_full(size, (y - 0.4) / 0.6), (250, 252, 255), (214, 226, 242))
    ground += _blotches(size, 7, rng, 6)[..., None]
    canvas = _over(sky, ground, y > line)
    _dots(canvas, int(rng.integers(60, 110)), [(255, 255, 255), (244, 248, 255)], rng)
    return canvas


def _city(size: int, rng: np.random.Generator) -> Field:
    y = _rows(size)
    skies: list[tuple[Rgb, Rgb]] = [((138, 164, 196), (214, 220, 226)), ((120, 104, 150), (248, 182, 132))]
    canvas = _blend(_full(size, y), *skies[int(rng.random() < 0.5)])
    left = 0
    while left < size:
        width, top = int(size * rng.uniform(0.12, 0.22)), int(size * rng.uniform(0.08, 0.5))
        wall = float(rng.uniform(60, 135))
        canvas[top:, left : left + width] = (wall, wall, wall * 1.08)
        step = max(3, size // 16)
        for row in range(top + step // 2, size - 1, step):
            for column in range(left + 2, min(left + width, size) - 2, step):
                lit = rng.random() < 0.45
                pane = max(1, size // 32)
                canvas[row : row + pane, column : column + pane] = (
                    (250, 224, 130) if lit else (wall * 0.6, wall * 0.62, wall * 0.7)
                )
        left += width
    return canvas


def _forest(size: int, rng: np.random.Generator) -> Field:
    y, x = _rows(size), _columns(size)
    canvas = _blend(_full(size, y), (58, 108, 62), (22, 54, 32))
    trunks = np.zeros((size, size), bool)
    for _ in range(int(rng.integers(5, 9))):
        middle, half = rng.uniform(0, 1), rng.uniform(0.018, 0.04)
        trunks |= np.abs(x + 0.02 * np.sin(4 * y + rng.uniform(0, 6)) - middle) < half
    bark = _blend(_full(size, y), (104, 78, 52), (60, 42, 28)) + rng.normal(0, 7, (size, size, 1))
    canvas = _over(canvas, bark.astype(np.float32), trunks)
    leaves = _blotches(size, 14, rng, 1.0) - 2.6 * (_full(size, y) - rng.uniform(0.3, 0.42))
    crown = np.array((66, 128, 58), np.float32) + (22 * _blotches(size, 20, rng, 1.0))[..., None]
    return _over(canvas, crown, leaves > 0)


def _brick(size: int, rng: np.random.Generator) -> Field:
    high = round(size * rng.uniform(0.09, 0.14))
    wide = round(high * rng.uniform(1.9, 2.4))
    walls: list[Rgb] = [(178, 84, 62), (158, 92, 74), (188, 112, 82)]
    clay = np.array(walls[int(rng.integers(3))], np.float32)
    rows = np.arange(size) + int(rng.integers(high))
    columns = np.arange(size) + int(rng.integers(wide))
    row = rows // high
    shifted = columns[None, :] + (row[:, None] % 2) * (wide // 2)
    shade = rng.normal(0, 13, (row.max() + 1, shifted.max() // wide + 1))
    canvas = clay + shade[row[:, None], shifted // wide][..., None].astype(np.float32)
    joint = max(1, size // 64)
    mortar = (rows % high < joint)[:, None] | (shifted % wide < joint)
    return _over(canvas.astype(np.float32), np.full((size, size, 3), 200, np.float32), mortar)


_PAINTERS: dict[str, Callable[[int, np.random.Generator], Field]] = {
    "brick": _brick,
    "city": _city,
    "desert": _desert,
    "forest": _forest,
    "meadow": _meadow,
    "night": _night,
    "sea": _sea,
    "snow": _snow,
}
