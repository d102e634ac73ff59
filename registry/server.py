"""The real tritonserver: start it on loopback, find one that runs, and stop what was started.

A started server lives as long as the process that started it and no longer: `registry.supervise` stands
between the two. `TRITON_URL` (host:port of gRPC) names a server to speak to instead; it must read the folder
that `TRITON_REPOSITORY` names (default: `served/models` in the workspace).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from polyweft.errors import DataError, ServingError
from polyweft.io import read_json, write_json
from polyweft.processes import identity, is_alive
from polyweft.workspace import workspace
from registry.control import Control, is_triton
from registry.environment import find_environment, install_backends

LOOPBACK = "127.0.0.1"
DRAIN_SECONDS = 2
SHM_PREFIX = "polyweft-triton-"
URL_VARIABLE, REPOSITORY_VARIABLE = "TRITON_URL", "TRITON_REPOSITORY"


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback; 0 means one that is free."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


def repository_root() -> Path:
    """The repository's folder: `TRITON_REPOSITORY`, else `served/models` in the workspace.

    Not `triton/`: stages run in the workspace, where torch would take such a folder for the package.
    """
    given = os.environ.get(REPOSITORY_VARIABLE)
    return Path(given).absolute() if given else workspace() / "served" / "models"


class Server:
    """A tritonserver that this process started, with nothing loaded. Use it as a context manager.

    Parameters
    ----------
    root
        The model repository; made where missing.
    ports
        Ports that are taken are refused; zeros are chosen.
    start_timeout
        Seconds until it must answer.
    drain
        Whole seconds that requests under way and stubs get to end when it is stopped.

    Raises
    ------
    ServingError
        A port is taken, the serving environment is missing, or the server does not come up; the message
        quotes the end of its log.
    """

    def __init__(
        self,
        root: Path,
        *,
        ports: Ports | None = None,
        start_timeout: float = 60.0,
        drain: int = DRAIN_SECONDS,
    ) -> None:
        self.root, self.log, self._drain = root, root.parent / "tritonserver.log", drain
        began = time.monotonic()
        environment = find_environment()
        self.ports = choose_ports(ports or Ports())
        root.mkdir(parents=True, exist_ok=True)
        backends = install_backends(environment, root.parent / "backends")
        prefix = f"{SHM_PREFIX}{os.getpid()}-{self.ports.grpc}-"
        remove_stale_shared_memory()
        supervisor = [
            *[sys.executable, "-I", "-S", str(Path(__file__).with_name("supervise.py"))],
            *[str(os.getpid()), prefix, str(drain + 3), str(environment.program)],
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*supervisor, *_arguments(root, backends, self.ports, prefix, drain)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment.variables(),
                cwd=root.parent,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(began + start_timeout)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began

    @property
    def url(self) -> str:
        """gRPC's host:port."""
        return f"{LOOPBACK}:{self.ports.grpc}"

    @property
    def http_url(self) -> str:
        """HTTP's host:port."""
        return f"{LOOPBACK}:{self.ports.http}"

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def running(self) -> bool:
        """Whether the server's process is there."""
        return self.process.poll() is None

    def stop(self) -> None:
        """Stop the server, its stubs and its shared memory; does nothing a second time."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(self._drain + 15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def log_tail(self, lines: int = 15) -> str:
        """The end of the server's log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""

    def _wait_until_ready(self, deadline: float) -> None:
        with Control(self.url) as control:
            while not control.ready():
                if not self.running():
                    raise ServingError(
                        f"tritonserver ended at its start. {self.log} ends with:\n{self.log_tail()}"
                    )
                if time.monotonic() > deadline:
                    raise ServingError(
                        f"tritonserver did not answer in time. {self.log} ends:\n{self.log_tail()}"
                    )
                time.sleep(0.05)


def choose_ports(wanted: Ports) -> Ports:
    """Check that the wanted ports can be bound, and put free ones in the place of zeros.

    Raises
    ------
    ServingError
        A port is taken; it is named.
    """
    held: list[socket.socket] = []
    chosen: dict[str, int] = {}
    try:
        for use, port in sorted(asdict(wanted).items(), key=lambda item: item[1] == 0):
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held[-1].bind((LOOPBACK, port))
                held[-1].listen(1)
            except (OSError, OverflowError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ServingError(
                    f"port {port} for Triton's {use} cannot be had ({reason}). "
                    f"Stop what listens there (`ss -ltnp` names it), or choose another port."
                ) from error
            chosen[use] = held[-1].getsockname()[1]
    finally:
        for opened in held:
            opened.close()
    return Ports(**chosen)


def server_file(root: Path) -> Path:
    """Where `python -m registry serve` writes the address of the server that reads the repository `root`."""
    return root.parent / "server.json"


def find_server() -> str | None:
    """gRPC's host:port of a running server: `TRITON_URL`'s, else that of `python -m registry serve`; or None.

    Raises
    ------
    ServingError
        `TRITON_URL` is set and no Triton answers there.
    """
    given = os.environ.get(URL_VARIABLE)
    if given:
        url = given.split("://")[-1].rstrip("/")
        if not is_triton(url):
            raise ServingError(
                f"{URL_VARIABLE} is {given!r}, and no Triton answers there over gRPC. Start it, give "
                f"host:port of its gRPC port, or unset {URL_VARIABLE}: one is then started for the while."
            )
        return url
    try:
        written = read_json(server_file(repository_root()))
        url, owner = f"{LOOPBACK}:{int(written['grpc'])}", str(written["process"])
    except (DataError, KeyError, TypeError, ValueError):
        return None
    return url if is_alive(owner) and is_triton(url) else None


@contextlib.contextmanager
def announced(server: Server) -> Iterator[None]:
    """Write the server's address to `server_file` for as long as the block runs."""
    own, place = identity(os.getpid()), server_file(server.root)
    write_json(place, {"pid": os.getpid(), "process": own, **asdict(server.ports)})
    try:
        yield
    finally:
        place.unlink(missing_ok=True)


@contextlib.contextmanager
def found_or_started(*, start_timeout: float = 60.0) -> Iterator[tuple[str, Server | None]]:
    """gRPC's host:port of a server that reads `repository_root`: one that runs, else one for the block."""
    url = find_server()
    if url is not None:
        yield url, None
        return
    with Server(repository_root(), start_timeout=start_timeout) as server:
        yield server.url, server


def remove_stale_shared_memory() -> None:
    """Remove what stubs of killed servers left in /dev/shm; live servers' is kept."""
    for left in Path("/dev/shm").glob(f"{SHM_PREFIX}*"):  # noqa: S108
        owner = left.name.removeprefix(SHM_PREFIX).split("-")[0]
        if owner.isdigit() and identity(int(owner)) is None:
            left.unlink(missing_ok=True)


def _arguments(root: Path, backends: Path, ports: Ports, prefix: str, drain: int) -> Sequence[str]:
    return [
        f"--model-repository={root}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--exit-on-error=false",
        # Configurations are complete; to complete them Triton would start every stub twice.
        "--disable-auto-complete-config",
        f"--exit-timeout-secs={drain}",
        # A model of which one version is refused must not make the server itself unready.
        "--strict-readiness=false",
        *(f"--{use}-address={LOOPBACK}" for use in ("http", "grpc", "metrics")),
        *(f"--{use}-port={port}" for use, port in asdict(ports).items()),
        "--allow-gpu-metrics=false",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
    ]
