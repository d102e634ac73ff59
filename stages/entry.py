"""The way into every stage: from a command line to `run`, and from its report to files and MLflow.

`run` is a stage's contract. Its positional parameters are sections of `params.yaml` (`params` is the
section named after the stage), its keyword-only parameters are paths and become flags.
"""

from __future__ import annotations

import argparse
import inspect
import os
import signal
import sys
import time
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from polyweft.config import PARAMS_FILE, Section, load_section, read_yaml
from polyweft.errors import PolyweftError
from polyweft.io import write_json
from polyweft.report import Report
from polyweft.workspace import (
    VARIABLE,
    git_commit,
    link_source_for_experiments,
    quiet_environment,
    state_folder,
    workspace,
)
from stages.clock import ImportClock, seconds_since_process_start

Run = Callable[..., Report]


@dataclass(frozen=True)
class Signature:
    """What a stage's `run` takes: its name, its sections by parameter, and the names of its paths."""

    stage: str
    sections: dict[str, type[Section]]
    paths: list[str]

    def section_name(self, parameter: str) -> str:
        """The section of `params.yaml` that a positional parameter stands for."""
        return self.stage if parameter == "params" else parameter


def signature(run: Run) -> Signature:
    """Read a stage's signature; the stage's name is that of the file that `run` stands in."""
    hints = typing.get_type_hints(run)
    parameters = inspect.signature(run).parameters.values()
    return Signature(
        stage=Path(run.__code__.co_filename).stem,
        sections={p.name: hints[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY},
        paths=[p.name for p in parameters if p.kind is p.KEYWORD_ONLY],
    )


def enter(run: Run) -> NoReturn:
    """Run a stage as a program: 0 when done, 1 with one message for an error of ours, 130 when stopped."""
    startup = seconds_since_process_start()
    quiet_environment()
    os.environ.setdefault(VARIABLE, str(workspace()))
    form = signature(run)
    parser = argparse.ArgumentParser(prog=f"python -m stages.{form.stage}", description=_description(run))
    for name in form.paths:
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="PATH")
    paths = vars(parser.parse_args())
    signal.signal(signal.SIGTERM, _stop)
    try:
        code = _execute(run, form, paths, startup)
    except PolyweftError as error:
        print(f"{form.stage}: {error}", file=sys.stderr, flush=True)
        code = 1
    except KeyboardInterrupt:
        print(f"{form.stage}: stopped; nothing is half-written. Run `dvc repro` to go on.", file=sys.stderr)
        code = 130
    raise SystemExit(code)


def _description(run: Run) -> str:
    """Give what the stage's docstring says before its sections."""
    return (inspect.getdoc(run) or "").split("\n\nRaises\n")[0]


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _execute(run: Run, form: Signature, paths: dict[str, Path], startup: float) -> int:
    from polyweft.processes import watch_ancestor
    from polyweft.stage_run import StageRun, Status

    watch_ancestor()
    sections = {p: load_section(cls, form.section_name(p)) for p, cls in form.sections.items()}
    deps, outs = graph_paths(form.stage)
    if "DVC_EXP_NAME" not in os.environ:
        for path in deps:
            link_source_for_experiments(path)
    run_record = StageRun.begin(
        form.stage,
        params={form.section_name(p): section.model_dump() for p, section in sections.items()},
        deps=_hashes(deps),
        commit=git_commit(),
    )
    clock = ImportClock()
    clock.install()
    begin = time.perf_counter()
    try:
        report = run(*sections.values(), **paths)
        write_json(Path("data/reports") / f"{form.stage}.json", report.facts)
    except BaseException as error:
        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        run_record.end(status, outs={}, facts={}, run_facts={"error": str(error)[:5000]})
        raise
    seconds = time.perf_counter() - begin
    startup += clock.seconds + report.run_facts.get("startup_seconds", 0.0)
    own = seconds - clock.seconds - report.run_facts.get("startup_seconds", 0.0)
    times = {"own_seconds": round(own, 2), "startup_seconds": round(startup, 2)}
    for page in report.pages:
        run_record.artifact(page, "pages")
    run_record.end(
        "FINISHED", outs=_hashes(outs), facts=report.facts, run_facts={**report.run_facts, **times}
    )
    summary = {"stage": form.stage, "facts": report.facts, "run_facts": report.run_facts, **times}
    write_json(summary_file(form.stage), {**summary, "finished": time.time()})
    return 0


def summary_file(stage: str) -> Path:
    """Where the untracked summary of a stage's last run stands; experiments have a folder of their own."""
    experiment = os.environ.get("DVC_EXP_NAME")
    folder = Path("experiments", experiment) if experiment else Path("summary")
    return state_folder() / folder / f"{stage}.json"


def graph_paths(stage: str, graph: Path = Path("dvc.yaml")) -> tuple[list[str], list[str]]:
    """The paths of a stage's dependencies and outputs as `dvc.yaml` states them; empty without the file.

    `${section.key}` is filled in from `params.yaml`. Reports are outputs too.
    """
    if not graph.exists():
        return [], []
    entry = read_yaml(graph)["stages"].get(stage, {})
    deps = [_fill(item) for item in entry.get("deps", [])]
    listed = [*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])]
    outs = [_fill(next(iter(item)) if isinstance(item, dict) else item) for item in listed]
    return deps, outs


def _fill(path: str) -> str:
    while "${" in path:
        head, _, rest = path.partition("${")
        key, _, tail = rest.partition("}")
        value: Any = read_yaml(PARAMS_FILE)
        for part in key.split("."):
            value = value[part]
        path = f"{head}{value}{tail}"
    return path


def _hashes(paths: list[str]) -> dict[str, str]:
    from polyweft.hashing import md5_path

    return {path: md5_path(Path(path)) for path in paths if Path(path).exists()}
