"""A Prefect server of our own for one flow: on loopback, without statistics, gone when the flow is gone.

Prefect would start one by itself, but only after the flow's process has imported Prefect, and would leave it
running when that process is killed. This one starts first, so that both import at the same time on two
cores, and dies with its starter.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from polyweft.errors import FlowError
from polyweft.processes import guarded
from polyweft.workspace import quiet_environment, state_folder

START_SECONDS = 120.0
UI_PORT = 4200


def free_port(preferred: int | None = None) -> int:
    """Give `preferred` if it is free on loopback, and any free port otherwise."""
    for port in (preferred, 0):
        if port is not None:
            with contextlib.suppress(OSError), socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    raise FlowError("no port is free on 127.0.0.1. Stop some server and run the same command again.")


def prepare_environment() -> None:
    """Set what Prefect reads from the environment: no statistics, its home in the workspace's state."""
    quiet_environment()
    home = state_folder() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(home))
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ.setdefault("PREFECT_CLI_PROMPT", "false")


class Server:
    """A Prefect server that is starting or running; `wait` before using it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        """The address of its API."""
        return f"http://127.0.0.1:{self.port}/api"

    def wait(self, seconds: float = START_SECONDS) -> None:
        """Wait until it answers.

        Raises
        ------
        FlowError
            It ended, or did not answer in time; the message names its log.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise FlowError(f"Prefect's server ended (code {self.process.returncode}); see {self.log}.")
            with (
                contextlib.suppress(OSError, urllib.error.URLError),
                urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer,  # noqa: S310
            ):
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise FlowError(f"Prefect's server did not answer within {seconds:.0f} s; see {self.log}.")

    def stop(self) -> None:
        """Stop it, by force after 5 seconds."""
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start(*, pages: bool, port: int | None = None) -> Server:
    """Start a server: with its web pages and background services, or the bare API for one flow."""
    log = state_folder() / "prefect" / "server.log"
    port = free_port(port)
    bare = {"PREFECT_UI_ENABLED": "0", "PREFECT_SERVER_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
    own = {"PREFECT_SERVER_API_PORT": str(port), "PREFECT__SERVER_FINAL": "1"}
    program = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    with log.open("wb") as handle:
        process = subprocess.Popen(
            guarded([*program, "--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]),
            env={**os.environ, **own, **({} if pages else bare)},
            stdin=subprocess.DEVNULL,
            stdout=handle,
            stderr=handle,
            start_new_session=True,
        )
    return Server(process, port, log)


@contextlib.contextmanager
def starting(*, pages: bool, port: int | None = None) -> Iterator[Server | None]:
    """Start a server for the block, and name it to Prefect; None where PREFECT_API_URL names one already."""
    prepare_environment()
    if os.environ.get("PREFECT_API_URL"):
        yield None
        return
    server = start(pages=pages, port=port)
    os.environ["PREFECT_API_URL"] = server.url
    try:
        yield server
    finally:
        _flush()
        server.stop()
        os.environ.pop("PREFECT_API_URL", None)


def _flush() -> None:
    """Wait until the server has the last log lines and events, where Prefect was used at all."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    APILogWorker.drain_all(timeout=10)
    EventsWorker.drain_all(timeout=10)
