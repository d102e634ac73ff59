"""Where a command stands: the workspace's root, the folder of state that outlives a stage, the commit.

DVC runs an experiment (`dvc exp run --temp` or `--queue`) in a copy of the repository below
`.dvc/tmp/exps/`. State that must survive (tracking spools, checkpoints, MLflow's database) belongs to the
main workspace, which this module finds from inside such a copy.

`python -m polyweft.workspace ../some/source ...` makes sources outside the workspace findable from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VARIABLE = "POLYWEFT_WORKSPACE"

_EXPERIMENTS = (".dvc", "tmp", "exps")

# Every tool below sends usage statistics unless told not to.
_QUIET = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}


def main_workspace(folder: Path) -> Path:
    """Give the main workspace's root for `folder`: itself, or the X of `X/.dvc/tmp/exps/...`."""
    parts = folder.parts
    for start in range(1, len(parts) - 2):
        if parts[start : start + 3] == _EXPERIMENTS:
            return Path(*parts[:start])
    return folder


def workspace() -> Path:
    """Give the main workspace's root, absolute: `POLYWEFT_WORKSPACE`, or where the command stands."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).absolute()
    return main_workspace(Path.cwd())


def state_folder() -> Path:
    """Give the untracked folder of state that outlives stages and experiments; it may not exist yet."""
    return workspace() / ".polyweft"


def quiet_environment() -> None:
    """Turn the usage statistics of every tool off, for this process and its children, unless set already."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


def git_commit() -> str | None:
    """Give HEAD's commit, with `-dirty` after it where tracked files differ; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def link_source_for_experiments(path: str) -> list[Path]:
    """Make a relative source outside the workspace findable from DVC's experiment folders.

    DVC checks a dependency such as `../shared/data` from the experiment's own folder
    (`.dvc/tmp/exps/standalone/<name>` under `--temp`, `.dvc/tmp/exps/<name>` under `--queue`), before the
    stage starts. For such a path a symbolic link is put where each of the two would look. A path that is
    absolute or stays inside the workspace needs none and gets none; nor is one made outside `.dvc/tmp`
    (a path that climbs three folders or more) or where something else stands.

    Returns
    -------
    list[Path]
        The links that stand there now, made or found.
    """
    root = workspace()
    relative = Path(os.path.normpath(path))
    climbs = sum(1 for part in relative.parts if part == "..")
    if relative.is_absolute() or climbs in (0, len(relative.parts)):
        return []
    head = Path(*relative.parts[: climbs + 1])
    target = _normal(root / head)
    experiments = root.joinpath(*_EXPERIMENTS)
    places = (_normal(folder / "experiment" / head) for folder in (experiments, experiments / "standalone"))
    return [place for place in places if place.is_relative_to(experiments.parent) and _point(place, target)]


def main(paths: list[str]) -> None:
    """Command line: link each given source; prints the links."""
    for path in paths:
        for link in link_source_for_experiments(path):
            print(f"{link} -> {link.readlink()}")


def _normal(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _point(link: Path, target: Path) -> bool:
    if link.is_symlink():
        if link.readlink() == target:
            return True
        link.unlink()
    elif link.exists():
        return False
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=True)
    return True


if __name__ == "__main__":
    main(sys.argv[1:])
