"""Lineage: from a registered version to the commit, parameters and data that made it, checkable by hashes.

The record is what `dvc.lock` stated when the version was registered, for every stage that the export comes
from: command, parameters, and the MD5 of each dependency and output, with the files inside folders. It stands
on the version's MLflow run; its own hash is a tag of the version. Stage runs are found by the hashes of what
they wrote, never by an id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyweft.config import read_yaml
from polyweft.errors import ConfigError, DataError, RegistryError
from polyweft.hashing import list_folder, md5_file, md5_listing
from polyweft.io import inside, read_json, write_bytes
from polyweft.spool import pipeline_key
from polyweft.workspace import git_commit
from registry.versions import Version, connect, experiment_id, mlflow_errors, set_tags

LOCK = Path("dvc.lock")
RECORD_HASH = "lineage_md5"

_CACHE = Path(".dvc/cache/files/md5")
# Larger folders (a source of single files) are recorded by their hash alone where DVC's cache lacks them.
_LISTED_FILES = 10_000

Record = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """One thing that is not as the version's record says.

    Attributes
    ----------
    path
        The file, or `params.yaml: key`.
    reason
        What was found and what was expected.
    """

    path: str
    reason: str


def build_record(export_hash: str, outputs: Iterable[Path], *, lock: Path = LOCK) -> Record:
    """Read from `dvc.lock` what the folders `outputs` were made from, and by which commit.

    Without a `dvc.lock` (a stage run by hand) the record has no stages, and `verify` says so.
    """
    locked = read_yaml(lock).get("stages", {}) if lock.exists() else {}
    stages: dict[str, Any] = {}
    wanted = [path.as_posix() for path in outputs]
    while wanted:
        path = wanted.pop()
        for name, stage in locked.items():
            if name not in stages and path in {out["path"] for out in stage.get("outs", [])}:
                stages[name] = _plain(stage)
                wanted += [dep["path"] for dep in stage.get("deps", [])]
    ordered = {name: stages[name] for name in locked if name in stages}
    return {
        "export_hash": export_hash,
        "commit": git_commit(),
        "pipeline": pipeline_key(),
        "stages": ordered,
        "order": list(ordered),
        "files": {
            path: listing for path, md5 in _hashes(ordered).items() if (listing := _listing(path, md5))
        },
    }


def record_hash(record: Mapping[str, Any]) -> str:
    """Hash of a record's canonical JSON."""
    content = json.dumps(record, sort_keys=True, ensure_ascii=False).encode("utf-8")
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def store_record(version: Version, record: Record) -> None:
    """Put `record` on a version, in the place of an older one.

    The same export can come from another commit; what counts is what made the bytes last. Raises
    `RegistryError` where MLflow refuses.
    """
    client = connect()
    with mlflow_errors(f"write the lineage of {version.name} version {version.version}"):
        client.log_dict(version.run_id, record, "lineage.json")
    set_tags(version, {RECORD_HASH: record_hash(record), "commit": record["commit"] or "none"})


def load_record(version: Version) -> Record:
    """Read a version's record.

    Raises
    ------
    RegistryError
        The version has none, or it was changed since.
    """
    client = connect()
    with (
        mlflow_errors(f"read the lineage of {version.name} version {version.version}"),
        tempfile.TemporaryDirectory(prefix="polyweft-lineage-") as folder,
    ):
        record: Record = read_json(Path(client.download_artifacts(version.run_id, "lineage.json", folder)))
    if record_hash(record) != version.tags.get(RECORD_HASH):
        raise RegistryError(
            f"the lineage record of {version.name} version {version.version} is not the one that was "
            f"registered: its hash is {record_hash(record)}, the version's tag says "
            f"{version.tags.get(RECORD_HASH)}. Run `dvc repro --force register` where the model was made."
        )
    return record


def restore_output(record: Record, output: str, into: Path) -> None:
    """Copy a folder that a version was made from, such as `data/train`, out of DVC's cache.

    Each file is written whole, and only with the bytes that the record states.

    Raises
    ------
    RegistryError
        The record does not list the folder, or the cache lacks a file of it.
    """
    if output not in record["files"]:
        raise RegistryError(
            f"the version's record lists no files of {output}; it has {sorted(record['files'])}."
        )
    for entry in record["files"][output]:
        md5 = entry["md5"]
        stored = _CACHE / md5[:2] / md5[2:]
        if not stored.is_file() or md5_file(stored) != md5:
            raise RegistryError(
                f"DVC's cache has no whole copy of {output}/{entry['relpath']} (md5 {md5}). "
                "`dvc pull --all-commits` brings it where a remote has it."
            )
        write_bytes(inside(into, entry["relpath"]), stored.read_bytes())


def find_runs(record: Record) -> dict[str, str | None]:
    """Give each stage's MLflow run id, found by the hashes of its outputs; None where none was logged."""
    client = connect()
    experiment = experiment_id(client)
    found: dict[str, str | None] = {}
    with mlflow_errors("find the stage runs"):
        for name in record["order"]:
            outs = record["stages"][name].get("outs", [])
            conditions = [
                f"tags.`polyweft.out.{out['path']}` = '{out['md5']}'" for out in outs if "md5" in out
            ]
            query = " and ".join([f"tags.`polyweft.stage` = '{name}'", *conditions])
            runs = client.search_runs([experiment], query, max_results=1)
            found[name] = str(runs[0].info.run_id) if runs else None
    return found


def verify(record: Record, *, lock: Path = LOCK) -> list[Difference]:
    """Recompute every hash of the record from the workspace's files, and hold `dvc.lock` against it too.

    Outputs of stages that the version does not come from (`register`, `deploy`) are held against `dvc.lock`
    alone. Gives what differs, by file; nothing differs where the list is empty.
    """
    if not record["stages"]:
        return [Difference(str(lock), "the version's record names no stage: it was registered without DVC")]
    locked = read_yaml(lock).get("stages", {}) if lock.exists() else {}
    differences: dict[str, Difference] = {}
    for path, md5 in _hashes(record["stages"]).items():
        for difference in _compare_path(Path(path), md5, record["files"].get(path)):
            differences.setdefault(difference.path, difference)
    others = {name: {"outs": stage.get("outs", [])} for name, stage in locked.items()}
    for path, md5 in _hashes({n: s for n, s in others.items() if n not in record["stages"]}).items():
        for difference in _compare_path(Path(path), md5, _listing(path, md5)):
            differences.setdefault(difference.path, difference)
    for name in record["order"]:
        for difference in _compare_lock(name, record["stages"][name], locked.get(name)):
            differences.setdefault(difference.path, difference)
    for difference in _compare_params(record):
        differences.setdefault(difference.path, difference)
    return list(differences.values())


def _compare_path(path: Path, md5: str, recorded: list[dict[str, str]] | None) -> list[Difference]:
    if not path.exists():
        return [
            Difference(str(path), f"is missing; expected md5 {md5}. `dvc checkout` or `dvc pull` brings it")
        ]
    try:
        if path.is_dir():
            return _compare_folder(path, md5, recorded)
        found = md5_file(path)
    except DataError as error:
        return [Difference(str(path), str(error))]
    return [] if found == md5 else [_changed(path, found, md5)]


def _compare_folder(path: Path, md5: str, recorded: list[dict[str, str]] | None) -> list[Difference]:
    entries = list_folder(path)
    found = md5_listing(entries)
    if found == md5:
        return []
    if recorded is None:
        return [_changed(path, found, md5)]
    is_, was = ({entry["relpath"]: entry["md5"] for entry in side} for side in (entries, recorded))
    differences = [
        _changed(path / name, is_[name], was[name]) for name in was if is_.get(name, was[name]) != was[name]
    ]
    differences += [Difference(str(path / name), "is missing") for name in was if name not in is_]
    differences += [Difference(str(path / name), "was not there") for name in is_ if name not in was]
    return differences or [_changed(path, found, md5)]


def _changed(path: Path, found: str, expected: str) -> Difference:
    return Difference(str(path), f"has md5 {found}, expected {expected}")


def _compare_lock(
    name: str, recorded: Mapping[str, Any], locked: Mapping[str, Any] | None
) -> list[Difference]:
    if locked is None:
        return [Difference(f"{LOCK}: {name}", "has no such stage; check out the version's commit")]
    differences = []
    for kind in ("deps", "outs"):
        now = {entry["path"]: entry.get("md5") for entry in locked.get(kind, [])}
        for entry in recorded.get(kind, []):
            if now.get(entry["path"]) != entry.get("md5"):
                reason = f"states md5 {now.get(entry['path'])}, the version was made with {entry.get('md5')}"
                differences.append(Difference(f"{LOCK}: {name}: {entry['path']}", reason))
    other = [kind for kind in ("cmd", "params") if _plain(locked).get(kind) != recorded.get(kind)]
    reason = "is not what the version was made with"
    return differences + [Difference(f"{LOCK}: {name}: {kind}", reason) for kind in other]


def _compare_params(record: Record) -> list[Difference]:
    differences = []
    for name in record["order"]:
        for file, values in (record["stages"][name].get("params") or {}).items():
            try:
                document = _plain(read_yaml(Path(file)))
            except ConfigError as error:
                differences.append(Difference(file, str(error)))
                continue
            for key, value in values.items():
                now = _look_up(document, key)
                if now != value:
                    reason = f"is {now!r}, the version was made with {value!r}"
                    differences.append(Difference(f"{file}: {key}", reason))
    return differences


def _look_up(document: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def _hashes(stages: Mapping[str, Any]) -> dict[str, str]:
    entries = [e for stage in stages.values() for kind in ("deps", "outs") for e in stage.get(kind, [])]
    return {entry["path"]: entry["md5"] for entry in entries if "md5" in entry}


def _listing(path: str, md5: str) -> list[dict[str, str]] | None:
    """The files of a folder with this hash: from DVC's cache, else from the folder itself if it fits."""
    if not md5.endswith(".dir"):
        return None
    cached = _CACHE / md5[:2] / md5[2:]
    if cached.is_file():
        listing: list[dict[str, str]] = read_json(cached)
        return listing
    files = sum(1 for _ in itertools.islice(Path(path).rglob("*"), _LISTED_FILES + 1))
    entries = list_folder(Path(path)) if Path(path).is_dir() and files <= _LISTED_FILES else []
    return entries if md5_listing(entries) == md5 else None


def _plain(content: Any) -> Any:
    """YAML's objects as JSON's, so that a record equals itself after a round trip."""
    return json.loads(json.dumps(content, default=str))
