"""The whole graph: repeatable, traceable, gated, and able to go on after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from clones import Clone

from polyweft import processes
from polyweft.config import read_yaml

pytestmark = pytest.mark.slow
NAME = "polyweft-scenes"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _run_facts(clone: Clone, stage: str) -> dict[str, Any]:
    facts: dict[str, Any] = _json(clone.folder / ".polyweft" / "summary" / f"{stage}.json")["run_facts"]
    return facts


def test_a_second_repro_does_nothing_and_the_workspace_is_clean(ran: Clone) -> None:
    assert "Data and pipelines are up to date" in ran.run("dvc", "repro")
    assert "Data and pipelines are up to date" in ran.run("dvc", "status")
    assert ran.run("git", "status", "--porcelain") == ""


def test_the_table_says_what_was_measured_decided_and_served(ran: Clone) -> None:
    table = ran.run("python", "-m", "flows.summary")
    for words in ("Accuracy", "Macro F1", "Recall@1", "promoted", "Triton", "reports/html"):
        assert words in table, f"{words!r} is not in\n{table}"


def test_no_tracked_file_names_a_time_a_run_a_host_or_a_path(ran: Clone) -> None:
    host = os.uname().nodename
    year = re.compile(r"20[2-9]\d-\d\d-\d\d")
    for report in sorted((ran.folder / "data" / "reports").glob("*.json")):
        text = report.read_text(encoding="utf-8")
        assert str(ran.folder) not in text
        assert host not in text
        assert not year.search(text), f"{report.name} holds a date"


def test_a_run_that_is_killed_in_every_stage_ends_with_the_same_lock(ran: Clone, folder: Path) -> None:
    clone = Clone(folder)
    killed: list[str] = []
    while True:
        process = clone.start("dvc", "repro")
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            begun = re.match(r"Running stage '(\w+)'", line)
            if begun and begun[1] not in killed:
                killed.append(begun[1])
                _wait_until_it_works(clone, begun[1])
                _kill_and_hold_that_nothing_is_left(process.pid)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, "".join(output)[-4000:]
    assert killed == list(ran.stages())
    assert _run_facts(clone, "train")["resumed_from_step"] > 0
    assert clone.lock() == ran.lock()
    # The senders of the MLflow runs go on for some seconds, but for no longer.
    left = psutil.wait_procs(processes.marked("POLYWEFT_WORKSPACE", str(clone.folder)), timeout=30)[1]
    assert not left, f"{[process.cmdline() for process in left]} outlived the pipeline"


def _wait_until_it_works(clone: Clone, stage: str) -> None:
    """Until training has left a checkpoint; a second for the others, of which most is spent at work."""
    place, deadline = clone.folder / ".polyweft" / "checkpoints", time.monotonic() + 120
    if stage != "train":
        time.sleep(1.0)
    else:
        while not list(place.glob("*/step-*")):
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.02)


def _kill_and_hold_that_nothing_is_left(dvc: int) -> None:
    tree = psutil.Process(dvc).children(recursive=True)
    os.kill(dvc, signal.SIGKILL)
    _gone, alive = psutil.wait_procs(tree, timeout=15)
    assert not alive, f"{[process.cmdline() for process in alive]} outlived a killed DVC"


def test_the_flow_leaves_the_lock_that_repro_leaves(ran: Clone, folder: Path) -> None:
    clone = Clone(folder)
    clone.run("python", "-m", "flows.pipeline")
    assert clone.lock() == ran.lock()


def test_a_changed_learning_rate_concerns_train_alone(ran: Clone) -> None:
    try:
        ran.set({"train.lr": 0.002})
        changed = json.loads(ran.run("dvc", "status", "--json"))
    finally:
        ran.run("git", "checkout", "-q", "params.yaml")
    assert changed == {"train": [{"changed deps": {"params.yaml": {"train": "modified"}}}]}


def test_lineage_verifies_and_one_flipped_byte_names_the_file(ran: Clone) -> None:
    assert "verif" in ran.run("python", "-m", "registry", "lineage", f"{NAME}@champion", "--verify").lower()
    target = ran.folder / "data" / "train" / "model.safetensors"
    content = target.read_bytes()
    target.chmod(0o644)
    target.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        said = ran.run("python", "-m", "registry", "lineage", f"{NAME}@champion", "--verify", code=1)
    finally:
        target.write_bytes(content)
    assert "data/train/model.safetensors" in said.replace("\n", "")


def test_the_champions_weights_come_back_to_start_from(ran: Clone) -> None:
    ran.run("python", "-m", "registry", "weights", f"{NAME}@champion", "--out", "models/champion")
    for trained in (ran.folder / "data" / "train").iterdir():
        assert (ran.folder / "models" / "champion" / trained.name).read_bytes() == trained.read_bytes()
    shutil.rmtree(ran.folder / "models")


def test_predict_answers_from_the_export_without_a_server(ran: Clone) -> None:
    image = next((ran.folder / "data" / "export" / "golden").glob("*.png"))
    said = ran.run("python", "-m", "polyweft.predict", "--image", str(image), "--text", "红色的圆", "--json")
    answer = json.loads(said)
    assert _json(ran.folder / "data" / "export" / "model.json")["export_hash"] in json.dumps(answer)


def test_an_experiment_touches_no_alias_and_no_server(ran: Clone) -> None:
    before = ran.run("python", "-m", "registry", "list")
    served = _json(ran.folder / ".polyweft" / "summary" / "deploy.json")
    ran.run("dvc", "exp", "run", "--temp", "-S", "train.epochs=1", "-n", "shorter")
    assert ran.run("python", "-m", "registry", "list") == before
    assert _json(ran.folder / ".polyweft" / "summary" / "deploy.json") == served
    assert "shorter" in ran.run("dvc", "exp", "list", "--name-only")
    assert "Data and pipelines are up to date" in ran.run("dvc", "status")
    ran.run("dvc", "exp", "remove", "shorter")


def test_every_plot_of_the_graph_is_on_the_page_of_plots(ran: Clone, tmp_path: Path) -> None:
    plots = [plot for entry in read_yaml(ran.folder / "dvc.yaml")["plots"] for plot in entry.values()]
    ran.run("dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")
    # A plot of a column that its file lacks is left out without a word.
    assert [plot["title"] for plot in plots if plot["title"] not in page] == []


def test_metrics_push_and_pull_work(ran: Clone, tmp_path: Path) -> None:
    assert "accuracy" in ran.run("dvc", "metrics", "show")
    ran.run("dvc", "metrics", "diff")
    ran.run("dvc", "remote", "add", "--local", "-d", "-f", "store", str(tmp_path / "store"))
    ran.run("dvc", "push")
    lost = ran.folder / "data" / "train"
    ran.run("rm", "-rf", str(lost), str(ran.folder / ".dvc" / "cache"))
    ran.run("dvc", "pull")
    assert (lost / "model.safetensors").exists()


def test_a_candidate_of_no_steps_is_held_and_the_champion_stays(ran: Clone) -> None:
    state = sorted((ran.folder / "served" / "models").rglob("config.pbtxt"))
    served = {path: path.read_bytes() for path in state}
    try:
        ran.set({"train.epochs": 0})
        said = ran.run("dvc", "repro")
        running = set(re.findall(r"Running stage '(\w+)'", said))
        assert running == {"train", "evaluate", "export", "register", "deploy"}
        facts = _run_facts(ran, "register")
        assert facts["decision"] == "held", facts
        assert facts["champion"] == 1
        assert any("accuracy" in reason for reason in facts["reasons"])
        assert {path: path.read_bytes() for path in served} == served
        assert _run_facts(ran, "deploy")["served_version"] == 1
    finally:
        ran.run("git", "checkout", "-q", "params.yaml", "dvc.lock", "data/reports")
        ran.run("dvc", "checkout")
