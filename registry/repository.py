"""The Triton model repository on disk: numbered versions of one served model, and which one is current.

A version is written aside and renamed into place, and is never changed afterwards. `<N>.json` in the
repository's root states what is current and each version's export hash; it is written last, so a version
that it does not name is a leftover of a killed command and is removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polyweft.errors import DataError, ServingError
from polyweft.export.golden import FOLDER
from polyweft.io import read_json, write_json, write_text
from registry import configs
from registry.configs import Geometry, ServingSettings
from registry.contents import check_export, find_damage, write_version


class Repository:
    """One registered model's part of a repository.

    Parameters
    ----------
    root
        The repository's folder, as Triton's `--model-repository` names it.
    name
        The registered model's name; see `registry.configs` for the served ones.
    settings
        Written into the configurations; by default what the last publication that gave some wrote.
    """

    def __init__(self, root: Path, name: str, settings: ServingSettings | None = None) -> None:
        self.root, self.registered = root, name
        self.name = configs.triton_name(name)
        self._settings = settings

    @property
    def settings(self) -> ServingSettings:
        """How the models run."""
        return self._settings or ServingSettings(**self._state().get("settings", {}))

    @property
    def current(self) -> int | None:
        """The version that clients' ensembles pin; None before the first rollout."""
        current = self._state()["current"]
        return None if current is None else int(current)

    def versions(self) -> dict[int, str]:
        """Export hash of every published version, by number."""
        return {int(v): str(entry["export_hash"]) for v, entry in sorted(self._state()["versions"].items())}

    def export_hash(self, version: int) -> str:
        """The export hash of `version`, or a `ServingError`."""
        return str(self._entry(version)["export_hash"])

    def golden(self, version: int) -> Path:
        """The folder of the version's golden queries."""
        return self._folder(configs.JOIN, version) / FOLDER

    def publish(self, export: Path) -> tuple[int, bool]:
        """Write the export as a version, and give its number and whether it is new.

        An export that is published already is not written again; files of it that are damaged are put right.

        Raises
        ------
        ServingError
            The golden queries are missing, or the disk is full.
        ExportError
            A file is missing or differs from the hash in `model.json`.
        """
        model = check_export(export)
        self._sweep()
        self._write_state({**self._state(), "settings": asdict(self.settings)})
        for version, export_hash in self.versions().items():
            if export_hash == model["export_hash"]:
                if self.damaged(version) is not None:
                    self._write_version(export, model, version, int(self._entry(version)["generation"]))
                return version, False
        version, generation = self._next_version(), self._generation(Geometry.of(model))
        self._write_version(export, model, version, generation)
        state = self._state()
        state["versions"][str(version)] = {"export_hash": model["export_hash"], "generation": generation}
        state["last"] = version
        self._write_state(state)
        return version, True

    def _write_version(self, export: Path, model: dict[str, Any], version: int, generation: int) -> None:
        """Write a version's folders aside and rename them into place, over damaged ones."""
        kinds = Geometry.of(model).components()
        staging = self.root.parent / f".staging-{self.name}-{version}"
        try:
            write_version(export, model, staging, kinds)
            for kind in kinds:
                place = self.root / configs.component_name(self.name, kind, generation) / str(version)
                place.parent.mkdir(parents=True, exist_ok=True)
                if place.exists():
                    place.rename(staging / f"{kind}-damaged")
                (staging / kind).rename(place)
        except OSError as error:
            self._sweep()
            raise ServingError(
                f"could not publish {export} to {self.root}: {error}. Free some space or check the folder's "
                "permissions, then run again; what is served is unchanged."
            ) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def damaged(self, version: int) -> str | None:
        """Say what is wrong with the version's files on disk; None where all are as published."""
        kinds = self.geometry(version).components()
        return find_damage({kind: self._folder(kind, version) for kind in kinds})

    def discard(self, version: int) -> None:
        """Remove a version that is not current, its folders first and its entry last."""
        if version == self.current:
            raise ServingError(f"version {version} of {self.registered} is being served. Roll back first.")
        for folder in self._version_folders(version):
            shutil.rmtree(folder)
        state = self._state()
        state["versions"].pop(str(version), None)
        self._write_state(state)

    def make_current(self, version: int) -> None:
        """Write down that `version` is what clients are answered by."""
        self._entry(version)
        self._write_state({**self._state(), "current": version})

    def geometry(self, version: int) -> Geometry:
        """The sizes of `version`."""
        return self._geometries()[int(self._entry(version)["generation"]) - 1]

    def _geometries(self) -> list[Geometry]:
        try:
            return [Geometry(**content) for content in self._state()["generations"]]
        except TypeError as error:
            raise ServingError(
                f"{self.root} was written by another version of Polyweft ({error}). Move the folder away and "
                "run `dvc repro --force deploy`; the registry keeps every version."
            ) from error

    def same_generation(self, one: int, other: int) -> bool:
        """Whether two versions share their components' configurations."""
        return bool(self._entry(one)["generation"] == self._entry(other)["generation"])

    def components(self, version: int) -> list[str]:
        """Served names of the version's components."""
        generation = int(self._entry(version)["generation"])
        kinds = self.geometry(version).components()
        return [configs.component_name(self.name, kind, generation) for kind in kinds]

    def stale_components(self, *kept: int | None) -> list[str]:
        """Served names of components that none of the versions `kept` needs: those of other generations."""
        needed = {name for version in kept if version is not None for name in self.components(version)}
        every = {name for version in self.versions() for name in self.components(version)}
        return sorted(every - needed)

    def ensembles(self, version: int) -> list[str]:
        """Served names of the ensembles of `version` that clients call."""
        return [configs.ensemble_name(self.name, kind) for kind in self.geometry(version).ensembles()]

    def stale_ensembles(self, version: int) -> list[str]:
        """Served names of ensembles on disk that `version` does not have: it takes other modalities."""
        every = [configs.ensemble_name(self.name, kind) for g in self._geometries() for kind in g.ensembles()]
        return sorted({name for name in every if (self.root / name).exists()} - set(self.ensembles(version)))

    @property
    def candidate(self) -> str:
        """Served name of the ensemble that a rollout asks before clients can."""
        return configs.ensemble_name(self.name, configs.CANDIDATE)

    def write_components(self, version: int, loaded: set[int]) -> bool:
        """Configure the components of `version`'s generation to keep `loaded`; whether anything changed."""
        changed = False
        geometry, generation = self.geometry(version), int(self._entry(version)["generation"])
        for kind in geometry.components():
            name = configs.component_name(self.name, kind, generation)
            text = configs.component_config(kind, name, geometry, sorted(loaded), self.settings)
            changed |= _write_changed(self.root / name / "config.pbtxt", text)
        return changed

    def write_ensembles(self, version: int, kinds: tuple[str, ...] | None = None) -> bool:
        """Pin ensembles (all that clients call) to `version`, their own number too; whether any changed."""
        changed = False
        geometry, generation = self.geometry(version), int(self._entry(version)["generation"])
        for kind in geometry.ensembles() if kinds is None else kinds:
            folder = self.root / configs.ensemble_name(self.name, kind)
            (folder / str(version)).mkdir(parents=True, exist_ok=True)
            text = configs.ensemble_config(kind, self.name, geometry, version, generation, self.settings)
            changed |= _write_changed(folder / "config.pbtxt", text)
        return changed

    def remove_ensemble(self, name: str) -> None:
        """Remove an ensemble by its served name: the candidate, or a stale one."""
        shutil.rmtree(self.root / name, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other rollouts out; one that is under way is a `ServingError`."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / f".{self.name}.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ServingError(
                    f"another rollout of {self.registered} is under way in {self.root}. Wait for it "
                    "to end, then run again."
                ) from error
            yield

    def _state(self) -> dict[str, Any]:
        path = self.root / f"{self.name}.json"
        if not path.exists():
            return {"name": self.registered, "current": None, "last": 0, "versions": {}, "generations": []}
        try:
            state: dict[str, Any] = read_json(path)
        except DataError as error:
            raise ServingError(
                f"{error} It states what is served: put it back, or move {self.root} away."
            ) from error
        if state["name"] != self.registered:
            raise ServingError(
                f"{self.root} serves {state['name']!r} as {self.name}; {self.registered!r} would take the "
                "same served name. Rename one of the two models."
            )
        return state

    def _write_state(self, state: dict[str, Any]) -> None:
        write_json(self.root / f"{self.name}.json", state)

    def _entry(self, version: int) -> dict[str, Any]:
        entries = self._state()["versions"]
        if str(version) not in entries:
            raise ServingError(
                f"{self.registered} has no version {version} in {self.root}; it has {sorted(entries)}"
            )
        entry: dict[str, Any] = entries[str(version)]
        return entry

    def _folder(self, kind: str, version: int) -> Path:
        generation = int(self._entry(version)["generation"])
        return self.root / configs.component_name(self.name, kind, generation) / str(version)

    def _generation(self, geometry: Geometry) -> int:
        state = self._state()
        if geometry.to_dict() not in state["generations"]:
            state["generations"].append(geometry.to_dict())
            self._write_state(state)
        return int(state["generations"].index(geometry.to_dict())) + 1

    def _version_folders(self, version: int | None = None) -> list[Path]:
        names = {self.candidate}
        for number, geometry in enumerate(self._geometries(), start=1):
            names |= {configs.component_name(self.name, kind, number) for kind in geometry.components()}
            names |= {configs.ensemble_name(self.name, kind) for kind in geometry.ensembles()}
        folders = [folder for name in sorted(names) for folder in (self.root / name).glob("[0-9]*")]
        return [folder for folder in folders if version is None or folder.name == str(version)]

    def _next_version(self) -> int:
        taken = [int(folder.name) for folder in self._version_folders() if folder.name.isdigit()]
        return max([*taken, int(self._state()["last"])]) + 1

    def _sweep(self) -> None:
        """Remove what a killed publication left: staging folders, and versions that no state names."""
        for staging in self.root.parent.glob(f".staging-{self.name}-[0-9]*"):
            shutil.rmtree(staging, ignore_errors=True)
        known = {str(version) for version in self.versions()}
        for folder in self._version_folders():
            if folder.name not in known:
                shutil.rmtree(folder)


def _write_changed(path: Path, text: str) -> bool:
    """Write a configuration that is new: one that is only touched makes Triton reload all its versions."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


def served_models(root: Path) -> list[str]:
    """Registered names of the models of which a version is current in the repository at `root`."""
    states = [read_json(path) for path in sorted(root.glob("*.json"))]
    return [str(state["name"]) for state in states if state.get("current") is not None]
