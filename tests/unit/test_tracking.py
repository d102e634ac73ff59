"""What reaches MLflow: every run once, whatever stopped in between; with MLflow's own store and server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyweft import processes, sender
from polyweft.processes import guarded
from polyweft.spool import append, pipelines_folder, spool_folder
from polyweft.stage_run import StageRun
from polyweft.tracking import OutageError, Store, artifact_location, experiment_name, tracking_uri

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """One SQLite store for this module: making one takes a second."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "dvc.yaml").write_text("stages: {ingest: {}, train: {}, deploy: {}}")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_EXP_NAME", "DVC_STAGE"):
            patch.delenv(name, raising=False)
        patch.setenv("POLYWEFT_WORKSPACE", str(folder))
        patch.setenv("POLYWEFT_TRACKING", "spool")
        patch.setenv("MLFLOW_RUN_ID", "0" * 32)  # must override nothing
        yield Store()


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The key of a driver that lives: a process that sleeps."""
    driver = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    key = processes.identity(driver.pid)
    assert key is not None
    monkeypatch.setenv("POLYWEFT_PIPELINE_RUN", key)
    yield key
    driver.kill()
    driver.wait()


def begin(stage: str = "train") -> StageRun:
    return StageRun.begin(stage, params={"train": {"lr": 0.1}}, deps={"data/prepare": "d" * 32}, commit="abc")


def runs(store: Store, query: str = "") -> list[Any]:
    return list(store.client.search_runs([store.experiment()], query))


def run_of(store: Store, run: StageRun) -> Any:
    (found,) = runs(store, f"tags.`polyweft.run_key` = '{run.path.stem}'")
    return found


def test_the_address_is_the_workspace_s_database_unless_the_environment_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    assert artifact_location() == (tmp_path / "mlartifacts").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert (tracking_uri(), artifact_location(), experiment_name()) == ("http://127.0.0.1:1", None, "other")


def test_a_run_arrives_whole_and_its_file_is_removed(store: Store, tmp_path: Path) -> None:
    run = begin()
    for step in range(3):
        run.metrics({"loss": 1.0 / (step + 1), "recall@1": 0.5}, step=step)
    (tmp_path / "page.html").write_text("page")
    run.artifact(tmp_path / "page.html", "pages")
    run.end("FINISHED", outs={"data/train": "a" * 32}, facts={"accuracy": 0.9})
    assert sender.send_spool(store, run.path)
    found = run_of(store, run)
    assert found.info.status == "FINISHED"
    assert found.data.params == {"train.lr": "0.1"}
    assert found.data.metrics == {"loss": pytest.approx(1 / 3), "recall_1": 0.5, "accuracy": 0.9}
    assert found.data.tags["polyweft.dep.data/prepare"] == "d" * 32
    assert found.data.tags["polyweft.out.data/train"] == "a" * 32
    assert found.data.tags["polyweft.commit"] == "abc"
    assert [step.step for step in store.client.get_metric_history(found.info.run_id, "loss")] == [0, 1, 2]
    assert [a.path for a in store.client.list_artifacts(found.info.run_id, "pages")] == ["pages/page.html"]
    assert not list(spool_folder().glob(f"{run.path.stem}*"))


def test_what_is_sent_twice_stands_once(store: Store) -> None:
    run = begin()
    run.metrics({"loss": 0.5}, step=1)
    sender.send_spool(store, run.path)
    # The sender was killed before it could note what it had sent, and another one starts over.
    run.path.with_suffix(".sent").unlink()
    run.metrics({"loss": 0.25}, step=2)
    run.end("FINISHED")
    again = Store()
    assert sender.send_spool(again, run.path)
    found = run_of(again, run)
    assert [m.value for m in again.client.get_metric_history(found.info.run_id, "loss")] == [0.5, 0.25]


def test_a_run_whose_stage_was_killed_is_closed_as_killed(store: Store) -> None:
    code = (
        "import os; from polyweft.tracking import StageRun\n"
        "run = StageRun.begin('train', params={}, deps={}, commit=None); run.metric('loss', 0.5, 1)\n"
        "print(run.path, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())
    assert path in sender.left_over()[0]
    sender.send_left_over(store)
    assert not path.exists()
    (found,) = runs(store, f"tags.`polyweft.run_key` = '{path.stem}'")
    assert (found.info.status, found.data.metrics) == ("KILLED", {"loss": 0.5})


def test_what_mlflow_refuses_is_left_out_and_the_rest_arrives(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begin()
    append(run.path, {"event": "metrics", "time": "no time", "step": 0, "values": {"bad": 1.0}})
    run.metric("good", 1.0)
    run.end("FINISHED")
    assert sender.send_spool(store, run.path)
    assert run_of(store, run).info.status == "FINISHED"
    assert "left out" in capsys.readouterr().err


def test_stages_of_one_driver_have_one_parent_that_names_executed_and_cached(
    store: Store, pipeline: str
) -> None:
    children = [begin("ingest"), begin("train")]
    for child in children:
        child.end("FINISHED")
        sender.send_spool(store, child.path)
    parents = {run_of(store, child).data.tags["mlflow.parentRunId"] for child in children}
    (parent,) = runs(store, f"tags.`polyweft.pipeline_run` = '{pipeline}'")
    assert parents == {parent.info.run_id}
    assert parent.info.status == "RUNNING"
    assert sender.close_pipeline(store, pipelines_folder() / f"{pipeline}.jsonl")
    closed = store.client.get_run(parent.info.run_id)
    assert closed.info.status == "FINISHED"
    assert closed.data.tags["polyweft.executed"] == "ingest train"
    assert closed.data.tags["polyweft.cached"] == "deploy"


def test_a_parent_that_was_left_open_is_closed_by_the_next_command(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYWEFT_PIPELINE_RUN", "1-1-gone")
    run = begin("ingest")
    run.end("FAILED")
    # The stage's process (this one) lives: only its finished run may be sent.
    assert sender.send_spool(store, run.path)
    assert sender.drain(5) == []
    (parent,) = runs(store, "tags.`polyweft.pipeline_run` = '1-1-gone'")
    assert (parent.info.status, parent.data.tags["polyweft.not_executed"]) == ("FAILED", "train deploy")
    assert not list(pipelines_folder().glob("1-1-gone*"))


def test_a_dead_server_costs_an_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("POLYWEFT_TRACKING", "spool")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run = begin()
    run.end("FINISHED")
    began = time.monotonic()
    with pytest.raises(OutageError):
        sender.send_spool(Store(), run.path)
    assert time.monotonic() - began < 20
    assert run.path.exists()


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    database = f"sqlite:///{folder / 'server.db'}"
    options = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "artifacts")]
    command = [sys.executable, "-m", "mlflow", "server", *options, "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        guarded([*command, "--workers", "1"]),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # The server's ten job workers double the time that its start takes, and nothing here needs them.
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return server
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the MLflow server did not start within 90 s")


def stop(server: subprocess.Popen[bytes]) -> None:
    processes.kill_tree(server.pid)
    server.wait()


@pytest.mark.slow
def test_a_server_that_stops_in_the_middle_of_training_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("POLYWEFT_TRACKING", "POLYWEFT_PIPELINE_RUN", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    code = (
        "import sys; from polyweft.tracking import StageRun\n"
        "run = StageRun.begin('train', params={'lr': 1}, deps={}, commit=None)\n"
        "for line in sys.stdin:\n"
        "    step = int(line); run.metric('loss', 1 / (step + 1), step)\n"
        "run.end('FINISHED', facts={'accuracy': 0.9})\n"
    )
    server = serve(tmp_path, port)
    try:
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, text=True) as stage:
            assert stage.stdin is not None
            store = Store()

            def say(steps: range) -> None:
                assert stage.stdin is not None
                for step in steps:
                    stage.stdin.write(f"{step}\n")
                stage.stdin.flush()

            def arrived() -> list[int]:
                query = "tags.`polyweft.stage` = 'train'"
                found = store.client.search_runs([store.experiment()], query)
                history = [store.client.get_metric_history(run.info.run_id, "loss") for run in found]
                return [metric.step for metrics in history for metric in metrics]

            say(range(5))
            deadline = time.monotonic() + 60
            while not arrived() and time.monotonic() < deadline:  # the curve appears while training runs
                time.sleep(0.3)
            assert arrived()
            stop(server)
            say(range(5, 10))
            time.sleep(1.5)
            stage.stdin.close()
            began = time.monotonic()
            assert stage.wait(30) == 0
            assert time.monotonic() - began < 25
        assert list(spool_folder().glob("*.jsonl"))
        server = serve(tmp_path, port)
        drained = subprocess.run(
            [sys.executable, "-m", "polyweft.tracking", "--drain"], check=False, timeout=120
        )
        assert drained.returncode == 0
        assert sorted(arrived()) == list(range(10))
        (run,) = store.client.search_runs([store.experiment()], "tags.`polyweft.stage` = 'train'")
        assert (run.info.status, run.data.metrics["accuracy"]) == ("FINISHED", 0.9)
        assert not list(spool_folder().glob("*.jsonl"))
    finally:
        stop(server)


def test_a_sender_ends_with_its_driver_and_closes_the_parent(
    store: Store, monkeypatch: pytest.MonkeyPatch, pipeline: str
) -> None:
    monkeypatch.delenv("POLYWEFT_TRACKING")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = begin("ingest")
    assert run.end("FINISHED", wait=60)
    assert run.sender.running()
    os.kill(int(pipeline.split("-")[0]), signal.SIGKILL)
    deadline = time.monotonic() + 20
    while run.sender.lock.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not run.sender.lock.exists()
    (parent,) = runs(store, f"tags.`polyweft.pipeline_run` = '{pipeline}'")
    assert parent.info.status == "FINISHED"
