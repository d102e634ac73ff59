"""MLflow: the only module of the library that knows it."""

from __future__ import annotations

import os

from polyweft.workspace import workspace

EXPERIMENT = "polyweft"


def tracking_uri() -> str:
    """Give MLflow's tracking address: `MLFLOW_TRACKING_URI`, or SQLite in the main workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace() / 'mlflow.db'}"


def artifact_location() -> str | None:
    """Give the folder of artifacts for the SQLite store; None where a server decides."""
    return None if tracking_uri().startswith("http") else (workspace() / "mlartifacts").as_uri()


def experiment_name() -> str:
    """Give the MLflow experiment's name: `MLFLOW_EXPERIMENT_NAME`, or `polyweft`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
