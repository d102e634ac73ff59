"""A DVC experiment in a folder of its own finds a source beside the project; the main one tracks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyweft.spool import read_events
from tests.pipeline import toy

pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> None:
    done = subprocess.run(
        [*command], cwd=folder, env=toy.environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_experiment_under_temp_reads_a_relative_source(tmp_path: Path) -> None:
    source = tmp_path / "shared" / "data"
    source.mkdir(parents=True)
    (source / "a").write_text("here")
    folder = toy.make(tmp_path / "repository")
    graph = (folder / "dvc.yaml").read_text()
    graph = graph.replace("deps: [stage.py]", "deps: [stage.py, ../shared/data]\n    params: [lr]", 1)
    (folder / "dvc.yaml").write_text(graph)
    (folder / "params.yaml").write_text("lr: 1\n")
    (folder / ".gitignore").write_text(".polyweft\n__pycache__\n*.txt\n")
    identity = ("-c", "user.name=n", "-c", "user.email=e@x")
    run(folder, "git", "add", ".")
    run(folder, "git", *identity, "commit", "-qm", "one")
    run(folder, sys.executable, "-m", "polyweft.workspace", "../shared/data")
    run(folder, sys.executable, "-m", "dvc", "exp", "run", "--temp", "-S", "lr=2", "--name", "trial", "zeta")
    (spool,) = (folder / ".polyweft" / "spool").glob("zeta-*.jsonl")
    start, *_ = (event for event, _ in read_events(spool))
    assert start["tags"]["polyweft.experiment"] == "trial"
    assert start["pipeline"]
