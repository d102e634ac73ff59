"""Retraining runs where something changed, and reports how the metrics moved."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from flows import retrain
from polyweft.errors import FlowError
from polyweft.io import write_json
from tests.pipeline import toy


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    write_json(
        Path("data/reports/evaluate.json"), {"accuracy": 0.9, "f1": {"macro": 0.8}, "old": 1, "name": "a"}
    )
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "one")
    return tmp_path


def test_no_difference_is_said(folder: Path) -> None:
    assert retrain.difference("HEAD") == "No metric differs from HEAD.\n"


def test_every_number_that_moved_came_or_went_has_a_row(folder: Path) -> None:
    write_json(Path("data/reports/evaluate.json"), {"accuracy": 0.95, "f1": {"macro": 0.8}, "name": "b"})
    write_json(Path("data/reports/train.json"), {"epochs": 3})
    rows = retrain.difference("HEAD").splitlines()[2:]
    assert rows == [
        "| evaluate | accuracy | 0.9 | 0.95 | +0.05 |",
        "| evaluate | old | 1 | - | gone |",
        "| train | epochs | - | 3 | new |",
    ]


def test_a_commit_that_git_does_not_know_is_named(folder: Path) -> None:
    with pytest.raises(FlowError, match="nowhere"):
        retrain.difference("nowhere")


def test_a_changed_graph_is_run_reported_and_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = toy.make(tmp_path / "toy")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    monkeypatch.chdir(root)
    for name, value in toy.environment(root).items():
        monkeypatch.setenv(name, value)
    assert retrain.main(["--report", "reports/retrain.md"]) == 0
    text = Path("reports/retrain.md").read_text()
    assert "- `zeta`: " in text
    assert Path("omega.txt").exists()
    assert retrain.main(["--report", "reports/retrain.md"]) == 0
    assert "nothing was run" in Path("reports/retrain.md").read_text()
    Path("stage.py").write_text("raise SystemExit(1)")
    assert retrain.main([]) == 1
