"""The workflows call the Makefile; their steps are run here as far as a machine without GitHub can."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from polyweft.config import read_yaml

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read_yaml(path)["jobs"].values() for step in job["steps"]]


def make_steps() -> list[tuple[str, str]]:
    found = []
    for path in WORKFLOWS:
        for step in steps(path):
            lines = step.get("run", "").splitlines()
            found += [(path.name, line) for line in lines if line.startswith("make ")]
    return found


def test_the_triggers_are_a_push_a_dispatch_a_schedule_and_changed_data_or_parameters() -> None:
    ci, retrain = (
        read_yaml(ROOT / ".github" / "workflows" / name)["on"] for name in ("ci.yml", "retrain.yml")
    )
    assert "push" in ci
    assert {"workflow_dispatch", "schedule", "push"} <= set(retrain)
    assert {"params.yaml", "data/**"} <= set(retrain["push"]["paths"])
    assert "make test" in [line for name, line in make_steps() if name == "ci.yml"]
    assert "make retrain" in [line for name, line in make_steps() if name == "retrain.yml"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_step_is_an_action_at_a_version_or_a_command(path: Path) -> None:
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step.get("uses", "actions/x@v1"))
        # GitHub's values reach a shell through `env` alone: one inside a script could carry a command.
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize(("workflow", "command"), make_steps())
def test_make_knows_every_target(workflow: str, command: str) -> None:
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_doctor_s_step_runs_here() -> None:
    # Exit code 1 means that it found this machine lacking something, which it then names.
    done = subprocess.run(
        ["make", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("number", "expected"), [("7", "pr comment 7 "), ("", "commits/abc/comments")])
def test_the_comment_goes_to_the_pull_request_or_the_commit(
    tmp_path: Path, number: str, expected: str
) -> None:
    (script,) = (
        s["run"] for s in steps(ROOT / ".github/workflows/retrain.yml") if s.get("name") == "Comment"
    )
    gh = tmp_path / "gh"
    gh.write_text('#!/bin/sh\necho "$@"\n')
    gh.chmod(0o755)
    more = {"PULL_REQUEST": number, "GITHUB_REPOSITORY": "a/b", "GITHUB_SHA": "abc"}
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", script],
        env={**os.environ, "PATH": path, **more},
        capture_output=True,
        text=True,
        check=True,
    )
    assert expected in done.stdout
    assert "reports/retrain.md" in done.stdout


def test_the_report_that_is_commented_is_the_one_that_make_writes() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "retrain"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert "--report reports/retrain.md" in done.stdout


def test_prefect_s_deployment_is_nightly_and_its_entrypoint_exists() -> None:
    (deployment,) = read_yaml(ROOT / "prefect.yaml")["deployments"]
    file, _, name = deployment["entrypoint"].partition(":")
    assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")
    (schedule,) = deployment["schedules"]
    minute, hour, *rest = schedule["cron"].split()
    assert minute.isdigit()
    assert hour.isdigit()
    assert rest == ["*", "*", "*"]
    assert deployment["work_pool"]["name"]
