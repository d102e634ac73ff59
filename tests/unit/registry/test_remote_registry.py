"""The registry through a real MLflow server, which keeps the artifacts too."""

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

import pytest

from polyweft.errors import RegistryError
from registry import versions
from registry.cleaning import find_leftovers
from registry.packaging import register_export
from tests.unit.registry.fake_exports import empty_database, make_workspace, registration, write_export


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_database())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *[sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)],
        *["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"],
        *["--artifacts-destination", str(folder / "artifacts")],
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_version_registers_downloads_and_cleans_through_a_server(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make_workspace(tmp_path / "workspace", monkeypatch)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    for shift in range(3):
        made = register_export("colours", write_export(workspace / str(shift), shift=shift), registration())
        got = made.download(workspace / "got" / str(shift))
        assert (got / "image.onnx").read_bytes() == (workspace / str(shift) / "image.onnx").read_bytes()
        versions.move_champion(made, event="promote", reasons=["test"])
    assert not (workspace / "mlartifacts").exists()
    assert os.environ["MLFLOW_TRACKING_URI"] == server
    assert [leftover.what for leftover in find_leftovers()] == ["colours version 1"]


@pytest.mark.slow
def test_server_that_hangs_is_named_soon(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(tmp_path / "workspace", monkeypatch)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.setattr(versions, "_REACH_SECONDS", 0.5)
        with pytest.raises(RegistryError, match="cannot be reached"):
            versions.names()
