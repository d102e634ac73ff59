"""The Prefect flow: a task a stage, one at a time, in DVC's own order.

The flow skips nothing by itself: each task asks DVC, and DVC decides what is cached. A failure that the stage
decided on (exit code 1) comes again with the same input, so it is tried again only where `dvc.yaml` says so
(`meta: {retries: 1}`, for stages that speak to the world); one that a signal made is tried again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import graph, summary
from flows.server import prepare_environment
from polyweft import processes
from polyweft.tracking import end_pipeline

KILLED_RETRIES = 2
RETRY_SECONDS = 5


class _OneLine(logging.Filter):
    """Keeps tracebacks of stages that failed out of Prefect's log: the stage's own message says it all."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.exc_info, record.exc_text = None, None
        return True


def task_for(stage: graph.Stage, key: str) -> Task[[], graph.Outcome]:
    """Give the task that reproduces `stage` as part of the pipeline run `key`."""

    def try_again(_: object, run: TaskRun, state: State[object]) -> bool:
        error = state.result(raise_on_failure=False)
        killed = isinstance(error, graph.StageError) and error.killed
        return run.run_count <= (KILLED_RETRIES if killed else stage.retries)

    @task(
        name=stage.name,
        task_run_name=stage.name,
        description=stage.description or None,
        retries=max(KILLED_RETRIES, stage.retries),
        retry_delay_seconds=RETRY_SECONDS,
        retry_condition_fn=try_again,
        persist_result=False,
    )
    def reproduce() -> graph.Outcome:
        logger = get_run_logger()
        return graph.reproduce(stage.name, on_line=logger.info, key=key)

    return reproduce


@flow(name="polyweft", validate_parameters=False, persist_result=False)
def polyweft() -> dict[str, str]:
    """Bring every stage of `dvc.yaml` up to date; leaves the table of `make run` as an artifact."""
    prepare_environment()
    for name in ("prefect.task_runs", "prefect.flow_runs", "prefect.task_engine", "prefect.flow_engine"):
        logging.getLogger(name).addFilter(_OneLine())
    key = processes.identity(os.getpid())
    assert key is not None
    runner = processes.identity(os.getppid())
    if runner and (multiprocessing.parent_process() or os.environ.get("PREFECT__FLOW_RUN_ID")):
        processes.watch(runner, "flow: Prefect's runner, which started this flow, is gone; stopping.")
    outcomes: dict[str, str] = {}
    try:
        for stage in graph.stages():
            outcomes[stage.name] = task_for(stage, key)()
    finally:
        end_pipeline(key)
    create_markdown_artifact(summary.markdown(summary.read()), key="polyweft-summary", description="Results")
    return outcomes
