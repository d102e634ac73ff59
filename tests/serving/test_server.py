"""The server as a process: ports, its parent's death, its announcement, and serving until told to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from polyweft.errors import ServingError
from registry.repository import Repository
from registry.rollout import roll_out, serve_export
from registry.server import SHM_PREFIX, Ports, Server, find_server, server_file
from registry.serving import serve
from tests.serving.tiny import write_tiny_export

pytestmark = pytest.mark.slow
NAME = "tiny-process"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a current version, left by a server that is gone."""
    root = tmp_path_factory.mktemp("process") / "served" / "models"
    export = write_tiny_export(root.parent.parent / "export", seed=1)
    with Server(root) as server:
        roll_out(server.url, Repository(root, NAME), export)
    return root


@pytest.fixture
def own(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_REPOSITORY", str(root))
    monkeypatch.delenv("TRITON_URL", raising=False)
    return root


def _wait(condition: object, seconds: float = 30.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_a_stopped_server_leaves_no_process_and_no_shared_memory(root: Path) -> None:
    server = Server(root)
    tree = [psutil.Process(server.process.pid), *psutil.Process(server.process.pid).children(recursive=True)]
    prefix = f"{SHM_PREFIX}{os.getpid()}-{server.ports.grpc}"
    server.stop()
    server.stop()
    assert not any(process.is_running() for process in tree)
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []


def test_kill_minus_nine_of_the_parent_leaves_nothing(root: Path) -> None:
    code = f"""
import time
from pathlib import Path
from registry.repository import Repository
from registry.rollout import load_current
from registry.server import Server
root = Path({str(root)!r})
server = Server(root)
load_current(server.url, Repository(root, {NAME!r}))
print("up", flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        below = psutil.Process(parent.pid).children(recursive=True)
        assert len(below) >= 8, "supervisor, server and six stubs"
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        parent.stdout.close()
    _wait(lambda: not any(process.is_running() for process in below))
    _wait(lambda: not list(Path("/dev/shm").glob(f"{SHM_PREFIX}{parent.pid}-*")))


def test_a_taken_port_is_named_with_a_remedy(root: Path) -> None:
    with contextlib.closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"port {port} for Triton's grpc .*choose another port"):
            Server(root, ports=Ports(grpc=port))


def test_serve_announces_itself_and_others_speak_to_it(own: Path, tmp_path: Path) -> None:
    stop, said = threading.Event(), list[str]()
    thread = threading.Thread(target=serve, args=(own, 0, 0, 0), kwargs={"say": said.append, "until": stop})
    thread.start()
    try:
        _wait(lambda: bool(said) or not thread.is_alive())
        url = find_server()
        assert url is not None
        assert url in said[0]
        assert "tiny-process (version 1)" in said[0]
        done = serve_export(NAME, write_tiny_export(tmp_path / "next", seed=2))
        assert (done.url, done.started, done.previous, done.version) == (url, False, 1, 2)
        back = serve_export(NAME, own.parent.parent / "export")
        assert (back.version, back.server.split()[0]) == (1, "triton")
        with pytest.raises(ServingError, match="answers already"):
            serve(own, 0, 0, 0, until=stop)
    finally:
        stop.set()
        thread.join()
    assert not server_file(own).exists()
    assert find_server() is None


def test_a_url_where_nobody_answers_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_URL", "grpc://127.0.0.1:9")
    with pytest.raises(ServingError, match=r"TRITON_URL is 'grpc://127.0.0.1:9', and no Triton answers"):
        find_server()


def test_an_announcement_of_a_dead_process_is_passed_over(own: Path) -> None:
    server_file(own).write_text('{"pid": 1, "process": "1-0-gone", "http": 1, "grpc": 2, "metrics": 3}')
    try:
        assert find_server() is None
    finally:
        server_file(own).unlink()


def test_nothing_current_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_REPOSITORY", str(tmp_path / "models"))
    with pytest.raises(ServingError, match="no model is current"):
        serve(tmp_path / "models", 0, 0, 0)
