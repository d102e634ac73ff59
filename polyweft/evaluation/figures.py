"""Figures of an evaluation as SVG text: small, the same bytes each time, and legible in every script.

Drawn here and not by matplotlib, whose built-in font lacks Chinese and whose import takes a second. Colours
are CSS variables of the page that holds the figures, which has a light and a dark set.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

_SIDE = 480
_NAMED = 40
"""Up to so many classes have their names at the confusion matrix; beyond, hovering tells them."""

_NUMBERED = 16
"""Up to so many classes have their counts in the cells."""

_COLOURS = ("var(--first)", "var(--second)")


def direction_name(direction: str) -> str:
    """`image_to_text` for people: Image to text."""
    return direction.replace("_", " ").capitalize()


def recall_curve(lines: Sequence[dict[str, Any]]) -> str:
    """Recall@K over K, both directions between two modalities, with their intervals as bands.

    `lines` has direction, k, recall, low and high, as in `Evaluation.recall_curve`. The places of K are
    evenly spaced.
    """
    width, height, left, right, top, bottom = 640, 340, 44, 124, 14, 40
    ks = sorted({line["k"] for line in lines})
    series = dict(zip(dict.fromkeys(line["direction"] for line in lines), _COLOURS, strict=False))
    step = (width - left - right) / max(len(ks) - 1, 1)

    def x(k: int) -> float:
        return left + ks.index(k) * step

    def y(value: float) -> float:
        return top + (1 - value) * (height - top - bottom)

    label = ", ".join(direction_name(direction) for direction in series)
    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Recall at K: {label}">']
    parts += [
        f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text class="tick" x="{left - 8}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    parts += [
        f'<text class="tick" x="{x(k):.1f}" y="{height - bottom + 20}" text-anchor="middle">{k}</text>'
        for k in ks
    ]
    middle = (left + width - right) / 2
    parts.append(f'<text class="tick" x="{middle:.0f}" y="{height - 4}" text-anchor="middle">K</text>')
    ends = _apart({d: y(_series(lines, d)[-1]["recall"]) for d in series}, 18)
    for direction, colour in series.items():
        name, points = direction_name(direction), _series(lines, direction)
        band = [(x(p["k"]), y(p["high"])) for p in points]
        band += [(x(p["k"]), y(p["low"])) for p in reversed(points)]
        parts.append(f'<polygon points="{_points(band)}" fill="{colour}" opacity="0.16"/>')
        curve = [(x(p["k"]), y(p["recall"])) for p in points]
        parts.append(f'<polyline points="{_points(curve)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(p["k"]):.1f}" cy="{y(p["recall"]):.1f}" r="4" fill="{colour}" class="dot">'
            f"<title>{name}, Recall@{p['k']}: {p['recall']:.1%} ({p['low']:.1%} to {p['high']:.1%})</title>"
            "</circle>"
            for p in points
        ]
        parts.append(
            f'<circle cx="{width - right + 16}" cy="{ends[direction]:.1f}" r="4" fill="{colour}"/>'
            f'<text class="label" x="{width - right + 25}" y="{ends[direction] + 4:.1f}">{name}</text>'
        )
    return "".join([*parts, "</svg>"])


def scatter(actual_N: npt.NDArray[np.float64], predicted_N: npt.NDArray[np.float64]) -> str:
    """Predicted over actual numbers, with the line on which they are equal."""
    side, left, bottom = 360, 64, 40
    low, high = float(min(actual_N.min(), predicted_N.min())), float(max(actual_N.max(), predicted_N.max()))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return left + (value - low) / span * (side - 12)

    def y(value: float) -> float:
        return 6 + (high - value) / span * (side - 12)

    parts = [
        f'<svg viewBox="0 0 {side + left} {side + bottom}" style="max-width:{side + left}px" role="img" '
        'aria-label="Predicted over actual">',
        f'<line class="grid" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{x(high):.1f}" y2="{y(high):.1f}"/>',
    ]
    parts += [
        f'<text class="tick" x="{x(value):.1f}" y="{side + 14}" text-anchor="middle">{value:.3g}</text>'
        f'<text class="tick" x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        for value in (low, (low + high) / 2, high)
    ]
    parts += [
        f'<circle cx="{x(float(a)):.1f}" cy="{y(float(p)):.1f}" r="3" fill="var(--first)" fill-opacity="0.5">'
        f"<title>{a:.4g}, predicted {p:.4g}</title></circle>"
        for a, p in zip(actual_N, predicted_N, strict=True)
    ]
    middle = left + side / 2
    parts.append(f'<text class="tick" x="{middle}" y="{side + 34}" text-anchor="middle">Actual</text></svg>')
    return "".join(parts)


def confusion(confusion_CC: npt.NDArray[np.int64], names: Sequence[str]) -> str:
    """The confusion matrix, each row shaded by its shares; counts and names where there is room for them."""
    classes = len(names)
    cell = _SIDE / max(classes, 8)
    longest = max((len(_short(name)) for name in names), default=0) if classes <= _NAMED else 0
    margin = 14 + 7.5 * longest
    width, height = margin + cell * classes + 24, cell * classes + 20 + 6.5 * longest
    parts = [
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        'aria-label="Confusion matrix">'
    ]
    shares = confusion_CC / np.maximum(confusion_CC.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(classes, classes):
        count, share = int(confusion_CC[row, column]), float(shares[row, column])
        x, y, box = margin + column * cell, row * cell, f'width="{cell - 1:.1f}" height="{cell - 1:.1f}"'
        parts.append(f'<rect class="empty" x="{x:.1f}" y="{y:.1f}" {box}/>')
        if not count:
            continue
        hover = f"{escape(names[row])} taken for {escape(names[column])}: {count} ({share:.0%})"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" {box} fill="var(--first)" fill-opacity="{max(share, 0.08):.3f}">'
            f"<title>{hover}</title></rect>"
        )
        if classes <= _NUMBERED:
            kind = "inverse" if share > 0.55 else "number"
            middle = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}"'
            parts.append(f'<text class="{kind}" {middle} text-anchor="middle">{count}</text>')
    if classes <= _NAMED:
        size = max(8.0, min(12.0, cell * 0.7))
        parts += [
            _class_name(name, margin, (i + 0.5) * cell, classes * cell, size) for i, name in enumerate(names)
        ]
    return "".join([*parts, "</svg>"])


def _class_name(name: str, margin: float, middle: float, foot: float, size: float) -> str:
    """A class's name at its row and, aslant, below its column."""
    text = f'style="font-size:{size:.1f}px">{escape(_short(name))}</text>'
    place = f"translate({margin + middle + 4:.1f} {foot + 10:.1f}) rotate(-45)"
    return (
        f'<text class="tick" text-anchor="end" x="{margin - 6:.1f}" y="{middle + size / 3:.1f}" {text}'
        f'<text class="tick" text-anchor="end" transform="{place}" {text}'
    )


def bar(share: float) -> str:
    """A share in [0, 1] as a short bar with its number."""
    return (
        f'<span class="bar"><span style="width:{share * 100:.1f}%"></span></span>'
        f'<span class="value">{share:.2f}</span>'
    )


def _series(lines: Sequence[dict[str, Any]], direction: str) -> list[dict[str, Any]]:
    return sorted((line for line in lines if line["direction"] == direction), key=lambda line: line["k"])


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _apart(places: dict[str, float], gap: float) -> dict[str, float]:
    """Two labels' heights moved apart to `gap` at least."""
    ordered = sorted(places, key=lambda name: places[name])
    if len(ordered) == 2 and places[ordered[1]] - places[ordered[0]] < gap:
        middle = (places[ordered[0]] + places[ordered[1]]) / 2
        return {ordered[0]: middle - gap / 2, ordered[1]: middle + gap / 2}
    return places


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"
