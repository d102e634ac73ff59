"""The process that sends spools to MLflow: one for each pipeline run, not one for each stage.

Importing MLflow with its SQLite store costs 3.5 s of CPU, so one sender imports it while the first stage
works and stays: it tails the spools of its pipeline, sends what earlier commands left over, and when the
pipeline's driver is gone it closes the parent run and ends. It is nobody's child and holds nobody's pipes.

Nothing is sent twice: a run is looked up by its key before it is created, the offset that was sent is kept
beside the spool, and MLflow's store takes a metric with the same key, step, time and value as one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from polyweft import processes
from polyweft.config import read_yaml
from polyweft.errors import ConfigError
from polyweft.spool import Sender, append, exclusive, pipelines_folder, read_events, spool_folder
from polyweft.tracking import OutageError, Store, log
from polyweft.workspace import quiet_environment, workspace

POLL_SECONDS = 0.1
SHIP_SECONDS = 1.0
RETRY_SECONDS = 2.0
FAREWELL_SECONDS = 8.0
"""How long a sender goes on, at most, after its pipeline's driver is gone."""


def read_start(spool: Path) -> dict[str, Any]:
    """Give the run's first event; empty if it has none yet."""
    with contextlib.suppress(OSError), spool.open("rb") as handle:
        line = handle.readline()
        with contextlib.suppress(ValueError):
            event = _json_object(line)
            if event.get("event") == "start":
                return event
    return {}


def _json_object(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON that must be an object; raises `ValueError`."""
    content = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError(f"not an object: {line[:80]!r}")
    return content


def send_spool(store: Store, spool: Path, *, eager: bool = True) -> bool:
    """Send what is new in a run; true when all of it, its end included, was sent and the file removed.

    A run without an end whose process is gone is closed as KILLED. Another sender that has the run at this
    moment keeps it. Without `eager`, numbers alone wait for others for up to a second.
    """
    mark = spool.with_suffix(".sent")
    with exclusive(mark) as held:
        if held is None:
            return False
        start = read_start(spool)
        if not start:
            _remove(spool, mark)
            return True
        offset = int(os.pread(held, 32, 0).strip() or b"0")
        alive = processes.is_alive(str(start.get("owner")))
        fresh = read_events(spool, offset)
        if not alive and not _has_ended(spool):
            time_ms = int(spool.stat().st_mtime * 1000)
            append(spool, {"event": "end", "time": time_ms, "status": "KILLED"})
            fresh = read_events(spool, offset)
        ending = any(event["event"] in {"start", "end"} for event, _ in fresh)
        if fresh and (eager or ending or time.time() - os.fstat(held).st_mtime > SHIP_SECONDS):
            _send_events(store, spool.stem, start, [event for event, _ in fresh])
            os.pwrite(held, str(fresh[-1][1]).encode().ljust(32), 0)
        if (fresh and fresh[-1][0]["event"] == "end") or (not alive and _has_ended(spool)):
            _remove(spool, mark)
            return True
    return False


def _has_ended(spool: Path) -> bool:
    events = read_events(spool)
    return bool(events) and events[-1][0]["event"] == "end"


def _remove(spool: Path, mark: Path) -> None:
    shutil.rmtree(spool.with_suffix(""), ignore_errors=True)
    spool.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)


def _send_events(store: Store, key: str, start: dict[str, Any], events: list[dict[str, Any]]) -> None:
    tags = {"polyweft.run_key": key, **start["tags"]}
    if pipeline := start.get("pipeline"):
        tags |= {"polyweft.pipeline": pipeline, "mlflow.parentRunId": _parent(store, pipeline, start)}
    run = store.run("polyweft.run_key", key, name=start["stage"], start=start["time"], tags=tags)
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        kinds.setdefault(event["event"], []).append(event)
    try:
        store.log(
            run,
            params=[pair for event in kinds.get("start", []) for pair in event["params"].items()],
            metrics=[
                (name, value, event["time"], event["step"])
                for event in kinds.get("metrics", [])
                for name, value in event["values"].items()
            ],
            tags=[pair for event in kinds.get("tags", []) for pair in event["values"].items()],
        )
        for event in kinds.get("artifact", []):
            store.artifact(run, Path(event["path"]), event["folder"])
        for event in kinds.get("end", []):
            store.end(run, event["status"], event["time"])
    except OutageError:
        store.forget(key)
        raise


def _parent(store: Store, pipeline: str, start: dict[str, Any]) -> str:
    tags = {"polyweft.pipeline": pipeline, "polyweft.pipeline_run": pipeline}
    for name in ("polyweft.commit", "mlflow.source.git.commit", "polyweft.experiment"):
        if start["tags"].get(name):
            tags[name] = start["tags"][name]
    name = start["tags"].get("polyweft.experiment", "pipeline")
    return store.run("polyweft.pipeline_run", pipeline, name=name, start=start["time"], tags=tags)


def close_pipeline(store: Store, path: Path) -> bool:
    """Close the parent run of the pipeline at `path` once none of its runs is left to send.

    Its tags name the stages that were executed and the graph's others: cached where the pipeline finished,
    not executed where it did not. Gives true when it was closed and the file removed.
    """
    key = path.stem
    with exclusive(path.with_suffix(".sent")) as held:
        if held is None or any(read_start(spool).get("pipeline") == key for spool in _spools()):
            return False
        events = [event for event, _ in read_events(path)]
        started = [event for event in events if event["event"] == "stage"]
        if started:
            executed = list(dict.fromkeys(event["stage"] for event in started))
            last = {event["stage"]: event["status"] for event in events if event["event"] == "done"}
            graph = next((event["stages"] for event in events if event["event"] == "graph"), graph_stages())
            finished = all(last.get(stage) == "FINISHED" for stage in executed)
            others = " ".join(stage for stage in graph if stage not in executed)
            commit = {"polyweft.commit": started[0].get("commit")}
            run = _parent(store, key, {"time": started[0]["time"], "tags": commit})
            named = "polyweft.cached" if finished else "polyweft.not_executed"
            store.log(run, tags=[("polyweft.executed", " ".join(executed)), (named, others)])
            store.end(run, "FINISHED" if finished else "FAILED", int(path.stat().st_mtime * 1000))
        path.unlink(missing_ok=True)
        path.with_suffix(".sent").unlink(missing_ok=True)
    return True


def graph_stages() -> list[str]:
    """List the stages of the workspace's `dvc.yaml`; none where it cannot be read."""
    try:
        return list(read_yaml(workspace() / "dvc.yaml").get("stages") or {})
    except ConfigError:
        return []


def _spools() -> list[Path]:
    return sorted(spool_folder().glob("*.jsonl"))


def _sender_of(spool: Path) -> str:
    return read_start(spool).get("pipeline") or f"run-{spool.stem}"


def left_over() -> tuple[list[Path], list[Path]]:
    """List the runs, and the pipelines, that no living process writes or sends."""
    spools = []
    for spool in _spools():
        alive = processes.is_alive(str(read_start(spool).get("owner")))
        if not alive and not Sender(_sender_of(spool)).running():
            spools.append(spool)
    pipelines = sorted(pipelines_folder().glob("*.jsonl"))
    return spools, [p for p in pipelines if not processes.is_alive(p.stem) and not Sender(p.stem).running()]


def _send_each(store: Store, spools: list[Path], *, eager: bool = True) -> bool:
    """Send each run, past one that fails while MLflow answers; tell whether all were sent to their ends."""
    done = True
    for spool in spools:
        try:
            done = send_spool(store, spool, eager=eager) and done
        except OutageError as outage:
            log(f"{spool.name}: {outage}")
            if not store.answers():
                raise
            done = False
    return done


def send_left_over(store: Store) -> None:
    """Send the runs and close the pipelines that earlier commands left; raises `OutageError` if all fail."""
    spools, pipelines = left_over()
    _send_each(store, spools)
    for pipeline in pipelines:
        close_pipeline(store, pipeline)


def follow(key: str) -> None:
    """Be the sender of `key` until its owner is gone and all is sent; a second one for a key ends at once."""
    sender = Sender(key)
    for _ in range(20):
        with exclusive(sender.lock) as held:
            if held is not None:
                try:
                    _follow(sender, held)
                finally:
                    sender.lock.unlink(missing_ok=True)
                return
        # The lock may be another's question whether a sender runs: that lasts microseconds.
        time.sleep(0.02)


def _follow(sender: Sender, held: int) -> None:
    _say(held, "starting")
    pipeline = pipelines_folder() / f"{sender.key}.jsonl"
    if pipeline.exists():
        append(pipeline, {"event": "graph", "stages": graph_stages()})
    store: Store | None = None
    farewell: float | None = None
    behind = True
    while True:
        over = _is_over(sender, pipeline)
        farewell = farewell or (time.monotonic() + FAREWELL_SECONDS if over else None)
        try:
            store = store or Store()
            _say(held, "ready")
            mine = [spool for spool in _spools() if _sender_of(spool) == sender.key]
            done = _send_each(store, mine, eager=over)
            if behind:
                send_left_over(store)
                behind = False
            if over and done and (not pipeline.exists() or close_pipeline(store, pipeline)):
                return
        except OutageError as outage:
            log(str(outage))
            _say(held, f"down: {outage}")
            if over:
                return
            time.sleep(RETRY_SECONDS)
        if farewell and time.monotonic() > farewell:
            return
        time.sleep(POLL_SECONDS)


def _is_over(sender: Sender, pipeline: Path) -> bool:
    """Tell whether nothing more will come: the driver is gone or said so, or the one run has ended."""
    if sender.key.startswith("run-"):
        spool = spool_folder() / f"{sender.key.removeprefix('run-')}.jsonl"
        return not processes.is_alive(str(read_start(spool).get("owner")))
    if not processes.is_alive(sender.key):
        return True
    return any(event["event"] == "closed" for event, _ in read_events(pipeline))


def _say(held: int, state: str) -> None:
    os.pwrite(held, state.encode()[:250].ljust(256), 0)


def drain(seconds: float = 30.0) -> list[str]:
    """Send and close what earlier commands left, waiting for living senders that have some of it.

    Returns
    -------
    list[str]
        What could not be sent within `seconds`, a line each; empty when all was. MLflow is not imported
        when there is nothing to send.
    """
    deadline = time.monotonic() + seconds
    store: Store | None = None
    while True:
        spools, pipelines = left_over()
        if spools or pipelines:
            try:
                store = store or Store()
                send_left_over(store)
            except OutageError as outage:
                return [f"{path.name}: {outage}" for path in (*spools, *pipelines)]
        dead = [p for p in pipelines_folder().glob("*.jsonl") if not processes.is_alive(p.stem)]
        ended = [s for s in _spools() if not processes.is_alive(str(read_start(s).get("owner")))]
        if not dead and not ended:
            return []
        if time.monotonic() > deadline:
            return [f"{path.name}: not sent within {seconds:.0f} s" for path in (*ended, *dead)]
        time.sleep(POLL_SECONDS)


def main(arguments: list[str]) -> None:
    """Command line: `--follow KEY` (started by a stage) or `--drain`."""
    parser = argparse.ArgumentParser(prog="python -m polyweft.tracking", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--follow", metavar="KEY", help="send the runs of one pipeline while it runs")
    action.add_argument("--drain", action="store_true", help="send what earlier commands left, and end")
    given = parser.parse_args(arguments)
    quiet_environment()
    if given.follow:
        os.nice(5)
        follow(given.follow)
    elif left := drain():
        sys.exit("tracking: not sent:\n" + "\n".join(left))


if __name__ == "__main__":
    main(sys.argv[1:])
