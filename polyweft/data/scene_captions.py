"""Sentences that describe a built-in scene, in English and Chinese, from several templates each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyweft.data.scenes import Scene, Thing

_RELATION_EN = {
    "left_of": ("to the left of", "on the left side of"),
    "right_of": ("to the right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "inside": ("inside", "within"),
}
_INVERSE_EN = {
    "left_of": "to the right of",
    "right_of": "to the left of",
    "above": "below",
    "below": "above",
    "inside": "around",
}
_ASIDE_EN = {
    "left_of": "on its left",
    "right_of": "on its right",
    "above": "above it",
    "below": "below it",
    "inside": "inside it",
}
_PLACE_EN = {
    "brick": "in front of a brick wall",
    "city": "in the city",
    "desert": "in the desert",
    "forest": "in a forest",
    "meadow": "in a meadow",
    "night": "in the night sky",
    "sea": "by the sea",
    "snow": "in the snow",
}
_SIZE_EN = {"small": ("small", "little"), "big": ("big", "large")}

_RELATION_ZH = {
    "left_of": ("左边", "左侧"),
    "right_of": ("右边", "右侧"),
    "above": ("上面", "上方"),
    "below": ("下面", "下方"),
    "inside": ("里面", "内部"),
}
_INVERSE_ZH = {
    "left_of": "在{a}的右边",
    "right_of": "在{a}的左边",
    "above": "在{a}的下方",
    "below": "在{a}的上方",
    "inside": "包围着{a}",
}
_PLACE_ZH = {
    "brick": "砖墙前",
    "city": "城市里",
    "desert": "沙漠中",
    "forest": "森林里",
    "meadow": "草地上",
    "night": "夜空下",
    "sea": "大海边",
    "snow": "雪地里",
}
_COLOUR_ZH = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "white": "白色",
    "black": "黑色",
}
_SHAPE_ZH = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "五角星",
    "cross": "十字",
    "heart": "爱心",
}
_SIZE_ZH = {"small": "小", "big": "大"}


def captions(
    scene: Scene, rng: np.random.Generator, *, place_named: float, single: float
) -> list[tuple[str, str]]:
    """One English and one Chinese sentence, as (text, language).

    With probability `single` one of the two alone; each names the place with probability `place_named`.
    """
    english, chinese = (
        (_english(scene, rng, place_named), "en"),
        (_chinese(scene, rng, place_named), "zh"),
    )
    if rng.random() < single:
        return [english] if rng.random() < 0.5 else [chinese]
    return [english, chinese]


def _english(scene: Scene, rng: np.random.Generator, place_named: float) -> str:
    sized = rng.random() < 0.5
    a, b = (_thing_en(thing, rng, sized) for thing in (scene.first, scene.second))
    relation = _pick(_RELATION_EN[scene.relation], rng)
    text = _pick(
        (
            f"{_article(a)} {relation} {_article(b)}",
            f"there is {_article(a)} {relation} {_article(b)}",
            f"{_article(b)} with {_article(a)} {_ASIDE_EN[scene.relation]}",
            f"the {a} is {relation} the {b}",
            f"{_article(b)} {_INVERSE_EN[scene.relation]} {_article(a)}",
        ),
        rng,
    )
    return f"{text} {_PLACE_EN[scene.place]}" if rng.random() < place_named else text


def _chinese(scene: Scene, rng: np.random.Generator, place_named: float) -> str:
    sized = rng.random() < 0.5
    a, b = (_thing_zh(thing, sized) for thing in (scene.first, scene.second))
    relation = _pick(_RELATION_ZH[scene.relation], rng)
    text = _pick(
        (
            f"{a}在{b}的{relation}",
            f"一个{a}位于一个{b}的{relation}",
            f"{b}的{relation}有一个{a}",
            b + _INVERSE_ZH[scene.relation].format(a=a),
        ),
        rng,
    )
    return f"{_PLACE_ZH[scene.place]}，{text}" if rng.random() < place_named else text


def _thing_en(thing: Thing, rng: np.random.Generator, sized: bool) -> str:
    words = f"{thing.colour} {thing.shape}"
    return f"{_pick(_SIZE_EN[thing.size], rng)} {words}" if sized else words


def _thing_zh(thing: Thing, sized: bool) -> str:
    size = _SIZE_ZH[thing.size] if sized else ""
    return f"{_COLOUR_ZH[thing.colour]}的{size}{_SHAPE_ZH[thing.shape]}"


def _article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]
