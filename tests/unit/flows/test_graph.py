"""The graph is DVC's: its order, one stage at a time, and what DVC says of a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flows import graph
from polyweft.errors import FlowError
from tests.pipeline import toy


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make(tmp_path_factory.mktemp("toy") / "repository")


@pytest.fixture(autouse=True)
def environment(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in toy.environment(repository).items():
        monkeypatch.setenv(name, value)


def test_the_order_is_that_of_dvc_repro(tmp_path: Path) -> None:
    root = toy.make(tmp_path / "whole")
    environment = toy.environment(root)
    subprocess.run(graph.command("repro", "--quiet"), cwd=root, env=environment, check=True)
    assert [stage.name for stage in graph.stages(root)] == list(graph.lock(root))
    assert len(graph.lock(root)) == 4


def test_retries_come_from_the_graph(repository: Path) -> None:
    assert {stage.name: stage.retries for stage in graph.stages(repository)}["zeta"] == 1
    assert {stage.name: stage.retries for stage in graph.stages(repository)}["omega"] == 0


def test_a_stage_runs_once_and_is_cached_then(repository: Path) -> None:
    lines: list[str] = []
    assert graph.reproduce("zeta", on_line=lines.append, root=repository) == "ran"
    assert graph.reproduce("zeta", on_line=lines.append, root=repository) == "cached"
    assert "> python stage.py zeta" in lines
    assert not [line for line in lines if "git add" in line or not line]
    assert list(graph.lock(repository)) == ["zeta"]
    assert set(graph.changes(repository)) == {"alpha", "beta", "omega"}


def test_a_failed_stage_gives_its_own_message(repository: Path) -> None:
    (repository / "mode").write_text("fail beta")
    with pytest.raises(graph.StageError, match="the toy is broken") as caught:
        graph.reproduce("beta", on_line=lambda line: None, root=repository)
    assert caught.value.killed is False


@pytest.mark.parametrize(
    ("code", "lines", "killed", "said"),
    [
        (-9, [], True, "DVC was ended by signal 9"),
        (255, ["ERROR: failed to reproduce 'x': failed to run: python, exited with -9"], True, "signal 9"),
        (255, ["ERROR: failed to reproduce 'x': failed to run: python, exited with 137"], True, "signal 9"),
        (255, ["x: lr is 3", "ERROR: failed to run: python, exited with 1"], False, "lr is 3"),
        (255, ["ERROR: dvc.yaml is broken"], False, "dvc.yaml is broken"),
        (3, [], False, "exit code 3"),
    ],
)
def test_a_failure_is_the_stage_s_own_or_a_signal_s(
    code: int, lines: list[str], killed: bool, said: str
) -> None:
    error = graph._failure("x", code, lines)
    assert error.killed is killed
    assert said in str(error)


def test_a_folder_without_dvc_is_named(tmp_path: Path) -> None:
    with pytest.raises(FlowError, match="DVC cannot read the graph"):
        graph.stages(tmp_path)
    with pytest.raises(FlowError, match="dvc status failed"):
        graph.changes(tmp_path)


def test_no_lock_before_the_first_run(tmp_path: Path) -> None:
    assert graph.lock(tmp_path) == {}


def test_this_python_comes_first_in_the_path() -> None:
    assert graph.environment()["PATH"].split(":")[0] == str(Path(sys.executable).parent)
