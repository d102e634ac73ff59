"""Prefect's server is on loopback, on a free port, and not started where one is named."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from flows import pipeline, server
from polyweft.errors import ConfigError, FlowError


def test_a_taken_port_is_not_taken_again() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = holder.getsockname()[1]
        assert server.free_port(taken) != taken
    assert server.free_port(taken) == taken


def test_a_server_that_ended_is_told_with_its_log(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    ended.wait()
    with pytest.raises(FlowError, match=r"code 7.*server\.log"):
        server.Server(ended, 1, tmp_path / "server.log").wait()


def test_a_server_that_does_not_answer_is_told(tmp_path: Path) -> None:
    silent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    one = server.Server(silent, server.free_port(), tmp_path / "server.log")
    with pytest.raises(FlowError, match="did not answer"):
        one.wait(0.3)
    one.stop()
    assert silent.poll() is not None


def test_a_server_that_the_environment_names_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with server.starting(pages=False) as own:
        assert own is None


def test_the_nightly_deployment_is_read_from_prefect_yaml(tmp_path: Path) -> None:
    root = Path(pipeline.__file__).parents[1]
    assert pipeline.nightly(root / "prefect.yaml")["name"] == "nightly"
    (tmp_path / "prefect.yaml").write_text("deployments: []\n")
    with pytest.raises(ConfigError, match="no deployment with a schedule"):
        pipeline.nightly(tmp_path / "prefect.yaml")
