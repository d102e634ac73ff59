"""The way into a stage: flags from the signature, one message for an error, files only when it went well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.entry import graph_paths

ROOT = Path(__file__).parents[3]

STAGE = '''
"""A stage for this test."""
from pathlib import Path
from polyweft.config import Section
from polyweft.errors import DataError
from polyweft.report import Report
from stages.entry import enter

class ToyParams(Section):
    number: int

def run(params: ToyParams, *, given: Path, out: Path) -> Report:
    """Double a number."""
    if not given.exists():
        raise DataError(f"{given} is missing. Make it.")
    import statistics
    return Report(facts={"double": 2 * params.number}, run_facts={"speed": 3.5})

if __name__ == "__main__":
    enter(run)
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(STAGE, encoding="utf-8")
    (tmp_path / "params.yaml").write_text("toy: {number: 21}\n", encoding="utf-8")
    (tmp_path / "there").touch()
    return tmp_path


def _run(place: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("POLYWEFT_")}
    return subprocess.run(
        [sys.executable, "toy.py", *flags], cwd=place, capture_output=True, text=True, check=False,
        env={**kept, "PYTHONPATH": str(ROOT), "POLYWEFT_TRACKING": "spool", **environment},
    )  # fmt: skip


def test_a_report_goes_to_git_and_what_differs_to_the_summary(place: Path) -> None:
    done = _run(place, "--given", "there", "--out", "o")
    assert done.returncode == 0, done.stderr
    assert json.loads((place / "data/reports/toy.json").read_text()) == {"double": 42}
    summary = json.loads((place / ".polyweft/summary/toy.json").read_text())
    assert summary["run_facts"] == {"speed": 3.5}
    assert summary["startup_seconds"] > 0
    assert summary["own_seconds"] >= 0


def test_an_error_of_ours_is_one_message_and_exit_code_1(place: Path) -> None:
    done = _run(place, "--given", "nowhere", "--out", "o")
    assert done.returncode == 1
    assert done.stderr == "toy: nowhere is missing. Make it.\n"
    assert not (place / "data/reports/toy.json").exists()


def test_a_bad_parameter_is_refused_before_anything_runs(place: Path) -> None:
    (place / "params.yaml").write_text("toy: {number: many}\n", encoding="utf-8")
    done = _run(place, "--given", "there", "--out", "o")
    assert done.returncode == 1
    assert "`toy.number` is 'many'" in done.stderr


def test_an_experiment_has_a_summary_of_its_own(place: Path) -> None:
    done = _run(place, "--given", "there", "--out", "o", DVC_EXP_NAME="shorter")
    assert done.returncode == 0, done.stderr
    assert not (place / ".polyweft/summary").exists()
    assert (place / ".polyweft/experiments/shorter/toy.json").exists()


def test_paths_of_the_graph_are_filled_from_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text("ingest: {path: ../data}\n", encoding="utf-8")
    Path("dvc.yaml").write_text(
        "stages:\n  ingest:\n    deps: [a.py, '${ingest.path}']\n    outs: [{data/x: {cache: false}}]\n"
        "    metrics: [r.json]\n",
        encoding="utf-8",
    )
    assert graph_paths("ingest") == (["a.py", "../data"], ["data/x", "r.json"])
    assert graph_paths("another") == ([], [])
