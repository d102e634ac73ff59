"""The page of an evaluation: one HTML file with the figures, the tables and pictures of what is retrieved.

It needs nothing beside it (thumbnails and short clips are embedded), so that it can be sent, or logged to
MLflow, as it is.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from polyweft.data.decode import ImageSpec, decode_image_uint8
from polyweft.data.shards import Sample
from polyweft.evaluation.captioning import Captioned
from polyweft.evaluation.classification import ClassReport
from polyweft.evaluation.evaluator import Evaluation
from polyweft.evaluation.figures import bar, confusion, recall_curve, scatter
from polyweft.evaluation.measures import Example, plural
from polyweft.evaluation.style import STYLE

_SHARES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "roc_auc": "Area under the ROC curve",
    "label_micro_f1": "Labels, micro F1",
    "label_map": "Labels, mean average precision",
    "zero_shot_accuracy": "Zero-shot accuracy",
    "image_to_text_recall_at_10": "Image to text, Recall@10",
    "text_to_image_recall_at_10": "Text to image, Recall@10",
    "mean_average_precision": "Mean average precision",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
}
_NUMBERS = {"cider": "CIDEr", "r2": "R²", "mae": "Mean absolute error", "pearson": "Pearson's correlation"}
_THUMBNAIL = 144
_CONFUSIONS, _CAPTIONS, _POINTS = 10, 8, 1000
_LONGEST_CLIP = 200_000
"""Bytes of an audio clip that the page embeds."""


def page(evaluation: Evaluation, samples: Sequence[Sample], *, split: str) -> str:
    """The evaluation of `samples` as an HTML document."""
    metrics = evaluation.metrics
    gallery = [
        f"{count} {name.removeprefix('retrieval_')}"
        for name, count in metrics.items()
        if name.startswith("retrieval_")
    ]
    counts = (
        f"{metrics['samples']} rows of the split <b>{escape(split)}</b>; "
        f"{'retrieval over ' + ' and '.join(gallery) + '; ' if gallery else ''}"
        f"{metrics['classified_samples']} rows classified; {metrics['leaks']} rows also stand in train. "
        "Ranges are 95% bootstrap intervals, resampled by image, or by the first medium that rows have."
    )
    parts = ["<h1>Evaluation</h1>", f"<p>{counts}</p>", _tiles(evaluation)]
    parts += [*_retrieval(evaluation, samples), *_captions(evaluation, samples), *_tasks(evaluation)]
    if evaluation.removals:
        parts.append(_section("Without a modality", _removals(evaluation)))
    parts.append(_section("All metrics", _metrics(evaluation)))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Evaluation</title>'
    )
    body = "\n".join(parts)
    return f"<!doctype html><html lang=en>{head}<style>{STYLE}</style><main>{body}</main></html>\n"


def _retrieval(evaluation: Evaluation, samples: Sequence[Sample]) -> list[str]:
    lines = evaluation.recall_curve
    directions = list(dict.fromkeys(line["direction"] for line in lines))
    figures = [
        recall_curve([line for line in lines if line["direction"] in directions[i : i + 2]])
        for i in range(0, len(directions), 2)
    ]
    parts = [_section("Recall@K", figures[0], "curve")] if len(figures) == 1 else []
    if len(figures) > 1:
        drawn = f"<div class=curves>{''.join(figures)}</div>"
        parts = [_section("Recall@10 from any to any", _matrix(evaluation, directions))]
        parts.append(_section("Recall@K", drawn))
    if evaluation.examples:
        shown = "".join(_example(example, samples) for example in evaluation.examples)
        found = plural(evaluation.examples[0].modality)
        note = f"<p>Captions over the split, and the {found} that each finds first. Framed green: right.</p>"
        parts.append(_section("What captions find", note + shown))
    return parts


def _matrix(evaluation: Evaluation, directions: list[str]) -> str:
    """Recall@10 of every direction: the query's modality down, the found one's across."""
    names = list(dict.fromkeys(name for direction in directions for name in direction.split("_to_")))
    lines = []
    for query in names:
        cells = []
        for other in names:
            key = f"{query}_to_{other}_recall_at_10"
            value = evaluation.metrics.get(key)
            if value is None:
                cells.append("<td>")
                continue
            interval = f"{evaluation.metrics[f'{key}_low']:.1%} to {evaluation.metrics[f'{key}_high']:.1%}"
            cells.append(f'<td class=share style="--share:{value:.3f}" title="{interval}">{value:.1%}')
        lines.append(f"<tr><th>{query.capitalize()}{''.join(cells)}")
    head = "".join(f"<th>finds {name}" for name in names)
    return f"<table><tr><th>{head}{''.join(lines)}</table>"


def _captions(evaluation: Evaluation, samples: Sequence[Sample]) -> list[str]:
    written = evaluation.captions
    if not written:
        return []
    places = np.linspace(0, len(written) - 1, min(_CAPTIONS, len(written))).astype(np.int64)
    note = "<p>Images over the split with the caption that the model writes, and below it those given.</p>"
    return [_section("What it writes", note + "".join(_caption(written[i], samples) for i in places))]


def _caption(one: Captioned, samples: Sequence[Sample]) -> str:
    given = "".join(f"<li>{escape(_cut(text))}" for text in one.references[:3])
    picture = _content(samples[one.rows[0]], "image", "")
    return (
        f"<div class=example><div class=written><div class=found>{picture}</div>"
        f"<div><p>{escape(_cut(one.caption)) or '<em>nothing</em>'}</p><ul>{given}</ul></div></div></div>"
    )


def _tasks(evaluation: Evaluation) -> list[str]:
    parts = []
    if evaluation.classes:
        note = "<p>Rows are actual classes, columns predicted ones; shades are shares of a row.</p>"
        drawn = confusion(evaluation.confusion_CC, evaluation.classes)
        parts.append(_section("Confusion matrix", note + drawn + _confusions(evaluation)))
        parts.append(_section("Classes", _reports("Class", evaluation.class_reports)))
    if evaluation.label_reports:
        parts.append(_section("Labels", _reports("Label", evaluation.label_reports)))
    if "value_actual" in evaluation.rows:
        actual, predicted = (evaluation.rows[f"value_{side}"][:_POINTS] for side in ("actual", "predicted"))
        parts.append(_section("Predicted over actual numbers", scatter(actual, predicted)))
    return parts


def _removals(evaluation: Evaluation) -> str:
    """Each task's metric with and without each modality, over the same rows."""
    ways = {"without_{}": "Without it"}
    if any(name.endswith("_imputed") for line in evaluation.removals for name in line.values):
        ways = {
            "without_{}_learned": "Without, a learned vector",
            "without_{}_imputed": "Without, reconstructed",
        }
    ways = {"with_{}": "With it", **ways}
    lines = []
    for line in evaluation.removals:
        found = [line.values.get(way.format(line.modality)) for way in ways]
        cells = ["<td>" if v is None else f"<td>{v[0]:.4f}<td>{v[1]:.4f} to {v[2]:.4f}" for v in found]
        lines.append(
            f"<tr><td>{line.modality.capitalize()}<td>{line.metric}<td>{line.samples}{''.join(cells)}"
        )
    head = "".join(f"<th>{name}<th>95% interval" for name in ways.values())
    note = "<p>Rows that have the modality and another one that the head sees, with it and without.</p>"
    return f"{note}<table><tr><th>Modality<th>Metric<th>Rows{head}{''.join(lines)}</table>"


def _section(title: str, content: str, kind: str = "") -> str:
    return f'<section class="{kind}"><h2>{title}</h2>{content}</section>'


def _tiles(evaluation: Evaluation) -> str:
    metrics = evaluation.metrics
    tiles = [
        f"<div class=tile><span>{title}</span><b>{metrics[name]:{form}}</b>"
        f"<small>{metrics[f'{name}_low']:{form}} to {metrics[f'{name}_high']:{form}}</small></div>"
        for titles, form in ((_SHARES, ".1%"), (_NUMBERS, ".3g"))
        for name, title in titles.items()
        if name in metrics
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _example(example: Example, samples: Sequence[Sample]) -> str:
    contents = "".join(
        _content(samples[row], example.modality, "right" if right else "wrong")
        for row, right in zip(example.rows, example.right, strict=True)
    )
    asked = f"rank of the best right {example.modality}: {example.rank}"
    return (
        f"<div class=example><p>{escape(_cut(example.caption))} <em>{asked}</em></p>"
        f"<div class=found>{contents}</div></div>"
    )


def _content(sample: Sample, modality: str, kind: str) -> str:
    """A row's medium: a picture, a clip to play, or its id."""
    name, content = escape(sample.id), sample.contents(modality) or b""
    if modality == "image":
        return f'<img class="{kind}" src="{_thumbnail(content)}" alt="{name}" title="{name}">'
    if modality == "audio" and len(content) <= _LONGEST_CLIP:
        data = base64.b64encode(content).decode("ascii")
        player = f'<audio controls preload=none src="data:audio/{sample.extensions[modality]};base64,{data}">'
        return f'<span class="{kind}" title="{name}">{player}</audio></span>'
    return f'<span class="{kind}">{name}</span>'


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


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


def _reports(what: str, reports: Sequence[ClassReport]) -> str:
    lines = [
        f"<tr><td>{escape(line.name)}<td>{bar(line.precision)}<td>{bar(line.recall)}<td>{bar(line.f1)}"
        f"<td>{line.support}"
        for line in reports
    ]
    head = f"<tr><th>{what}<th>Precision<th>Recall<th>F1<th>Rows"
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
