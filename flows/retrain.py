"""Retrain where data or parameters changed, and say in Markdown how the metrics moved.

`python -m flows.retrain --report FILE` asks DVC what changed, runs `dvc repro` if anything did, and compares
`data/reports/*.json` with those of a commit. CI puts the file into a comment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows import graph, summary
from polyweft.errors import FlowError, PolyweftError
from polyweft.io import read_json, write_text
from polyweft.stage_run import numbers
from polyweft.workspace import quiet_environment

REPORTS = Path("data/reports")


def committed_reports(commit: str) -> dict[str, dict[str, Any]]:
    """Read each stage's report as it stands in `commit`; empty where the commit has none.

    Raises
    ------
    FlowError
        Git does not know the commit.
    """
    names = _git("ls-tree", "--name-only", commit, f"{REPORTS}/").splitlines()
    return {Path(n).stem: json.loads(_git("show", f"{commit}:{n}")) for n in names if n.endswith(".json")}


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FlowError(f"git {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done.stdout


def difference(commit: str = "HEAD") -> str:
    """Give the Markdown table of every number in the reports that differs from `commit`'s."""
    before = committed_reports(commit)
    after = {path.stem: read_json(path) for path in sorted(REPORTS.glob("*.json"))}
    rows = []
    for stage in sorted({*before, *after}):
        old, new = numbers(before.get(stage, {})), numbers(after.get(stage, {}))
        differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
        rows += [f"| {' | '.join([stage, key, *_cells(old, new, key)])} |" for key in differing]
    if not rows:
        return f"No metric differs from {commit}.\n"
    head = [f"| stage | metric | {commit} | now | change |", "| --- | --- | --: | --: | --: |"]
    return "\n".join([*head, *rows]) + "\n"


def _cells(old: dict[str, float], new: dict[str, float], key: str) -> list[str]:
    both = key in old and key in new
    change = f"{new[key] - old[key]:+.4g}" if both else "new" if key in new else "gone"
    return [*(f"{side[key]:.6g}" if key in side else "-" for side in (old, new)), change]


def retrain(commit: str) -> str:
    """Bring the graph up to date if it is not; gives the report as Markdown.

    Raises
    ------
    FlowError
        DVC could not tell what changed, or a stage failed (its message has been printed).
    """
    found = graph.changes()
    if not found:
        return "## Retraining\n\nNeither data nor parameters changed: nothing was run.\n"
    done = subprocess.run(graph.command("repro"), env=graph.environment(), check=False)
    if done.returncode != 0:
        raise FlowError("`dvc repro` failed; what the stage said stands above.")
    named = "\n".join(f"- `{stage}`: {_reason(changes)}" for stage, changes in sorted(found.items()))
    table = summary.markdown(summary.read())
    return f"## Retraining\n\nChanged:\n\n{named}\n\n{difference(commit)}\n{table}"


def _reason(changes: Any) -> str:
    kinds = [kind for change in changes if isinstance(change, dict) for kind in change]
    return ", ".join(dict.fromkeys(kinds)) or ", ".join(str(change) for change in changes)


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.retrain", description=__doc__)
    parser.add_argument("--report", type=Path, help="where the Markdown goes; standard output without it")
    parser.add_argument("--against", metavar="COMMIT", default="HEAD", help="what to compare with")
    given = parser.parse_args(arguments)
    quiet_environment()
    try:
        text = retrain(given.against)
        if given.report:
            write_text(given.report, text)
            print(f"report: {given.report}")
        else:
            print(text)
    except PolyweftError as error:
        print(f"retrain: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
