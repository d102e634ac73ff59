"""The short table at the end of a run: results, decisions, seconds a stage, and where the pages are.

`python -m flows.summary` prints it (and sends what tracking has left over); `--markdown` prints it for a
comment, `--diff COMMIT` the reports' difference against those of a commit.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import PolyweftError
from polyweft.io import read_json
from polyweft.stage_run import numbers
from polyweft.workspace import quiet_environment, workspace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PAGES = Path("reports/html")
WIDTH = 100

_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "zero_shot_accuracy": "Zero-shot accuracy",
    "label_map": "Labels, mean average precision",
    "r2": "Value, R2",
    "mean_average_precision": "Mean average precision",
    "bleu_4": "Captions, BLEU-4",
    "rouge_l": "Captions, ROUGE-L",
    "cider": "Captions, CIDEr",
}
_PLAIN = ("cider", "r2")
"""Not parts of one."""

_WITHOUT = re.compile(r"accuracy_without_(?!leaks)([a-z]+)")
_RECALL = re.compile(r"([a-z]+)_to_([a-z]+)_recall_at_1")


@dataclass(frozen=True)
class Row:
    """A line of the table: what, and its value."""

    name: str
    value: str


@dataclass(frozen=True)
class Timing:
    """A stage's seconds in its last run: its own work, and start-up with imports."""

    stage: str
    own: float
    startup: float


@dataclass(frozen=True)
class Summary:
    """What the table shows, read from the reports and the untracked summaries."""

    results: list[Row]
    data: list[Row]
    serving: list[Row]
    timings: list[Timing]
    pages: list[Row]


def read(root: Path | None = None) -> Summary:
    """Read the last runs of all stages below `root` (the workspace). What is missing is left out."""
    root = root or workspace()
    stages = _stages(root)
    return Summary(
        results=_results(stages.get("evaluate", {})),
        data=_data(stages),
        serving=_serving(stages),
        timings=[
            Timing(name, float(content.get("own_seconds", 0)), float(content.get("startup_seconds", 0)))
            for name, content in stages.items()
            if "own_seconds" in content
        ],
        pages=_pages(root),
    )


def _stages(root: Path) -> dict[str, dict[str, Any]]:
    """Read each stage's facts (from its tracked report) and, where it ran here, its run's own facts."""
    found: dict[str, dict[str, Any]] = {}
    folder = root / ".polyweft" / "summary"
    for path in sorted((root / "data" / "reports").glob("*.json")):
        found[path.stem] = {"facts": read_json(path)}
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        found.setdefault(path.stem, {"facts": content.get("facts", {})})
        found[path.stem] |= {k: v for k, v in content.items() if k != "facts"}
    return dict(sorted(found.items(), key=lambda item: item[1].get("finished", 0.0)))


def _results(evaluate: dict[str, Any]) -> list[Row]:
    facts = evaluate.get("facts", {})
    rows = [Row(name, _interval(facts, key)) for key, name in _NAMES.items() if key in facts]
    for key in sorted(facts):
        if found := _WITHOUT.fullmatch(key):
            rows.append(Row(f"Accuracy without the {found[1]}", _interval(facts, key)))
        elif found := _RECALL.fullmatch(key):
            names = [key.removesuffix("1") + k for k in ("1", "5", "10")]
            shown = "  ".join(_interval(facts, each) for each in names if each in facts)
            rows.append(Row(f"{found[1].capitalize()} to {found[2]} Recall@1 / 5 / 10", shown))
    return rows


def _interval(facts: dict[str, Any], key: str) -> str:
    value, low, high = (facts.get(name) for name in (key, f"{key}_low", f"{key}_high"))
    if not isinstance(value, int | float):
        return str(value)
    if key in _PLAIN:
        return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return f"{value:.1%}"
    return f"{value:.1%} [{low * 100:.1f}, {high * 100:.1f}]"


def _data(stages: dict[str, dict[str, Any]]) -> list[Row]:
    rows = []
    for stage in ("ingest", "validate", "align", "prepare"):
        facts = stages.get(stage, {}).get("facts", {})
        kept = [f"{facts[key]:,} {name}" for key, name in _COUNTS.items() if isinstance(facts.get(key), int)]
        if kept:
            rows.append(Row(stage.capitalize(), ", ".join(kept)))
    found = numbers(stages.get("align", {}).get("facts", {}))
    measures: dict[str, list[str]] = {}
    for key, value in found.items():
        for measure in ("average_precision", "precision", "recall"):
            if key.endswith(f"_{measure}") or key.endswith(f".{measure}"):
                named = measures.setdefault(key.removesuffix(measure).strip("._"), [])
                named.append(f"{measure.replace('_', ' ')} {value:.3f}")
                break
    rows += [Row(_title(check), ", ".join(sorted(named))) for check, named in measures.items()]
    return rows


_COUNTS = {
    "rows": "rows",
    "rows_clean": "clean",
    "rows_aligned": "kept",
    "repairs": "repaired",
    "quarantined": "quarantined",
    "findings": "findings",
    "samples_train": "train",
    "samples_validation": "validation",
    "samples_test": "test",
}


def _title(key: str) -> str:
    words = key.replace("truth", "").strip("._").replace("_", " ").replace(".", " ")
    return f"  found: {words}"


def _serving(stages: dict[str, dict[str, Any]]) -> list[Row]:
    rows = []
    export, register, deploy = (_all_facts(stages.get(name, {})) for name in ("export", "register", "deploy"))
    if isinstance(export.get("max_abs_error"), int | float):
        rows.append(Row("ONNX against PyTorch", f"largest difference {export['max_abs_error']:.2g}"))
    if "decision" in register:
        reasons = register.get("reasons") or []
        text = "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
        rows.append(Row("Gate", f"{register['decision']}{': ' + text if text else ''}"))
    if register.get("version") is not None:
        again = " (the same export as before)" if register.get("registered") == "again" else ""
        rows.append(
            Row("Registered", f"{register.get('name', 'model')} version {register['version']}{again}")
        )
    if "decision" in deploy:
        rows.append(Row("Triton answered", _answer(deploy)))
    if deploy.get("server"):
        rows.append(Row("Server", str(deploy["server"])))
    return rows


def _answer(deploy: dict[str, Any]) -> str:
    if deploy.get("served_version") is None:
        return str(deploy["decision"])
    said = f"version {deploy['served_version']} ({deploy['decision']})"
    difference = deploy.get("server_largest_difference")
    if isinstance(difference, int | float):
        said += f"; {deploy.get('golden_queries', 'its')} golden queries within {difference:.2g} of PyTorch"
    return said


def _all_facts(stage: dict[str, Any]) -> dict[str, Any]:
    return {**stage.get("facts", {}), **stage.get("run_facts", {})}


def _pages(root: Path) -> list[Row]:
    from polyweft.tracking import tracking_uri

    folders = [f for f in sorted((root / PAGES).glob("*")) if f.is_dir() and any(f.rglob("*.html"))]
    rows = [Row("Reports", "data/reports/*.json")] if (root / "data" / "reports").is_dir() else []
    rows += [Row(f"Pages of {folder.name}", str(_entry(folder).relative_to(root))) for folder in folders]
    uri = tracking_uri()
    rows.append(Row("MLflow", uri if uri.startswith("http") else "make ui           http://127.0.0.1:5000"))
    prefect = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    rows.append(Row("Prefect", prefect or "make serve-flows  http://127.0.0.1:4200"))
    return rows


def _entry(folder: Path) -> Path:
    """Give the page to open first: the outermost `index.html`, or else the outermost page."""
    return min(folder.rglob("*.html"), key=lambda page: (page.name != "index.html", len(page.parts), page))


def markdown(summary: Summary) -> str:
    """Give the table as Markdown."""
    lines: list[str] = []
    for title, rows in (("Results", summary.results), ("Data", summary.data), ("Serving", summary.serving)):
        if rows:
            lines += [f"### {title}", "", "| what | value |", "| --- | --- |"]
            lines += [f"| {row.name} | {row.value.replace('|', '/')} |" for row in rows] + [""]
    if summary.timings:
        lines += ["### Seconds", "", "| stage | own work | start-up and imports |", "| --- | --: | --: |"]
        lines += [f"| {t.stage} | {t.own:.1f} | {t.startup:.1f} |" for t in summary.timings]
        own, startup = _totals(summary)
        lines += [f"| all | {own:.1f} | {startup:.1f} |", ""]
    return "\n".join(lines)


def _totals(summary: Summary) -> tuple[float, float]:
    return sum(t.own for t in summary.timings), sum(t.startup for t in summary.timings)


def show(summary: Summary | None = None, console: Console | None = None) -> None:
    """Print the table, 100 columns wide at most."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    summary = summary or read()
    if console is None:
        given = Console()
        console = Console(width=min(given.width, WIDTH) if given.is_terminal else WIDTH, highlight=False)
    table = Table(box=box.HORIZONTALS, show_header=False, pad_edge=False, expand=True)
    table.add_column(style="cyan", no_wrap=True, min_width=32)
    table.add_column(overflow="fold", ratio=1)
    for rows in (summary.results, summary.data, summary.serving, summary.pages):
        for row in rows:
            table.add_row(row.name, row.value)
        table.add_section()
    console.print(table)
    if summary.timings:
        console.print(_timings(summary))


def _timings(summary: Summary) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.HORIZONTALS, show_footer=True, pad_edge=False)
    own, startup = _totals(summary)
    table.add_column("Seconds", "all", style="cyan", min_width=32)
    table.add_column("own work", f"{own:.1f}", justify="right")
    table.add_column("start-up, imports", f"{startup:.1f}", justify="right")
    for timing in summary.timings:
        table.add_row(timing.stage, f"{timing.own:.1f}", f"{timing.startup:.1f}")
    return table


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.summary", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--diff", metavar="COMMIT", help="print how the reports differ from those of a commit"
    )
    given = parser.parse_args(arguments)
    quiet_environment()
    try:
        if given.diff:
            from flows.retrain import difference

            print(difference(given.diff))
        elif given.markdown:
            print(markdown(read()))
        else:
            _drain()
            show()
    except PolyweftError as error:
        print(f"summary: {error}", file=sys.stderr)
        return 1
    return 0


def _drain() -> None:
    from polyweft.sender import drain

    for line in drain(20.0):
        print(f"tracking: kept for the next command: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
