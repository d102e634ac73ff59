"""The flow against DVC itself, on a toy graph: the same lock, retries, and no process left behind."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flows.server import starting
from tests.pipeline import toy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server for the flows that need none of their own: it saves each of them its start."""
    home = tmp_path_factory.mktemp("prefect")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYWEFT_WORKSPACE", str(home))
        patch.setenv("PREFECT_HOME", str(home / ".polyweft" / "prefect"))
        patch.delenv("PREFECT_API_URL", raising=False)
        with starting(pages=False) as own:
            assert own is not None
            own.wait()
            yield own.url


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Path]:
    folder = toy.make(tmp_path / "repository")
    yield folder
    for process in toy.left(folder):
        process.kill()


def start(folder: Path, server: str | None = None) -> subprocess.Popen[str]:
    """Start the flow, with its own server or the given one."""
    return toy.python(folder, "-m", "flows.pipeline", **({"PREFECT_API_URL": server} if server else {}))


def test_the_flow_leaves_the_lock_that_dvc_leaves_and_runs_nothing_twice(tmp_path: Path) -> None:
    by_dvc, by_flow = toy.make(tmp_path / "dvc"), toy.make(tmp_path / "flow")
    first, second = toy.python(by_dvc, "-m", "dvc", "repro"), start(by_flow)
    assert first.wait(240) == 0, (by_dvc / "output").read_text()
    assert second.wait(240) == 0, (by_flow / "output").read_text()
    assert (by_flow / "dvc.lock").read_bytes() == (by_dvc / "dvc.lock").read_bytes()
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=by_flow,
        env=toy.environment(by_flow),
        capture_output=True,
        text=True,
        check=True,
    )
    assert status.stdout.strip() == "{}"
    assert toy.wait_until(lambda: not toy.left(by_flow), 10)


def test_a_failure_of_the_stage_is_tried_again_only_where_the_graph_says_so(
    repository: Path, server: str
) -> None:
    (repository / "mode").write_text("fail beta")
    flow = start(repository, server)
    assert flow.wait(240) == 1
    output = (repository / "output").read_text()
    assert (repository / "tries").read_text().split() == ["beta"]
    assert output.count("flow: stage `beta`: the toy is broken. Mend it.") == 1
    assert "Traceback" not in output
    assert not (repository / "alpha.txt").exists()


def test_a_stage_that_a_signal_ended_is_tried_again(repository: Path, server: str) -> None:
    (repository / "mode").write_text("die alpha")
    flow = start(repository, server)
    assert flow.wait(240) == 0, (repository / "output").read_text()
    assert (repository / "tries").read_text().split() == ["alpha", "alpha"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_flow_that_is_stopped_leaves_no_process_and_one_message(
    repository: Path, server: str, number: signal.Signals, code: int
) -> None:
    (repository / "mode").write_text("hang zeta")
    flow = start(repository, server)
    assert toy.wait_until((repository / "hanging").exists, 120)
    flow.send_signal(number)
    assert flow.wait(60) == code
    assert toy.wait_until(lambda: not toy.left(repository), 5), toy.left(repository)
    output = (repository / "output").read_text()
    assert output.count("flow: stopped by") == 1
    assert "Traceback" not in output


def test_a_flow_that_is_killed_takes_everything_along(repository: Path) -> None:
    (repository / "mode").write_text("hang zeta")
    flow = start(repository)
    assert toy.wait_until((repository / "hanging").exists, 120)
    assert len(toy.left(repository)) >= 5
    flow.kill()
    flow.wait(10)
    assert toy.wait_until(lambda: not toy.left(repository), 15), toy.left(repository)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dvc_that_is_killed_leaves_no_process(repository: Path, shell: str, number: signal.Signals) -> None:
    (repository / "mode").write_text("hang zeta")
    dvc = toy.python(repository, "-m", "dvc", "repro", SHELL=shell)
    assert toy.wait_until((repository / "hanging").exists, 60)
    assert len(toy.left(repository)) >= 3
    dvc.send_signal(number)
    dvc.wait(10)
    assert toy.wait_until(lambda: not toy.left(repository), 10), toy.left(repository)
    assert (repository / "output").read_text().count("is gone; stopping") == 1


def test_dvc_killed_under_the_flow_is_started_again_with_nothing_left_of_the_first(
    repository: Path, server: str
) -> None:
    (repository / "mode").write_text("hang zeta")
    flow = start(repository, server)
    assert toy.wait_until((repository / "hanging").exists, 120)
    hanging = psutil.Process(int((repository / "hanging").read_text()))
    (repository / "mode").write_text("good")
    ancestor = next(p for p in hanging.parents() if "dvc" in p.cmdline())
    ancestor.kill()
    assert flow.wait(240) == 0, (repository / "output").read_text()
    assert not hanging.is_running()
    assert toy.wait_until(lambda: not toy.left(repository), 10), toy.left(repository)
