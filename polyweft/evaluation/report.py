"""The page of an evaluation: one HTML file with the figures, the tables and pictures of what is retrieved.

It needs nothing beside it (thumbnails are embedded), so that it can be sent, or logged to MLflow, as it is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from polyweft.data.decode import ImageSpec, decode_image_uint8
from polyweft.data.shards import Sample
from polyweft.evaluation.evaluator import Evaluation
from polyweft.evaluation.figures import bar, confusion, recall_curve
from polyweft.evaluation.measures import Example

_TILES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "image_to_text_recall_at_10": "Image to text, Recall@10",
    "text_to_image_recall_at_10": "Text to image, Recall@10",
    "mean_average_precision": "Mean average precision",
}
_THUMBNAIL = 144
_CONFUSIONS = 10

_STYLE = """
:root { color-scheme: light dark; --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e;
  --faint: #898781; --line: #e1e0d9; --first: #2a78d6; --second: #eb6834; --good: #0ca30c; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0d0d; --card: #1a1a19; --ink: #fff;
  --soft: #c3c2b7; --faint: #898781; --line: #2c2c2a; --first: #3987e5; --second: #d95926; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 16px; margin: 0 0 12px; }
p { color: var(--soft); margin: 4px 0 20px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 20px;
  margin: 16px 0; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.tile b { display: block; font-size: 28px; font-weight: 600; line-height: 1.3; }
.tile span, .tile small { color: var(--soft); font-size: 13px; display: block; }
svg { width: 100%; height: auto; display: block; font-family: inherit; } .curve svg { max-width: 720px; }
.grid { stroke: var(--line); } .tick { fill: var(--faint); font-size: 12px; }
.label { fill: var(--ink); font-size: 13px; } .dot { stroke: var(--card); stroke-width: 2; }
.empty { fill: var(--line); fill-opacity: .45; } .number { fill: var(--ink); } .inverse { fill: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: 13px; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); }
.bar { display: inline-block; width: 90px; height: 8px; border-radius: 4px; background: var(--line);
  overflow: hidden; margin-right: 8px; }
.bar span { display: block; height: 100%; background: var(--first); } .value { font-size: 13px; }
.example { border-top: 1px solid var(--line); padding: 12px 0; }
.example p { color: var(--ink); margin: 0 0 8px; overflow-wrap: anywhere; }
.example em { color: var(--faint); }
.found { display: flex; flex-wrap: wrap; gap: 10px; }
.found img { width: 96px; height: 96px; object-fit: contain; border-radius: 6px; background: #fff;
  border: 3px solid var(--line); }
.found .right { border-color: var(--good); }
"""


def page(evaluation: Evaluation, samples: Sequence[Sample], *, split: str) -> str:
    """The evaluation of `samples` as an HTML document."""
    metrics = evaluation.metrics
    counts = (
        f"{metrics['samples']} rows of the split <b>{escape(split)}</b>; retrieval over "
        f"{metrics['retrieval_images']} images and {metrics['retrieval_captions']} captions; "
        f"{metrics['classified_samples']} rows classified; {metrics['leaks']} rows also stand in train. "
        "Ranges are 95% bootstrap intervals, resampled by image."
    )
    parts = ["<h1>Evaluation</h1>", f"<p>{counts}</p>", _tiles(evaluation)]
    if evaluation.recall_curve:
        parts.append(_section("Recall@K", recall_curve(evaluation.recall_curve), "curve"))
    if evaluation.examples:
        shown = "".join(_example(example, samples) for example in evaluation.examples)
        note = "<p>Captions over the split, and the images that each finds first. Framed green: right.</p>"
        parts.append(_section("What captions find", note + shown))
    if evaluation.classes:
        note = "<p>Rows are actual classes, columns predicted ones; shades are shares of a row.</p>"
        drawn = confusion(evaluation.confusion_CC, evaluation.classes)
        parts.append(_section("Confusion matrix", note + drawn + _confusions(evaluation)))
        parts.append(_section("Classes", _classes(evaluation)))
    parts.append(_section("All metrics", _metrics(evaluation)))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Evaluation</title>'
    )
    body = "\n".join(parts)
    return f"<!doctype html><html lang=en>{head}<style>{_STYLE}</style><main>{body}</main></html>\n"


def _section(title: str, content: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{title}</h2>{content}</section>'


def _tiles(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    tiles = [
        f"<div class=tile><span>{title}</span><b>{metrics[name]:.1%}</b>"
        f"<small>{metrics[f'{name}_low']:.1%} to {metrics[f'{name}_high']:.1%}</small></div>"
        for name, title in _TILES.items()
        if name in metrics
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _example(example: Example, samples: Sequence[Sample]) -> str:
    images = "".join(
        f'<img class="{"right" if right else "wrong"}" src="{_thumbnail(samples[row].image or b"")}" '
        f'alt="{escape(samples[row].id)}" title="{escape(samples[row].id)}">'
        for row, right in zip(example.rows, example.right, strict=True)
    )
    caption = escape(example.caption if len(example.caption) <= 300 else example.caption[:299] + "…")
    return (
        f"<div class=example><p>{caption} <em>rank of the best right image: {example.rank}</em></p>"
        f"<div class=found>{images}</div></div>"
    )


def _thumbnail(data: bytes) -> str:
    from PIL import Image

    # The model has decoded these bytes before, under its own limit of pixels.
    spec = ImageSpec(
        size=_THUMBNAIL, resize="pad", mean=[0.0] * 3, std=[1.0] * 3, background=[255] * 3, max_pixels=10**9
    )
    buffer = io.BytesIO()
    Image.fromarray(decode_image_uint8(data, spec)).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _confusions(evaluation: Evaluation) -> str:
    """The commonest mistakes, as a table."""
    mistakes = evaluation.confusion_CC.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_CONFUSIONS]
    lines = [
        f"<tr><td>{escape(evaluation.classes[actual])}<td>{escape(evaluation.classes[predicted])}"
        f"<td>{mistakes[actual, predicted]}"
        for actual, predicted in zip(*np.unravel_index(order, mistakes.shape), strict=True)
        if mistakes[actual, predicted]
    ]
    if not lines:
        return "<p>No mistakes.</p>"
    head = "<tr><th>Actual<th>Taken for<th>Rows"
    return f"<p></p><h2>Commonest mistakes</h2><table>{head}{''.join(lines)}</table>"


def _classes(evaluation: Evaluation) -> str:
    lines = [
        f"<tr><td>{escape(line.name)}<td>{bar(line.precision)}<td>{bar(line.recall)}<td>{bar(line.f1)}"
        f"<td>{line.support}"
        for line in evaluation.class_reports
    ]
    head = "<tr><th>Class<th>Precision<th>Recall<th>F1<th>Rows"
    return f"<table>{head}{''.join(lines)}</table>"


def _metrics(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    names = [name for name in metrics if not name.endswith(("_low", "_high", "_without_leaks"))]
    leaks = any(name.endswith("_without_leaks") for name in metrics)
    head = "<tr><th>Metric<th>Value<th>95% interval" + ("<th>Without leaks<th>95% interval" if leaks else "")
    lines = []
    for name in names:
        cells = [_cell(evaluation, name)]
        if leaks:
            cells.append(_cell(evaluation, f"{name}_without_leaks"))
        lines.append(f"<tr><td>{name}<td>{'<td>'.join(cells)}")
    return f"<table>{head}{''.join(lines)}</table>"


def _cell(evaluation: Evaluation, name: str) -> str:
    metrics = evaluation.metrics
    value = metrics.get(name)
    if value is None:
        return "<td>"
    text = str(value) if isinstance(value, int) else f"{value:.4f}"
    bounds = (
        f"{metrics[f'{name}_low']:.4f} to {metrics[f'{name}_high']:.4f}" if f"{name}_low" in metrics else ""
    )
    return f"{text}<td>{bounds}"
