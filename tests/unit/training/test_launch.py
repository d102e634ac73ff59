"""The agents that train: they begin together, on loopback alone, and one's death does not end training."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from polyweft.errors import ConfigError
from polyweft.training.launch import launch, serve

WORKER = "tests.unit.training.elastic_worker"


def _spec(folder: Path, **content: Any) -> Path:
    (folder / "spec.json").write_text(json.dumps({"steps": 6, **content}))
    return folder / "spec.json"


def _steps(folder: Path) -> list[dict[str, int]]:
    path = folder / "steps.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 90
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _is_loopback(address: str) -> bool:
    """Whether only this machine reaches it; gloo's may be written as IPv6 (::ffff:127.0.0.1)."""
    found = ipaddress.ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _agents() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "polyweft.training.launch" in p.cmdline()]


def test_a_store_listens_on_loopback_alone() -> None:
    store = serve("127.0.0.1", 0)
    listening = [
        link.laddr for link in psutil.Process().net_connections() if link.status == psutil.CONN_LISTEN
    ]
    assert ("127.0.0.1", store.port) in listening
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_training_goes_on_when_either_agent_is_killed(victim: int, tmp_path: Path) -> None:
    spec = _spec(tmp_path, steps=40, pause=0.05)
    seen: list[Any] = []

    def kill() -> None:
        open_ports = [
            link.laddr.ip
            for process in psutil.Process().children(recursive=True)
            for link in process.net_connections()
            if link.status == psutil.CONN_LISTEN
        ]
        main_agent = _steps(tmp_path)[-1]["agent"]
        agents = {agent.pid == main_agent: agent.pid for agent in _agents()}
        seen.extend([set(open_ports), time.monotonic()])
        os.kill(agents[victim == 0], signal.SIGKILL)

    killer = _when(lambda: len(_steps(tmp_path)) >= 5, kill)
    assert launch(spec, processes=2, agents=2, threads=1, worker=WORKER) == 0
    killer.join()
    assert seen[0], "agents and workers listen"
    assert all(_is_loopback(address) for address in seen[0]), f"on loopback alone, not on {seen[0]}"
    steps = _steps(tmp_path)
    smaller = next(place for place, line in enumerate(steps) if line["size"] == 1)
    assert [line["size"] for line in steps] == [2] * smaller + [1] * (len(steps) - smaller)
    assert smaller >= 5
    assert steps[smaller]["step"] in (steps[smaller - 1]["step"], steps[smaller - 1]["step"] + 1)
    assert json.loads((tmp_path / "result.json").read_text()) == {"total": sum(range(40)), "size": 1}
    assert time.monotonic() - seen[1] < 60


@pytest.mark.slow
def test_agents_begin_together(tmp_path: Path) -> None:
    assert launch(_spec(tmp_path), processes=2, agents=2, threads=1, worker=WORKER) == 0
    assert {line["size"] for line in _steps(tmp_path)} == {2}


@pytest.mark.slow
def test_an_error_of_ours_ends_training_without_another_try(tmp_path: Path) -> None:
    assert launch(_spec(tmp_path, fail="ours"), processes=2, agents=2, threads=1, worker=WORKER) == 1
    assert _agents() == []


def test_workers_that_do_not_divide_among_agents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.processes 3 do not divide among train\.agents 2"):
        launch(_spec(tmp_path), processes=3, agents=2, threads=1)


@pytest.mark.slow
def test_agents_and_workers_die_with_the_process_that_launched_them(tmp_path: Path) -> None:
    spec = _spec(tmp_path, steps=1000, pause=0.05)
    call = f"launch(Path({str(spec)!r}), processes=2, agents=1, threads=1, worker={WORKER!r})"
    code = f"from pathlib import Path; from polyweft.training.launch import launch; {call}"
    process = subprocess.Popen([sys.executable, "-c", code])
    tree: list[psutil.Process] = []
    waiting = _when(
        lambda: bool(_steps(tmp_path)),
        lambda: tree.extend(psutil.Process(process.pid).children(recursive=True)),
    )
    waiting.join()
    assert len(tree) >= 3
    process.kill()
    process.wait()
    assert psutil.wait_procs(tree, timeout=15)[1] == []


@pytest.mark.slow
def test_the_commands_for_several_machines_make_one_world(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "polyweft.training.launch"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    store = subprocess.Popen(
        [*command, "serve", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert store.stdout is not None
    try:
        address = store.stdout.readline().split(" on ")[1].split(";")[0]
        options = ["--agents", "2", "--workers", "1", "--address", "127.0.0.1", "--worker", WORKER]
        join = [*command, "join", address, str(_spec(tmp_path)), *options]
        machines = [subprocess.Popen(join, env=environment) for _ in range(2)]
        assert [machine.wait(timeout=120) for machine in machines] == [0, 0]
    finally:
        store.kill()
        store.wait()
        store.stdout.close()
    assert {line["size"] for line in _steps(tmp_path)} == {2}
