"""The main workspace is found from an experiment's folder, and its sources are found from there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from polyweft import workspace


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    (root / ".dvc" / "tmp" / "exps" / "standalone" / "tmpabc").mkdir(parents=True)
    (tmp_path / "shared" / "data").mkdir(parents=True)
    (tmp_path / "shared" / "data" / "file").write_text("here")
    monkeypatch.delenv("POLYWEFT_WORKSPACE", raising=False)
    monkeypatch.chdir(root)
    return root


def test_the_workspace_is_where_the_command_stands(folder: Path) -> None:
    assert workspace.workspace() == folder
    assert workspace.state_folder() == folder / ".polyweft"


@pytest.mark.parametrize("inner", ["standalone/tmpabc", "tmpxyz", "tmpxyz/data"])
def test_from_an_experiment_it_is_the_main_one(
    folder: Path, inner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folder / ".dvc" / "tmp" / "exps" / inner
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(place)
    assert workspace.workspace() == folder


def test_the_environment_has_the_last_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", "/elsewhere")
    assert workspace.workspace() == Path("/elsewhere")


@pytest.mark.parametrize("experiment", ["standalone/tmpabc", "tmpxyz"])
@pytest.mark.parametrize("source", ["../shared/data", "./../shared/data/"])
def test_a_source_outside_is_found_from_both_kinds_of_experiments(
    folder: Path, experiment: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = workspace.link_source_for_experiments(source)
    assert links == workspace.link_source_for_experiments(source)
    place = folder / ".dvc" / "tmp" / "exps" / experiment
    place.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(place)
    assert (Path(source) / "file").read_text() == "here"


@pytest.mark.parametrize("source", ["data/raw", "/absolute/data", "..", "../..", "a/../b", "../../../../x"])
def test_nothing_is_linked_where_no_link_can_help_or_may_stand(folder: Path, source: str) -> None:
    assert workspace.link_source_for_experiments(source) == []


def test_the_command_prints_its_links(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.main(["../shared/data", "inside"])
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_what_stands_in_the_way_is_left_alone_and_an_old_link_is_moved(folder: Path) -> None:
    exps = folder / ".dvc" / "tmp" / "exps"
    (exps / "shared").mkdir()
    (exps / "standalone" / "shared").symlink_to("/nowhere")
    assert workspace.link_source_for_experiments("../shared/data") == [exps / "standalone" / "shared"]
    assert (exps / "shared").is_dir()
    assert not (exps / "shared").is_symlink()


def test_statistics_are_off_unless_a_person_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "chosen")
    workspace.quiet_environment()
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "chosen"


def test_the_commit_says_when_tracked_files_differ(folder: Path) -> None:
    assert workspace.git_commit() is None
    identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
    (folder / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], [*identity, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], check=True)
    clean = workspace.git_commit()
    assert clean is not None
    assert len(clean) == 40
    (folder / "untracked").write_text("x")
    assert workspace.git_commit() == clean
    (folder / "file").write_text("two")
    assert workspace.git_commit() == f"{clean}-dirty"
