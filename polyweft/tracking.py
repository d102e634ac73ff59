"""MLflow: the only module of the library that knows it.

`StageRun` is how a stage writes its run, `polyweft.sender` the process that sends it through `Store`, and
`python -m polyweft.tracking --drain` sends what earlier commands could not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from polyweft.stage_run import StageRun, current_run, end_pipeline
from polyweft.workspace import workspace

__all__ = [
    "OutageError",
    "StageRun",
    "Store",
    "artifact_location",
    "current_run",
    "end_pipeline",
    "experiment_name",
    "tracking_uri",
]

EXPERIMENT = "polyweft"

T = TypeVar("T")

_PERMANENT = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}


def tracking_uri() -> str:
    """Give MLflow's tracking address: `MLFLOW_TRACKING_URI`, or SQLite in the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace() / 'mlflow.db'}"


def artifact_location() -> str | None:
    """Give the folder of artifacts for the SQLite store; None where a server decides."""
    return None if tracking_uri().startswith("http") else (workspace() / "mlartifacts").as_uri()


def experiment_name() -> str:
    """Give the MLflow experiment's name: `MLFLOW_EXPERIMENT_NAME`, or `polyweft`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT


class OutageError(Exception):
    """MLflow did not answer, or not as it should: what was to be sent is kept."""


class Store:
    """MLflow as the sender uses it. Every method raises `OutageError` where trying again later may help."""

    def __init__(self) -> None:
        os.environ.pop("MLFLOW_RUN_ID", None)
        # A dead server must not hold the sender for MLflow's default of minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        self.refusal = MlflowException
        self.client: Any = self._try(lambda: MlflowClient(tracking_uri()))
        self._experiment: str | None = None
        self._runs: dict[str, str] = {}

    def _try(self, action: Callable[[], T]) -> T | None:
        """Run `action`; None where MLflow refuses it for good, which is written to the log."""
        from requests import RequestException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return action()
        except self.refusal as error:
            if error.error_code not in _PERMANENT:
                raise OutageError(str(error).splitlines()[0][:200]) from error
            log(f"refused by MLflow, left out: {error}")
        except (RequestException, SQLAlchemyError) as error:
            raise OutageError(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from error
        except OSError as error:
            log(f"left out: {error}")
        return None

    def _needed(self, action: Callable[[], str]) -> str:
        answer = self._try(action)
        if answer is None:
            raise OutageError("MLflow refused to open it; .polyweft/tracking.log says why")
        return answer

    def answers(self) -> bool:
        """Tell whether MLflow answers at all."""
        try:
            self._try(lambda: self.client.search_experiments(max_results=1))
        except OutageError:
            return False
        return True

    def experiment(self) -> str:
        """Give the experiment's id; it is created, or restored if it was deleted."""
        if self._experiment is None:
            self._experiment = self._needed(self._find_experiment)
        return self._experiment

    def _find_experiment(self) -> str:
        found = self.client.get_experiment_by_name(experiment_name())
        if found is None:
            return str(self.client.create_experiment(experiment_name(), artifact_location()))
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def run(self, tag: str, key: str, *, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Give the id of the run that bears `tag` = `key`, created if there is none."""
        if key not in self._runs:
            experiment = self.experiment()

            def find() -> str:
                query = f"tags.`{tag}` = '{key}'"
                found = self.client.search_runs([experiment], query, max_results=1)
                if found:
                    return str(found[0].info.run_id)
                short = {_name(k): v[:8000] for k, v in tags.items()}
                created = self.client.create_run(experiment, start_time=start, tags=short, run_name=name)
                return str(created.info.run_id)

            self._runs[key] = self._needed(find)
        return self._runs[key]

    def log(self, run: str, *, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        """Add metrics (key, value, time, step), params and tags (pairs), in as few calls as MLflow allows."""
        from mlflow.entities import Metric, Param, RunTag

        for chunk in _chunks([Metric(_name(k), v, t, s) for k, v, t, s in metrics], 1000):
            self._try(partial(self.client.log_batch, run, metrics=chunk, synchronous=True))
        for chunk in _chunks([Param(_name(k), v[:6000]) for k, v in params], 100):
            self._try(partial(self.client.log_batch, run, params=chunk, synchronous=True))
        for chunk in _chunks([RunTag(_name(k), v[:8000]) for k, v in tags], 100):
            self._try(partial(self.client.log_batch, run, tags=chunk, synchronous=True))

    def artifact(self, run: str, path: Path, folder: str) -> None:
        """Log a file or folder below `folder` of the run's artifacts."""
        if path.is_dir():
            target = f"{folder}/{path.name}" if folder else path.name
            self._try(lambda: self.client.log_artifacts(run, str(path), target))
        else:
            self._try(lambda: self.client.log_artifact(run, str(path), folder or None))

    def end(self, run: str, status: str, time_ms: int) -> None:
        """Close the run."""
        self._try(lambda: self.client.set_terminated(run, status, end_time=time_ms))

    def forget(self, key: str) -> None:
        """Look the run up again at the next use: it may be gone."""
        self._runs.pop(key, None)


def _name(key: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in key)[:250]


def _chunks(items: list[Any], size: int) -> Iterable[list[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def log(message: str) -> None:
    """Write a line with the time to the sender's log."""
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    from polyweft.sender import main

    main(sys.argv[1:])
