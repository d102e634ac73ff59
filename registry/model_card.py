"""The model card: what a registered version is, what it was made from, and what it can be used for.

Markdown, after Mitchell et al., Model Cards for Model Reporting (2019). It is written from facts alone, so
the same inputs give the same text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyweft.data.shards import Dataset
from polyweft.io import read_json

DATA_CHECKS = ("ingest", "validate", "align", "prepare")

_SHOWN_CLASSES = 20


def read_reports(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the reports of the stages that check data; a stage without a report is left out."""
    return {
        stage: read_json(folder / f"{stage}.json")
        for stage in DATA_CHECKS
        if (folder / f"{stage}.json").is_file()
    }


def write_card(
    *,
    name: str,
    description: str,
    spec: Mapping[str, Any],
    dataset: Dataset,
    metrics: Mapping[str, float],
    bars: Mapping[str, Mapping[str, Any]],
    record: Mapping[str, Any],
    reports: Mapping[str, Mapping[str, Any]],
) -> str:
    """Give the card of one version.

    Parameters
    ----------
    spec
        The export's `model.json`.
    metrics
        On the test split, by the exported model; `<metric>_low` and `_high` are its 95% interval.
    bars
        From `registry.gate.minimum_bars`.
    record
        From `registry.lineage.build_record`.
    reports
        From `read_reports`.
    """
    sections = [
        f"# {name}\n\n{description.strip()}",
        _model(spec),
        _metrics(metrics, bars),
        _use(spec, dataset),
        _data(dataset),
        _checks(reports),
        _parameters(record),
        _lineage(spec, record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _model(spec: Mapping[str, Any]) -> str:
    rows = [("family", str(spec["family"])), ("modalities", ", ".join(spec["modalities"]))]
    for name in spec["modalities"]:
        given = spec["inputs"][name]
        settings = ", ".join(f"{key} {value}" for key, value in sorted(given["spec"].items()))
        shape = " x ".join(str(size) for size in given["largest"])
        rows.append(
            (
                f"{name} as",
                f"{given['tensor']}, {given['dtype']}, {shape}" + (f"; {settings}" if settings else ""),
            )
        )
    if spec["embedding_size"]:
        rows.append(("embedding", f"{spec['embedding_size']} numbers of unit length"))
    if spec["sees"]:
        rows += [("head sees", ", ".join(spec["sees"])), ("head answers with", ", ".join(spec["outputs"]))]
    if spec["generates"]:
        rows.append(("writes captions", _code(spec["generation"])))
    for kind in ("classes", "labels"):
        if spec[kind]:
            shown = ", ".join(spec[kind][:_SHOWN_CLASSES])
            left = len(spec[kind]) - _SHOWN_CLASSES
            rows.append((f"{len(spec[kind])} {kind}", shown + (f" and {left} more" if left > 0 else "")))
    return "## Model\n\n" + _table(("", ""), rows)


def _metrics(metrics: Mapping[str, float], bars: Mapping[str, Mapping[str, Any]]) -> str:
    plain = [key for key in sorted(metrics) if not key.endswith(("_low", "_high"))]
    rows = []
    for key in plain:
        low, high = metrics.get(f"{key}_low"), metrics.get(f"{key}_high")
        interval = f"{_number(low)} to {_number(high)}" if low is not None and high is not None else ""
        bar = bars.get(key)
        rows.append((key, _number(metrics[key]), interval, _number(bar["bar"]) if bar else ""))
    title = "## Metrics\n\nOn the test split, by the exported model. Intervals: 95% bootstrap by image.\n\n"
    return title + _table(("metric", "value", "interval", "minimum"), rows)


def _use(spec: Mapping[str, Any], dataset: Dataset) -> str:
    modalities = spec["modalities"]
    uses = []
    if spec["embedding_size"] and len(modalities) > 1:
        uses.append(f"finding any of {', '.join(modalities)} by any other")
    if spec["classes"] and spec["sees"]:
        uses.append(f"telling {len(spec['classes'])} classes apart")
    if spec["labels"] and spec["sees"]:
        uses.append(f"naming which of {len(spec['labels'])} labels apply")
    if "value" in spec["outputs"]:
        uses.append("estimating a number")
    if spec["generates"]:
        uses.append("describing images")
    limits = [f"Use: {', '.join(uses)}."]
    if "text" in modalities:
        limits.append(f"Languages: {', '.join(dataset.languages) or 'those of the training captions'}.")
    limits += [
        "Limits: the figures hold for data like the test split; other devices, styles, languages or classes "
        "were not measured.",
        "An input unlike all of these still gets an embedding and, where there is a head, an answer.",
        "Not meant for decisions about people.",
    ]
    if "text" in spec["sees"]:
        limits.append("The head reads the caption: where text gives the answer away, it need not look.")
    return "## Use and limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _data(dataset: Dataset) -> str:
    rows = [(f"rows in {split}", str(count)) for split, count in sorted(dataset.counts.items())]
    rows += [(f"rows with {kind}", str(count)) for kind, count in sorted(dataset.modalities.items())]
    return "## Data\n\n" + _table(("", ""), rows)


def _checks(reports: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for stage, facts in sorted(reports.items()):
        for key, value in sorted(facts.items()):
            if isinstance(value, int | float) and not isinstance(value, bool):
                rows.append((stage, key, _number(value)))
            elif isinstance(value, str | bool):
                rows.append((stage, key, str(value)[:80]))
    return "## Checks of the data\n\n" + _table(("stage", "fact", "value"), rows) if rows else ""


def _parameters(record: Mapping[str, Any]) -> str:
    rows = []
    for stage in record.get("order", []):
        for file, values in (record["stages"][stage].get("params") or {}).items():
            rows += [(stage, key, _code(value)) for key, value in sorted(values.items()) if file]
    return "## Parameters\n\n" + _table(("stage", "key", "value"), rows) if rows else ""


def _lineage(spec: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    rows = [("export", spec["export_hash"]), ("commit", record.get("commit") or "none")]
    for stage in record.get("order", []):
        outs = record["stages"][stage].get("outs", [])
        rows += [(out["path"], out.get("md5", "none")) for out in outs]
    return "## Lineage\n\n" + _table(("what", "hash"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _code(value: Any) -> str:
    return f"`{json.dumps(value, sort_keys=True, ensure_ascii=False)}`"


def _number(value: float) -> str:
    if isinstance(value, int) or (value > 1 and value.is_integer()):
        return str(int(value))
    return f"{value:.4f}" if math.isfinite(value) else "not a number"
