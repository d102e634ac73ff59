"""How training starts: torchrun agents that meet at a store which outlives each of them.

An agent (torchrun) starts some workers and watches them. When one agent dies, its workers die with it and
those of the others fail at their next exchange; the others then form a smaller round and go on from the last
checkpoint. For that the store they meet at must not live in an agent: it lives in the process that calls
`launch`, on loopback alone (a TCPStore given a bound socket; one left to itself listens on every interface).

Over several machines, with the project at the same path of a disk that they share, the first one says at
which of its addresses the store is to listen, and how many agents there will be on all of them:
    POLYWEFT_LISTEN=10.0.0.1:29400 POLYWEFT_AGENTS=4 dvc repro
It prints the command that each other machine joins with, and begins when all are there:
    python -m polyweft.training.launch join 10.0.0.1:29400 SPEC.json --agents 4 --workers 8 --address 10.0.0.2
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import distributed

from polyweft.errors import ConfigError
from polyweft.processes import descendants, guarded, kill_all, kill_tree
from polyweft.training.distributed import DEVICE_VARIABLE, STORE_VARIABLE

if TYPE_CHECKING:
    import psutil

LOOPBACK = "127.0.0.1"
WORKER = "polyweft.training.worker"
LISTEN_VARIABLE, AGENTS_VARIABLE = "POLYWEFT_LISTEN", "POLYWEFT_AGENTS"
ALL_HERE_SECONDS = 120.0
"""How long the first agent waits for the others before it begins without them."""

LOST_AFTER = 5
"""Seconds without a sign of life after which an agent counts as lost."""

STUCK_SECONDS = 2.0
"""How long after an agent's death workers of the others may still wait for it (NCCL does not notice)."""

STOP_SECONDS = 45.0
"""What agents get to write a checkpoint and end after SIGTERM; torchrun gives workers 30 of them."""

RESULT_SECONDS = 120.0
"""How long the result may be in coming, from another machine, once the workers of this one have ended."""

END_SECONDS = 10.0
"""What the last agents get to end once the result stands and one of them has died."""


def launch(spec: Path, *, processes: int, agents: int, threads: int, worker: str = WORKER) -> int:
    """Run `processes` workers under `agents` agents on `spec`; 0, or the exit code of the last one.

    A stop (KeyboardInterrupt) is passed on to the agents as SIGTERM, for a last checkpoint. An agent's log is
    `agent-<n>.log` beside `spec`. Training has failed when `error.json` appears there.

    Raises
    ------
    ConfigError
        The workers do not divide among the agents, or what `POLYWEFT_LISTEN` and `POLYWEFT_AGENTS` say of
        other machines cannot be.
    """
    if processes % agents:
        raise ConfigError(
            f"train.processes {processes} do not divide among train.agents {agents}; choose a multiple."
        )
    host, port, everywhere = _machines(agents)
    store = serve(host, port)
    address = f"{host}:{store.port}"
    each, name = processes // agents, f"train-{uuid.uuid4().hex[:8]}"
    if everywhere > agents:
        print(
            f"{everywhere - agents} more agents are to come from other machines, each with\n  python -m "
            f"{__name__} join {address} {spec} --agents {everywhere} --workers {each} --name {name} "
            "--address ITS_OWN",
            flush=True,
        )
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(agents):
            options = ["--agents", str(everywhere), "--workers", str(each), "--name", name, "--address", host]
            options += ["--worker", worker]
            command = [sys.executable, "-m", __name__, "join", address, str(spec), *options]
            environment = os.environ | {
                "OMP_NUM_THREADS": str(threads),
                "TORCH_CPP_LOG_LEVEL": "ERROR",
                DEVICE_VARIABLE: str(number * each),
            }
            with (spec.parent / f"agent-{number}.log").open("wb") as log:
                running.append(subprocess.Popen(guarded(command), env=environment, stderr=log))
        code = _watch(running, spec.parent)
        if code == 0 and everywhere > agents:
            _wait_for_result(spec.parent)
        return code
    except KeyboardInterrupt:
        _stop(running)
        raise
    finally:
        for agent in [agent for agent in running if agent.poll() is None]:
            kill_tree(agent.pid)


def _machines(agents: int) -> tuple[str, int, int]:
    """Where the store listens, address and port (0: any), and how many agents all machines have."""
    given, everywhere = os.environ.get(LISTEN_VARIABLE), os.environ.get(AGENTS_VARIABLE, "")
    if given is None:
        return LOOPBACK, 0, agents
    host, _, port = given.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            f"{LISTEN_VARIABLE} is {given!r}; give an address of this machine and a port, as 10.0.0.1:29400."
        )
    if not everywhere.isdigit() or int(everywhere) < agents:
        raise ConfigError(
            f"{AGENTS_VARIABLE} is {everywhere!r}; give the number of agents on all machines, of which "
            f"train.agents, here {agents}, are this one's."
        )
    return host, int(port), int(everywhere)


def _wait_for_result(folder: Path) -> None:
    """The first worker writes the model after the others have ended, perhaps on another machine."""
    deadline = time.monotonic() + RESULT_SECONDS
    while not (folder / "result.json").exists() and time.monotonic() < deadline:
        time.sleep(0.2)


def serve(host: str, port: int) -> Any:
    """A store that listens on `host` alone, at `port` (0: any); it lives as long as the object given."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(1024)
    port = listening.getsockname()[1]
    return distributed.TCPStore(  # type: ignore[attr-defined]
        host, port, None, True, wait_for_workers=False, master_listen_fd=listening.detach()
    )


def _watch(agents: list[subprocess.Popen[bytes]], folder: Path) -> int:
    """Wait until every agent has ended; see `launch`."""
    left, codes = list(agents), []
    stuck: list[psutil.Process] = []
    stuck_until = end_until = float("inf")
    while left:
        for agent in [a for a in left if a.poll() is not None]:
            left.remove(agent)
            codes.append(agent.returncode)
            if agent.returncode < 0:
                stuck = [worker for other in left for worker in descendants(other.pid)]
                stuck_until = time.monotonic() + STUCK_SECONDS
        if (folder / "error.json").exists():
            _stop(left)
            return 1
        if time.monotonic() > stuck_until:
            kill_all([worker for worker in stuck if worker.is_running()])
            stuck_until = float("inf")
        if codes and end_until == float("inf") and (folder / "result.json").exists():
            end_until = time.monotonic() + END_SECONDS
        if time.monotonic() > end_until:
            _stop(left)
            return 0
        time.sleep(0.05)
    return 0 if 0 in codes else codes[-1]


def _stop(agents: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to the agents, who pass it to their workers; SIGKILL to what has not ended in time."""
    deadline = time.monotonic() + STOP_SECONDS
    for agent in agents:
        agent.terminate()
    for agent in agents:
        try:
            agent.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            kill_tree(agent.pid)


def join(
    address: str, spec: str, *, agents: int, workers: int, name: str, own_address: str, worker: str
) -> None:
    """Be an agent: wait for the others at the store, then run torchrun in this process."""
    from torch.distributed.run import main as torchrun

    os.environ[STORE_VARIABLE] = address
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # the workers meet at our store, not at an agent
    if agents > 1:
        _wait_for_all(address, name, agents)
    settings = {
        "is_host": 0,
        "join_timeout": 300,
        "last_call_timeout": 2,
        "close_timeout": 10,
        "keep_alive_interval": 1,
        "keep_alive_max_attempt": LOST_AFTER,
    }
    torchrun(
        [
            f"--nnodes=1:{agents}",
            f"--nproc-per-node={workers}",
            # Each lost agent costs the others a restart; a worker that fails alone costs one too.
            f"--max-restarts={2 * (agents - 1)}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={address}",
            f"--rdzv-id={name}",
            "--rdzv-conf=" + ",".join(f"{key}={value}" for key, value in settings.items()),
            f"--local-addr={own_address}",
            "-m",
            worker,
            spec,
        ]
    )


def _wait_for_all(address: str, name: str, agents: int) -> None:
    """Begin together: torchrun alone would begin with the first agent, then anew with each further one."""
    host, _, port = address.rpartition(":")
    patience = timedelta(seconds=ALL_HERE_SECONDS)
    client = distributed.TCPStore(  # type: ignore[attr-defined]
        host, int(port), None, False, patience, wait_for_workers=False
    )
    store = distributed.distributed_c10d.PrefixStore(f"agents/{name}", client)
    if store.add("here", 1) == agents:
        store.set("all", "here")
    try:
        store.wait(["all"], patience)
    except distributed.DistStoreError:
        print(f"only {store.add('here', 0)} of {agents} agents came; training begins without the others")


def main(arguments: list[str]) -> None:
    """Command line: `serve ADDRESS`, or `join ADDRESS SPEC --agents A --workers W --address OWN`."""
    parser = argparse.ArgumentParser(prog="python -m polyweft.training.launch", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", help="host the store, until stopped")
    serving.add_argument("store", help="the address to listen on, host:port")
    joining = commands.add_parser("join", help="be one agent")
    joining.add_argument("store", help="the store's host:port")
    joining.add_argument("spec", help="the specification that stages.train writes")
    joining.add_argument("--agents", type=int, required=True, help="how many there are in all, at most")
    joining.add_argument("--workers", type=int, required=True, help="of this agent")
    joining.add_argument("--address", required=True, help="this machine's, for the other workers")
    joining.add_argument("--name", default="train", help="of the run; every agent's is the same")
    joining.add_argument("--worker", default=WORKER, help="the module that a worker runs")
    given = parser.parse_args(arguments)
    if given.command == "serve":
        host, _, port = given.store.rpartition(":")
        store = serve(host, int(port))
        print(f"the store listens on {host}:{store.port}; end it with Ctrl-C", flush=True)
        while True:
            time.sleep(3600)
    join(
        given.store,
        given.spec,
        agents=given.agents,
        workers=given.workers,
        name=given.name,
        own_address=given.address,
        worker=given.worker,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
