"""`python -m registry serve`: keep the current models served until told to stop, and watch their answers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from polyweft.errors import ServingError
from registry.repository import Repository, served_models
from registry.rollout import check, load_current
from registry.server import Ports, Server, announced, find_server

CHECK_SECONDS = 30.0
DRAIN_SECONDS = 10


def serve(
    repository: Path,
    http_port: int = 8000,
    grpc_port: int = 8001,
    metrics_port: int = 8002,
    *,
    names: Sequence[str] = (),
    say: Callable[[str], None] = print,
    until: threading.Event | None = None,
    check_seconds: float = CHECK_SECONDS,
) -> None:
    """Serve every model that is current in the folder `repository`, on loopback, until Ctrl-C or SIGTERM.

    While it runs, `server.json` beside the repository names the ports, so that deploy, promote and rollback
    speak to this server. Golden queries are asked every `check_seconds`, for Triton goes on calling a model
    ready whose process was killed; a model that does not answer them is unloaded and loaded again.

    Parameters
    ----------
    names
        Registered names; by default all that have a current version.
    until
        Stops the server when set, in place of the signals (which only a main thread can take).

    Raises
    ------
    ServingError
        A port is taken, a server is already announced, nothing is current, a model does not answer as
        PyTorch did, or tritonserver ended by itself.
    """
    running = find_server()
    if running is not None:
        raise ServingError(f"a server answers already at {running} (gRPC). Use it, or stop it first.")
    served = [Repository(repository, name) for name in names or served_models(repository)]
    if not served:
        raise ServingError(
            f"no model is current in {repository}. Run `dvc repro` first; its gate may have held."
        )
    stop = until or _on_signals()
    with Server(repository, ports=Ports(http_port, grpc_port, metrics_port), drain=DRAIN_SECONDS) as server:
        for model in served:
            load_current(server.url, model)
        with announced(server):
            say(_greeting(server, served))
            while not stop.wait(check_seconds):
                if not server.running():
                    raise ServingError(
                        f"tritonserver ended by itself. {server.log} ends:\n{server.log_tail()}"
                    )
                for model in served:
                    _keep_healthy(server, model, say)
    say("The server has stopped.")


def _keep_healthy(server: Server, model: Repository, say: Callable[[str], None]) -> None:
    try:
        check(server.url, model)
    except ServingError as error:
        say(f"{model.registered} does not answer as it must ({error}); loading it again.")
        try:
            load_current(server.url, model)
        except ServingError as again:
            say(f"{model.registered} is still out of order: {again}")


def _on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _greeting(server: Server, served: Sequence[Repository]) -> str:
    lines = ["Triton serves " + ", ".join(f"{m.registered} (version {m.current})" for m in served)]
    lines += [
        f"  HTTP     http://{server.http_url}",
        f"  gRPC     {server.url}",
        f"  metrics  http://127.0.0.1:{server.ports.metrics}/metrics",
        "Ask it, with any Triton client, or with this one:",
        "  from registry.client import Client",
        f'  with Client("{server.url}", "{served[0].registered}") as client:',
        '      answer = client.ask({"image": [open("picture.png", "rb").read()]})',
        "Ctrl-C stops it.",
    ]
    return "\n".join(lines)
