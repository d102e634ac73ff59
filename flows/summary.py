"""The short table at the end of a run: results, decisions, seconds a stage, and where the pages are.

`python -m flows.summary` prints it (and sends what tracking has left over); `--markdown` prints it for a
comment, `--diff COMMIT` the reports' difference against those of a commit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import PolyweftError
from polyweft.io import read_json
from polyweft.workspace import quiet_environment, state_folder, workspace

if TYPE_CHECKING:
    from rich.console import Console

PAGES = Path("reports/html")

_NAMES = {
    "accuracy": "Accuracy",
    "macro_f1": "Macro F1",
    "image_to_text_recall_at": "Image to text Recall@1 / 5 / 10",
    "text_to_image_recall_at": "Text to image Recall@1 / 5 / 10",
    "mean_average_precision": "Mean average precision",
}


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
    folder = root / ".polyweft" / "summary" if root != workspace() else state_folder() / "summary"
    for path in sorted((root / "data" / "reports").glob("*.json")):
        found[path.stem] = {"facts": read_json(path)}
    for path in sorted(folder.glob("*.json")):
        content = read_json(path)
        found.setdefault(path.stem, {"facts": content.get("facts", {})})
        found[path.stem] |= {k: v for k, v in content.items() if k != "facts"}
    return dict(sorted(found.items(), key=lambda item: item[1].get("finished", 0.0)))


def _results(evaluate: dict[str, Any]) -> list[Row]:
    facts = evaluate.get("facts", {})
    rows = []
    for key, name in _NAMES.items():
        names = [key] if key in facts else [f"{key}_{k}" for k in (1, 5, 10) if f"{key}_{k}" in facts]
        if names:
            rows.append(Row(name, "   ".join(_interval(facts, each) for each in names)))
    return rows


def _interval(facts: dict[str, Any], key: str) -> str:
    low, high = facts.get(f"{key}_low"), facts.get(f"{key}_high")
    between = (
        f" [{low:.3f}, {high:.3f}]" if isinstance(low, int | float) and isinstance(high, int | float) else ""
    )
    value = facts[key]
    return f"{value:.3f}{between}" if isinstance(value, int | float) else str(value)


def _data(stages: dict[str, dict[str, Any]]) -> list[Row]:
    rows = []
    for stage in ("ingest", "validate", "align"):
        facts = stages.get(stage, {}).get("facts", {})
        kept = [
            f"{facts[key]:,} {key.replace('_', ' ')}" for key in _COUNTS if isinstance(facts.get(key), int)
        ]
        if kept:
            rows.append(Row(stage.capitalize(), ", ".join(kept)))
    for key, value in stages.get("align", {}).get("facts", {}).items():
        measure = key.removesuffix("_precision")
        if key.endswith("_precision") and not key.endswith("average_precision"):
            recall = stages["align"]["facts"].get(f"{measure}_recall")
            if isinstance(value, int | float) and isinstance(recall, int | float):
                rows.append(Row(_title(measure), f"precision {value:.3f}, recall {recall:.3f}"))
        elif key.endswith("_average_precision") and isinstance(value, int | float):
            rows.append(Row(_title(key.removesuffix("_average_precision")), f"average precision {value:.3f}"))
    return rows


_COUNTS = ("rows", "samples", "repaired", "repairs", "quarantined", "findings")


def _title(key: str) -> str:
    words = key.removeprefix("truth_").replace("_", " ")
    return "Check: " + words


def _serving(stages: dict[str, dict[str, Any]]) -> list[Row]:
    rows = []
    register = _all_facts(stages.get("register", {}))
    deploy = _all_facts(stages.get("deploy", {}))
    if "decision" in register:
        reasons = register.get("reasons") or register.get("reason") or ""
        text = "; ".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
        rows.append(Row("Gate", f"{register['decision']}{': ' + text if text else ''}"))
    if register.get("version") is not None:
        rows.append(Row("Registered", f"{register.get('name', 'model')} version {register['version']}"))
    for key in ("answer", "served_version", "server", "max_abs_error", "golden_max_abs_error", "status"):
        if key in deploy and not isinstance(deploy[key], dict | list):
            rows.append(Row("Triton: " + key.replace("_", " "), str(deploy[key])))
    return rows


def _all_facts(stage: dict[str, Any]) -> dict[str, Any]:
    return {**stage.get("facts", {}), **stage.get("run_facts", {})}


def _pages(root: Path) -> list[Row]:
    from polyweft.tracking import tracking_uri

    rows = [
        Row(folder.name.capitalize(), str(_entry(folder).relative_to(root)))
        for folder in sorted((root / PAGES).glob("*"))
        if folder.is_dir() and any(folder.rglob("*.html"))
    ]
    uri = tracking_uri()
    mlflow = uri if uri.startswith("http") else "make ui, then http://127.0.0.1:5000"
    rows.append(Row("MLflow", mlflow))
    prefect = os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    rows.append(Row("Prefect", prefect or "make serve-flows, then http://127.0.0.1:4200"))
    return rows


def _entry(folder: Path) -> Path:
    pages = sorted(
        folder.rglob("*.html"), key=lambda path: (path.name != "index.html", len(path.parts), path)
    )
    return pages[0]


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
    """Print the table, at most 100 columns wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    summary = summary or read()
    if console is None:
        wide = Console()
        console = Console(width=min(wide.width, 100) if wide.is_terminal else 100, highlight=False)
    table = Table(
        title="Polyweft", box=box.SIMPLE_HEAD, show_header=False, title_style="bold", pad_edge=False
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for rows in (summary.results, summary.data, summary.serving, summary.pages):
        for row in rows:
            table.add_row(row.name, row.value)
        if rows:
            table.add_section()
    console.print(table)
    if summary.timings:
        console.print(_timings(summary))


def _timings(summary: Summary) -> Any:
    from rich import box
    from rich.table import Table

    own, startup = _totals(summary)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("Seconds", "all", style="cyan")
    table.add_column("own work", f"{own:.1f}", justify="right")
    table.add_column("start-up, imports", f"{startup:.1f}", justify="right")
    for timing in summary.timings:
        table.add_row(timing.stage, f"{timing.own:.1f}", f"{timing.startup:.1f}")
    return table


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.summary", description=__doc__)
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--diff", metavar="COMMIT", help="print how the reports differ from those of a commit"
    )
    given = parser.parse_args(arguments)
    quiet_environment()
    try:
        if given.diff:
            from flows.retrain import difference

            print(difference(given.diff))
        elif given.json:
            print(json.dumps([vars(row) for row in read().results], indent=2))
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
