"""A stage's MLflow run, as the stage and its training workers see it: a spool file to append to."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from polyweft import processes
from polyweft.errors import DataError
from polyweft.spool import SPOOL_VARIABLE, Sender, append, now, pipeline_key, pipelines_folder, spool_folder

Status = Literal["FINISHED", "FAILED", "KILLED"]

MODE_VARIABLE = "POLYWEFT_TRACKING"
"""`on` (default), `spool` (write, start no sender) or `off`."""

END_WAIT_SECONDS = 10.0

_current: StageRun | None = None


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys: `{"a": {"b": 1}}` to `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """Give the finite numbers of nested `content` under dotted keys; truth values are not numbers."""
    return {
        key: float(value)
        for key, value in flatten(content).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def texts(content: Mapping[str, Any]) -> dict[str, str]:
    """Give the texts and truth values of nested `content` under dotted keys."""
    return {key: str(value) for key, value in flatten(content).items() if isinstance(value, str | bool)}


class StageRun:
    """One stage's MLflow run, as its stage and its training workers see it: a file to append to."""

    def __init__(self, path: Path, pipeline: str | None, *, stage: str) -> None:
        self.path = path
        self.pipeline = pipeline
        self.stage = stage
        self.ended = False

    @classmethod
    def begin(
        cls, stage: str, *, params: Mapping[str, Any], deps: Mapping[str, str], commit: str | None
    ) -> StageRun:
        """Open a run for `stage`, and start the process that sends it.

        Parameters
        ----------
        params
            The stage's sections; nested keys become dotted.
        deps
            Path to md5 of each dependency, as DVC states it.
        commit
            From `workspace.git_commit`.
        """
        global _current
        pipeline = pipeline_key()
        path = spool_folder() / f"{stage}-{uuid.uuid4().hex[:16]}.jsonl"
        run = cls(path, pipeline, stage=stage)
        tags = {"polyweft.stage": stage, "polyweft.params": json.dumps(params, sort_keys=True, default=str)}
        tags |= {f"polyweft.dep.{name}": md5 for name, md5 in deps.items()}
        tags |= {"mlflow.source.git.commit": commit, "polyweft.commit": commit} if commit else {}
        if os.environ.get("DVC_EXP_NAME"):
            tags["polyweft.experiment"] = os.environ["DVC_EXP_NAME"]
        owner = processes.identity(os.getpid())
        flat = {key: str(value) for key, value in flatten(params).items()}
        run._append(
            {"event": "start", "stage": stage, "time": now(), "owner": owner, "pipeline": pipeline}
            | {"params": flat, "tags": tags}
        )
        if pipeline:
            run._note({"event": "stage", "stage": stage, "time": now(), "commit": commit})
        os.environ[SPOOL_VARIABLE] = str(path)
        _current = run
        if _mode() == "on":
            run.sender.start()
        return run

    @classmethod
    def attach(cls, spool: Path) -> StageRun:
        """Give the run whose file is `spool`, for a worker of the stage (rank 0 alone writes)."""
        return cls(spool, None, stage=spool.stem.rsplit("-", 1)[0])

    @property
    def sender(self) -> Sender:
        """The sender of this run."""
        return Sender(self.pipeline or f"run-{self.path.stem}")

    def metric(self, key: str, value: float, step: int | None = None) -> None:
        """Record one number; see `metrics`."""
        self.metrics({key: value}, step)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers at `step` (0 if None) and now."""
        content = {key: float(value) for key, value in values.items()}
        self._append({"event": "metrics", "time": now(), "step": step or 0, "values": content})

    def tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self._append({"event": "tags", "values": {key: str(value)}})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder as artifact below `folder`; a copy is kept until it was sent."""
        if _mode() == "off" or not path.exists():
            return
        kept = self.path.with_suffix("") / uuid.uuid4().hex[:8] / path.name
        try:
            kept.parent.mkdir(parents=True)
            if path.is_dir():
                shutil.copytree(path, kept)
            else:
                shutil.copy2(path, kept)
        except (OSError, shutil.Error) as error:
            raise DataError(f"could not copy {path} for MLflow: {error}. Free some space.") from error
        self._append({"event": "artifact", "path": str(kept), "folder": folder})

    def end(
        self,
        status: Status,
        *,
        outs: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        run_facts: Mapping[str, Any] | None = None,
        wait: float = END_WAIT_SECONDS,
    ) -> bool:
        """Close the run and wait until it was sent, `wait` seconds at most; tell whether it was.

        Every number of `facts` and `run_facts` becomes a metric, every text a tag, every md5 of `outs` a tag.
        A second call does nothing. What could not be sent is sent by the next command.
        """
        global _current
        if self.ended:
            return True
        self.ended = True
        report = {**(run_facts or {}), **(facts or {})}
        if values := numbers(report):
            self.metrics(values)
        tags = {f"polyweft.out.{name}": md5 for name, md5 in (outs or {}).items()}
        tags |= {f"fact.{key}": value for key, value in texts(report).items()}
        self._append({"event": "tags", "values": tags})
        self._append({"event": "end", "time": now(), "status": status})
        if self.pipeline:
            self._note({"event": "done", "stage": self.stage, "status": status})
        _current = None
        os.environ.pop(SPOOL_VARIABLE, None)
        return _mode() != "on" or self._wait(wait)

    def _wait(self, seconds: float) -> bool:
        begin = time.monotonic()
        while self.path.exists():
            state, waited = self.sender.state(), time.monotonic() - begin
            if state in {"starting", "ready"} and waited < min(seconds, 3.0):
                time.sleep(0.03)
                continue
            if state in {"starting", "ready"} and waited < seconds and self.sender.running():
                time.sleep(0.1)
                continue
            reason = state if state.startswith("down") else f"not sent after {waited:.0f} s"
            message = f"tracking: kept in {self.path}; the next command sends it ({reason})."
            print(message, file=sys.stderr)
            return False
        return True

    def _append(self, event: Mapping[str, Any]) -> None:
        if _mode() != "off":
            append(self.path, event)

    def _note(self, event: Mapping[str, Any]) -> None:
        if self.pipeline and _mode() != "off":
            append(pipelines_folder() / f"{self.pipeline}.jsonl", event)


def current_run() -> StageRun | None:
    """Give the run of this process's stage, or of the stage that started this process; None outside one."""
    if _current is not None:
        return _current
    spool = os.environ.get(SPOOL_VARIABLE)
    return StageRun.attach(Path(spool)) if spool else None


def end_pipeline(key: str, *, wait: float = END_WAIT_SECONDS) -> bool:
    """Say that the pipeline run `key` is over, and wait until its parent is closed; tell whether it is.

    A flow calls it, since the process that drives its stages goes on after the last one. What is not closed
    within `wait` seconds is closed by the next command.
    """
    path = pipelines_folder() / f"{key}.jsonl"
    if not path.exists():
        return True
    append(path, {"event": "closed", "time": now()})
    sender, begin = Sender(key), time.monotonic()
    while path.exists() and time.monotonic() - begin < wait:
        if sender.state().startswith("down") or not sender.running():
            break
        time.sleep(0.1)
    return not path.exists()


def _mode() -> str:
    return os.environ.get(MODE_VARIABLE, "on")
