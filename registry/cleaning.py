"""What can go: old versions, checkpoints of finished runs, caches. Listed first, removed on demand.

Kept are every version that an alias names, the champion before, the newest version, the served version and
those it may roll back to, and the newest checkpoint, which a killed training may still resume from.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from polyweft.errors import RegistryError
from polyweft.workspace import state_folder, workspace
from registry import ledger, versions
from registry.repository import Repository, served_models
from registry.server import repository_root
from registry.versions import Version

CHECKPOINTS = "checkpoints"
CACHES = ("engines", "experiments")


@dataclass(frozen=True)
class Leftover:
    """One thing that can go.

    Attributes
    ----------
    kind
        `version`, `served version`, `checkpoint` or `cache`.
    what
        Its name, for a person.
    size
        Bytes on this machine.
    remove
        Removes it.
    """

    kind: str
    what: str
    size: int
    remove: Callable[[], None]


def find_leftovers() -> list[Leftover]:
    """Give everything that can go; nothing is removed. Raises `RegistryError` or `ServingError`."""
    return [*_registered(), *_served(), *_checkpoints(), *_caches()]


def clean(leftovers: list[Leftover]) -> int:
    """Remove `leftovers` and give the bytes that are free now."""
    freed = 0
    for leftover in leftovers:
        leftover.remove()
        freed += leftover.size
        ledger.append("clean", leftover.what, kind=leftover.kind)
    return freed


def _registered() -> list[Leftover]:
    found = []
    for name in versions.names():
        every = versions.versions(name)
        before = versions.previous(name)
        for version in every[:-1]:
            is_before = before is not None and version.version == before.version
            if version.aliases or is_before or not version.export_hash:
                continue
            folder = _model_folder(version)
            found.append(
                Leftover(
                    "version",
                    f"{name} version {version.version}",
                    _size(folder) if folder else 0,
                    lambda version=version: _remove_version(version),  # type: ignore[misc]
                )
            )
    return found


def _remove_version(version: Version) -> None:
    client = versions.connect()
    folder, model = _model_folder(version), _model_id(version)
    with versions.mlflow_errors(f"remove {version.name} version {version.version}"):
        client.delete_model_version(version.name, str(version.version))
        if model is not None:
            client.delete_logged_model(model)
    if folder is not None:
        shutil.rmtree(folder)


def _model_id(version: Version) -> str | None:
    return version.source.removeprefix("models:/") if version.source.startswith("models:/m-") else None


def _model_folder(version: Version) -> Path | None:
    """The version's files where this workspace keeps them; elsewhere they are not ours to remove."""
    model = _model_id(version)
    if model is None:
        return None
    client = versions.connect()
    with versions.mlflow_errors(f"find the files of {version.name} version {version.version}"):
        location = urlparse(client.get_logged_model(model).artifact_location)
    folder = Path(unquote(location.path))
    ours = location.scheme in ("", "file") and folder.is_relative_to(workspace() / "mlartifacts")
    return folder.parent if ours and folder.name == "artifacts" else None


def _served() -> list[Leftover]:
    root = repository_root()
    found = []
    for name in served_models(root) if root.is_dir() else []:
        repository = Repository(root, name)
        kept = {
            version.export_hash for version in (versions.champion(name), versions.previous(name)) if version
        }
        for number, export_hash in repository.versions().items():
            if number == repository.current or export_hash in kept:
                continue
            folders = [folder for folder in root.glob(f"{repository.name}_*/{number}") if folder.is_dir()]
            found.append(
                Leftover(
                    "served version",
                    f"{name} version {number} in {root}",
                    sum(_size(folder) for folder in folders),
                    lambda repository=repository, number=number: _discard(repository, number),  # type: ignore[misc]
                )
            )
    return found


def _discard(repository: Repository, number: int) -> None:
    with repository.locked():
        repository.discard(number)


def _checkpoints() -> list[Leftover]:
    folder = state_folder() / CHECKPOINTS
    kept = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime) if folder.is_dir() else []
    return [_folder("checkpoint", path) for path in kept[:-1]]


def _caches() -> list[Leftover]:
    return [_folder("cache", path) for name in CACHES if (path := state_folder() / name).is_dir()]


def _folder(kind: str, path: Path) -> Leftover:
    return Leftover(kind, str(path.relative_to(workspace())), _size(path), lambda: _remove_folder(path))


def _remove_folder(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise RegistryError(
            f"could not remove {path}: {error.strerror or error}. Check its permissions, then run again."
        ) from error


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
