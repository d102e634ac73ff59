"""A small DVC repository whose stages behave badly on demand; it takes Polyweft's tracking and watching."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]

STAGE = """
import os, pathlib, subprocess, sys, time
from polyweft.errors import PolyweftError
from polyweft.processes import watch_ancestor
from polyweft.tracking import StageRun

name, mode = sys.argv[1], pathlib.Path("mode").read_text().strip()
watch_ancestor()
run = StageRun.begin(name, params={"lr": 0.1}, deps={}, commit=None)
if mode == f"hang {name}":
    # A grandchild with a session of its own, as torchrun's workers have.
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    run.metric("loss", 0.5, step=1)
    pathlib.Path("hanging").write_text(str(os.getpid()))
    time.sleep(600)
if mode == f"fail {name}":
    with pathlib.Path("tries").open("a") as tries:
        tries.write(name + "\\n")
    run.end("FAILED")
    print(f"{name}: the toy is broken. Mend it.", file=sys.stderr)
    sys.exit(1)
if mode == f"die {name}":
    with pathlib.Path("tries").open("a") as tries:
        tries.write(name + "\\n")
    if len(pathlib.Path("tries").read_text().splitlines()) == 1:
        os.kill(os.getpid(), 9)
pathlib.Path(f"{name}.txt").write_text(name)
run.end("FINISHED", outs={f"{name}.txt": "0" * 32}, facts={"accuracy": 0.9})
"""

# Not in alphabetical order, with a branch: the order of dvc.lock shows whose order was taken.
GRAPH = """
stages:
  zeta:
    cmd: python stage.py zeta
    deps: [stage.py]
    outs: [zeta.txt]
    meta: {retries: 1}
  beta:
    cmd: python stage.py beta
    deps: [zeta.txt]
    outs: [beta.txt]
  alpha:
    cmd: python stage.py alpha
    deps: [zeta.txt]
    outs: [alpha.txt]
  omega:
    cmd: python stage.py omega
    deps: [alpha.txt, beta.txt]
    outs: [omega.txt]
"""


def make(folder: Path) -> Path:
    """Make the repository in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.py").write_text(STAGE)
    (folder / "dvc.yaml").write_text(GRAPH)
    (folder / "mode").write_text("good")
    (folder / "prefect.yaml").write_text((ROOT / "prefect.yaml").read_text())
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, env=environment(folder), check=True)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment in which a command runs in the repository, and that marks what it starts."""
    outer = {
        k: v for k, v in os.environ.items() if not k.startswith(("POLYWEFT_", "DVC_", "MLFLOW_", "PREFECT_"))
    }
    return {
        **outer,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "DVC_NO_ANALYTICS": "1",
        "POLYWEFT_WORKSPACE": str(folder),
        "POLYWEFT_TRACKING": "spool",
        **more,
    }


def python(folder: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start Python in the repository; its output is in `<folder>/output`."""
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(folder, **more),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )


def left(folder: Path) -> list[psutil.Process]:
    """The processes that belong to the repository."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("POLYWEFT_WORKSPACE") == str(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def wait_until(condition: object, seconds: float = 60.0) -> bool:
    """Wait until `condition()` holds; tell whether it did within `seconds`."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False
