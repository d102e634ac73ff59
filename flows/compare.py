"""Train several models on the same data, set them side by side: `python -m flows.compare FILE ...`.

Each FILE is a params file, of which the sections `model`, `train`, `evaluate`, `export` and `runtime`
count; the data are those of `data/prepare`. The answer is a table, `reports/compare.md`, and a page,
`reports/html/compare/index.html`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from flows import graph
from flows.served import answer
from polyweft.errors import FlowError
from polyweft.io import read_json, write_text
from polyweft.workspace import state_folder

PREPARED = Path("data/prepare")
TABLE = Path("reports/compare.md")
PAGE = Path("reports/html/compare/index.html")

METRICS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "zero_shot_accuracy": "zero-shot accuracy",
    "label_map": "label mAP",
    "mae": "mean abs. error",
    "image_to_text_recall_at_10": "image to text R@10",
    "text_to_image_recall_at_10": "text to image R@10",
    "cider": "CIDEr",
    "bleu_4": "BLEU-4",
}
"""Shown where some model has them, each with its 95% interval."""


def compare(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Train each file's model; gives what `flows.candidate` measured, by the file's stem.

    Raises
    ------
    FlowError
        The data are not prepared, a file is missing, or a model failed (its message has been printed).
    """
    from prefect import flow, get_run_logger, task

    if not (PREPARED / "dataset.json").exists():
        raise FlowError(f"{PREPARED} holds no prepared data. Run `dvc repro prepare` first.")
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise FlowError(f"{', '.join(missing)}: no such file. Name params files, such as examples/*.yaml.")

    def candidate(file: Path) -> dict[str, Any]:
        @task(name=file.stem, task_run_name=file.stem, persist_result=False)
        def train_and_measure() -> dict[str, Any]:
            return _run(file, get_run_logger().info)

        return train_and_measure()

    @flow(name="polyweft-compare", validate_parameters=False, persist_result=False)
    def polyweft_compare() -> dict[str, dict[str, Any]]:
        return {file.stem: candidate(file) for file in files}

    found: dict[str, dict[str, Any]] = polyweft_compare()
    return found


def _run(file: Path, say: Callable[[str], None]) -> dict[str, Any]:
    out = (state_folder() / "compare" / file.stem).absolute()
    shutil.rmtree(out, ignore_errors=True)
    candidate = [sys.executable, "-m", "flows.candidate", str(file), str(PREPARED), str(out)]
    settings = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path[1:]])}
    code, lines = graph.run(candidate, on_line=say, settings=settings)
    if code != 0:
        last = lines[-1] if lines else f"it ended with code {code} and said nothing"
        raise FlowError(f"{file}: {last.removeprefix('candidate: ')}")
    return dict(read_json(out / "candidate.json"))


def rows(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The table's cells, a header first; a metric that no model has is left out."""
    shown = [name for name in METRICS if any(name in facts["metrics"] for facts in found.values())]
    head = ["model", "family", *(METRICS[name] for name in shown)]
    head += ["parameters", "GFLOP", "ONNX MB", "s / epoch", "latency ms"]
    body = [
        [
            name,
            facts["family"],
            *(_metric(facts["metrics"], metric) for metric in shown),
            f"{facts['parameters']:,}",
            f"{facts['flops'] / 1e9:.3f}",
            f"{facts['onnx_bytes'] / 1e6:.1f}",
            f"{facts['epoch_seconds']:.1f}",
            f"{facts['latency_ms']:.2f}",
        ]
        for name, facts in found.items()
    ]
    return [head, *body]


def _metric(metrics: Mapping[str, Any], name: str) -> str:
    if name not in metrics:
        return "-"
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{metrics[name]:.3f}{interval}"


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """The table as Markdown."""
    ruler = ["---", "---", *("--:" for _ in cells[0][2:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], ruler, *cells[1:])) + "\n"


def page(cells: Sequence[Sequence[str]]) -> str:
    """The table as a page that needs nothing beside it."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in cells[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{_in_two_lines(cell)}</td>" for cell in row) + "</tr>" for row in cells[1:]
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Models side by side</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 32px auto; max-width: 1280px; padding: 0 24px; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 14px 6px 0; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }}
th {{ font-weight: 500; opacity: .7; font-size: 13px; }}
th:nth-child(-n+2), td:nth-child(-n+2) {{ text-align: left; }}
td {{ vertical-align: top; }}
small {{ opacity: .6; }}
p {{ opacity: .7; max-width: 70ch; }}
</style></head><body>
<h1>Models side by side</h1>
<p>The same prepared data, each model trained as its file says. In brackets 95% intervals. GFLOP: one row
through every tower and the head, forwards. Latency: the same in ONNX Runtime with one thread, median. A
captioner's decoder, which runs once a word, is in neither.</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
</body></html>
"""


def _in_two_lines(cell: str) -> str:
    value, _, interval = escape(cell).partition(" [")
    return f"{value}<br><small>[{interval}</small>" if interval else value


def main(arguments: list[str]) -> int:
    """Command line: 0 with the table, 1 with one message, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m flows.compare", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a params file a model")
    given = parser.parse_args(arguments)

    def work() -> str:
        cells = rows(compare(given.files))
        write_text(TABLE, markdown(cells))
        write_text(PAGE, page(cells))
        return f"{markdown(cells)}\npage: {PAGE}"

    return answer("compare", work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
