"""The one module that speaks to DVC: its graph, one stage's reproduction, its lock and its status.

Stages and their order are DVC's; no stage is listed here. What a driver may need beyond `dvc repro` stands
in `dvc.yaml` under a stage's `meta` (`retries: 1`), which DVC does not interpret.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from polyweft.config import read_yaml
from polyweft.errors import FlowError
from polyweft.processes import descendants, guarded, kill_all, marked
from polyweft.spool import PIPELINE_VARIABLE

Outcome = Literal["ran", "cached"]

TERMINATE_SECONDS = 5.0
"""How long what is cancelled may take to end by itself."""

_CODE = re.compile(r"exited with (-?\d+)")
_HINTS = re.compile(
    r"^(To track the changes with git, run:|\tgit add .*|To enable auto staging, run:"
    r"|\tdvc config core\.autostage.*|Use `dvc push` to send .*|Data and pipelines are up to date\.|)$"
)


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml`: its name, what it says of itself, and how often a failure may be tried again."""

    name: str
    description: str
    retries: int


class StageError(FlowError):
    """A stage failed. `killed` tells that a signal ended it (or DVC), not the stage's own decision."""

    def __init__(self, stage: str, reason: str, *, killed: bool) -> None:
        super().__init__(f"stage `{stage}`: {reason}")
        self.stage = stage
        self.killed = killed


def stages(root: Path = Path()) -> list[Stage]:
    """List the stages in the order in which `dvc repro` takes them, by DVC's own plan.

    Raises
    ------
    FlowError
        `root` is no DVC repository, or its `dvc.yaml` cannot be read; the message is DVC's.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro

    try:
        with Repo(str(root)) as repo:
            graph = get_active_graph(repo.index.graph)
            plan = plan_repro(graph, collect_stages(repo, [str(root / "dvc.yaml")]))
            return [_stage(item, root) for item in plan]
    except (DvcException, OSError) as error:
        raise FlowError(f"DVC cannot read the graph in {root.absolute()}: {error}") from error


def _stage(item: Any, root: Path) -> Stage:
    # DVC's own `addressing` is relative to this process's folder, not to `root`.
    file = os.path.relpath(item.path, root.absolute())
    name = getattr(item, "name", None)
    address = file if name is None else name if file == "dvc.yaml" else f"{file}:{name}"
    return Stage(address, item.desc or "", int((item.meta or {}).get("retries", 0)))


def command(*arguments: str) -> list[str]:
    """Give the command line of DVC with this Python."""
    return [sys.executable, "-m", "dvc", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give this process's environment with this Python's folder first in PATH, as stages' commands need."""
    folder = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([folder, os.environ.get("PATH", "")]),
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


def reproduce(
    stage: str, *, on_line: Callable[[str], None], key: str | None = None, root: Path = Path()
) -> Outcome:
    """Run `dvc repro --single-item STAGE` in a process group of its own, and wait.

    Parameters
    ----------
    on_line
        Takes each line that DVC and the stage print, DVC's hints left out.
    key
        The pipeline run that the stage belongs to; what is left of it after a failure is found by it.

    Returns
    -------
    Outcome
        `ran`, or `cached` where DVC found nothing to do or restored a former result.

    Raises
    ------
    StageError
        The stage failed, or was killed. Whatever else ends this call (a cancellation, Ctrl-C, SIGTERM) ends
        DVC, the stage and all below it first, sessions of their own included. If this process itself is
        killed, the kernel kills DVC, and the stage's own watch does the rest.
    """
    settings = {PIPELINE_VARIABLE: key} if key else {}
    repro = command("repro", "--single-item", stage)
    code, lines = run(repro, on_line=on_line, root=root, settings=settings, key=key)
    if code != 0:
        raise _failure(stage, code, lines)
    cached = any("skipping" in line and f"'{stage}'" in line for line in lines)
    return "cached" if cached else "ran"


def run(
    arguments: Sequence[str],
    *,
    on_line: Callable[[str], None],
    settings: Mapping[str, str],
    root: Path = Path(),
    key: str | None = None,
) -> tuple[int, list[str]]:
    """Run a command in a process group of its own; its exit code and lines, but for DVC's hints.

    `settings` are added to its environment. Nothing outlives it: what bears `key` neither; see `reproduce`.
    """
    lines: list[str] = []
    process = subprocess.Popen(
        guarded(list(arguments)),
        cwd=root,
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        for line in _lines(process):
            if not _HINTS.match(line):
                lines.append(line)
                on_line(line)
        code = process.wait()
    except BaseException:
        _end(process, key, patience=TERMINATE_SECONDS)
        raise
    if code != 0:
        _end(process, key, patience=0.0)
    return code, lines


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """Give the process's lines until it ends; a stray child that holds the pipe open delays it by 2 s."""
    pipe = process.stdout
    assert pipe is not None
    arrived: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_pump, args=(pipe, arrived), daemon=True).start()
    ended: float | None = None
    while True:
        try:
            line = arrived.get(timeout=0.2)
        except queue.Empty:
            if process.poll() is not None:
                ended = ended or time.monotonic()
                if time.monotonic() - ended > 2.0:
                    return
            continue
        if line is None:
            return
        yield line


def _pump(pipe: IO[str], arrived: queue.Queue[str | None]) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in pipe:
            arrived.put(line.rstrip("\n"))
    arrived.put(None)


def _end(process: subprocess.Popen[str], key: str | None, *, patience: float) -> None:
    import psutil

    tree = descendants(process.pid)
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            tree.append(psutil.Process(process.pid))
    if key:
        tree += [stray for stray in marked(PIPELINE_VARIABLE, key) if stray not in tree]
    kill_all(tree, patience=patience)
    if key:
        kill_all(marked(PIPELINE_VARIABLE, key))
    process.wait()


def _failure(stage: str, code: int, lines: list[str]) -> StageError:
    if code < 0:
        return StageError(stage, f"DVC was ended by signal {-code}. Run the flow again.", killed=True)
    exits = [int(found[1]) for line in lines if (found := _CODE.search(line))]
    if exits and (exits[-1] < 0 or exits[-1] > 128):
        signal = -exits[-1] if exits[-1] < 0 else exits[-1] - 128
        return StageError(stage, f"ended by signal {signal}. Run the flow again.", killed=True)
    said = [line for line in lines if line.startswith(f"{stage}: ")]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    reason = said[-1].removeprefix(f"{stage}: ") if said else (errors or lines or [f"exit code {code}"])[-1]
    return StageError(stage, reason, killed=False)


def experiment(
    name: str,
    settings: Mapping[str, Any],
    target: str,
    *,
    on_line: Callable[[str], None],
    root: Path = Path(),
) -> None:
    """Run the graph up to `target` as the DVC experiment `name`, in a copy of the workspace.

    Parameters
    ----------
    settings
        Keys of `params.yaml` with their values.

    Raises
    ------
    FlowError
        The experiment failed; what DVC and the stages said went to `on_line`.
    """
    changed = [part for key, value in settings.items() for part in ("-S", f"{key}={json.dumps(value)}")]
    experiment = command("exp", "run", "--temp", "--name", name, *changed, target)
    code, said = run(experiment, on_line=on_line, root=root, settings={})
    if code != 0:
        reason = next((line for line in said if line.startswith(f"{target}: ")), said[-1] if said else "")
        raise FlowError(f"experiment {name} ended with code {code}: {reason}")


def experiment_report(name: str, stage: str, root: Path = Path()) -> dict[str, Any]:
    """Give `data/reports/<stage>.json` of the DVC experiment `name`.

    Raises
    ------
    FlowError
        There is no such experiment, or it has no such report.
    """
    from dvc.api import metrics_show
    from dvc.exceptions import DvcException

    file = f"data/reports/{stage}.json"
    try:
        found: dict[str, Any] = metrics_show(file, repo=str(root), rev=name)
    except (DvcException, OSError) as error:
        raise FlowError(f"experiment {name} has no report of {stage}: {error}") from error
    if not found:
        raise FlowError(f"experiment {name} has no report of {stage}.")
    return found


def lock(root: Path = Path()) -> dict[str, Any]:
    """Give `dvc.lock`'s stages: what each read and wrote, with its md5; empty before the first run."""
    path = root / "dvc.lock"
    return read_yaml(path).get("stages", {}) if path.exists() else {}


def changes(root: Path = Path()) -> dict[str, Any]:
    """Give what `dvc status` finds changed: stage to its list of changes; empty when all is up to date.

    Raises
    ------
    FlowError
        DVC could not tell; the message is DVC's.
    """
    done = subprocess.run(
        command("status", "--json"), cwd=root, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise FlowError(f"dvc status failed: {done.stderr.strip()}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content
