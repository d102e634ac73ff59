"""Registered versions and their aliases, in MLflow's model registry.

A version is found by its export's hash (the tag `export_hash`), never by an id that a file holds. The alias
`champion` names the version to serve. An alias keeps no history, so a version that becomes champion carries
the tag `previous_champion`, and every move goes to the ledger too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyweft.errors import RegistryError
from polyweft.tracking import artifact_location, experiment_name, tracking_uri
from polyweft.workspace import quiet_environment
from registry import ledger

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
EXPORT_HASH = "export_hash"
PREVIOUS = "previous_champion"
ROLLED_BACK = "rolled_back"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"

_REACH_SECONDS = 5


@dataclass(frozen=True)
class Version:
    """One registered version of a model.

    Attributes
    ----------
    export_hash
        SHA-256 of the export, hex, as its `model.json` states it; empty for a version not made by `register`.
    run_id
        The MLflow run that registered it; it holds the metrics, the model card and the lineage.
    source
        Where MLflow keeps the model (`models:/m-...`).
    """

    name: str
    version: int
    export_hash: str
    run_id: str
    source: str
    aliases: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)

    def download(self, folder: Path) -> Path:
        """Copy the version's files below `folder`, check them, and give the path of the export folder.

        Raises
        ------
        RegistryError
            The files are gone, or differ from the hashes that the version was registered with.
        """
        from registry.packaging import check_export

        with module_address(), mlflow_errors(f"download {self.name} version {self.version}"):
            import mlflow.artifacts

            folder.mkdir(parents=True, exist_ok=True)
            got = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{self.name}/{self.version}",
                dst_path=str(folder),
                tracking_uri=tracking_uri(),
                registry_uri=tracking_uri(),
            )
        found = sorted(Path(got).glob("artifacts/*/model.json"))
        if len(found) != 1:
            raise RegistryError(
                f"{self.name} version {self.version} holds {len(found)} exports, expected one. It was not "
                "registered by Polyweft's register stage, or files were removed; promote another version."
            )
        check_export(found[0].parent, self.export_hash)
        return found[0].parent


def check_name(name: str) -> str:
    """Give `name` back if a registered model may have it; else raise `RegistryError`."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise RegistryError(
            f"model name {name!r} is not allowed. Use 1 to 64 letters, digits, `-` and `_`, a letter or "
            "digit first; `python -m registry list` shows the names there are."
        )
    return name


def connect() -> MlflowClient:
    """Give a client of the tracking address, after asking shortly whether anyone answers there.

    Raises
    ------
    RegistryError
        Nobody does; MLflow's own client would go on trying for minutes.
    """
    uri = tracking_uri()
    _reach(uri)
    with mlflow_errors("open the registry"):
        return _client(uri)


@functools.cache
def _client(uri: str) -> MlflowClient:
    quiet_environment()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_registered_models(max_results=1)
    return client


def _reach(uri: str) -> None:
    if uri.startswith(("http://", "https://")):
        import urllib.request

        try:
            with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_REACH_SECONDS):  # noqa: S310
                return
        except OSError as error:
            raise _unreachable(uri, str(getattr(error, "reason", error))) from error
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        if not file.parent.is_dir():
            raise _unreachable(uri, f"the folder {file.parent} does not exist")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise _unreachable(uri, f"{file} cannot be written")


def _unreachable(uri: str, reason: str) -> RegistryError:
    return RegistryError(
        f"MLflow at {uri} cannot be reached: {reason}. Start that server or correct MLFLOW_TRACKING_URI "
        "(unset, it is the workspace's own mlflow.db), then run the same command again."
    )


@contextlib.contextmanager
def mlflow_errors(action: str) -> Iterator[None]:
    """Turn MLflow's and the database's errors inside the block into a `RegistryError` that names `action`."""
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RegistryError(
            f"could not {action} at {tracking_uri()}: {reason}. Check that MLflow is up and the name "
            "and version exist (`python -m registry list`), then run the same command again."
        ) from error


@contextlib.contextmanager
def module_address() -> Iterator[None]:
    """Give MLflow's module-level functions our address; the environment, which they write it to, is kept."""
    import mlflow

    names = ("MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI")
    kept, uri = {name: os.environ[name] for name in names if name in os.environ}, tracking_uri()
    os.environ.pop("MLFLOW_RUN_ID", None)
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(kept)


def experiment_id(client: MlflowClient) -> str:
    """Give the id of the experiment that runs go to; it is made if there is none."""
    from mlflow.exceptions import MlflowException

    name = experiment_name()
    with mlflow_errors(f"open the experiment {name}"):
        found = client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(client.create_experiment(name, artifact_location=artifact_location()))
            except MlflowException:  # another process made it in between
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)


def names() -> list[str]:
    """Give the names of all registered models, sorted; those of a form that we do not give are others'."""
    client = connect()
    with mlflow_errors("list the models"):
        found = [model.name for model in _pages(client.search_registered_models)]
    return sorted(name for name in found if re.fullmatch(NAME_PATTERN, name))


def versions(name: str) -> list[Version]:
    """Give all versions of `name`, oldest first; none where the name is not registered."""
    return _search(name, "")


def find_export(name: str, export_hash: str) -> Version | None:
    """Give the oldest version of `name` that holds the export of this hash, or None."""
    found = _search(name, f" and tag.`{EXPORT_HASH}` = '{export_hash}'")
    return found[0] if found else None


def _search(name: str, condition: str) -> list[Version]:
    client = connect()
    with mlflow_errors(f"list the versions of {name}"):
        found = list(_pages(client.search_model_versions, f"name = '{check_name(name)}'{condition}"))
        aliases = _aliases(client, name) if found else {}
    return sorted((_version(entry, aliases) for entry in found), key=lambda version: version.version)


def get(name: str, version: int) -> Version:
    """Give one version; `RegistryError` where there is none."""
    found = [entry for entry in versions(name) if entry.version == version]
    if not found:
        have = ", ".join(str(entry.version) for entry in versions(name)) or "none"
        raise RegistryError(f"{name} has no version {version}; it has {have}. See `python -m registry list`.")
    return found[0]


def resolve(reference: str) -> Version:
    """Give the version that `NAME@ALIAS` or `NAME/VERSION` names; `RegistryError` where there is none."""
    name, sign, rest = reference.partition("@") if "@" in reference else reference.partition("/")
    check_name(name)
    if sign == "/" and rest.isdecimal():
        return get(name, int(rest))
    if sign == "@" and rest:
        for version in versions(name):
            if rest in version.aliases:
                return version
        raise RegistryError(f"{name} has no alias {rest!r}. `python -m registry list` shows what there is.")
    raise RegistryError(
        f"{reference!r} names no version. Write NAME@ALIAS or NAME/VERSION, as `{name}@champion`."
    )


def champion(name: str) -> Version | None:
    """Give the version that the alias `champion` of `name` names; None where it names none."""
    return next((version for version in versions(name) if CHAMPION in version.aliases), None)


def previous(name: str) -> Version | None:
    """Give the version that was champion of `name` before the present one; None where none was or is left."""
    current = champion(name)
    if current is None or not current.tags.get(PREVIOUS, "").isdecimal():
        return None
    before = int(current.tags[PREVIOUS])
    return next((version for version in versions(name) if version.version == before), None)


def move_champion(version: Version, *, event: str, reasons: list[str]) -> None:
    """Make `version` the champion of its name and enter the move in the ledger.

    `event` is `promote` (by the gate or by hand) or `rollback`. A rolled-back version is tagged, so that
    the gate does not bring it back by itself; promoting it by hand takes the tag away. The tags are set
    before the alias: a crash in between leaves the old champion, and the same command completes the move.
    """
    client, current = connect(), champion(version.name)
    if current is not None and current.version == version.version:
        return
    number = str(version.version)
    with mlflow_errors(f"move the alias {CHAMPION} of {version.name} to version {number}"):
        if event == "rollback" and current is not None:
            client.set_model_version_tag(version.name, str(current.version), ROLLED_BACK, "true")
        elif current is not None:
            client.set_model_version_tag(version.name, number, PREVIOUS, str(current.version))
        if ROLLED_BACK in version.tags:
            client.delete_model_version_tag(version.name, number, ROLLED_BACK)
        client.set_registered_model_alias(version.name, CHAMPION, number)
    ledger.append(
        event,
        version.name,
        version=version.version,
        export_hash=version.export_hash,
        previous=current.version if current else None,
        reasons=reasons,
    )


def set_tags(version: Version, tags: dict[str, str]) -> None:
    """Set tags of a version."""
    client = connect()
    with mlflow_errors(f"tag {version.name} version {version.version}"):
        for key, value in sorted(tags.items()):
            client.set_model_version_tag(version.name, str(version.version), key, value)


def _aliases(client: MlflowClient, name: str) -> dict[int, tuple[str, ...]]:
    by_version: dict[int, tuple[str, ...]] = {}
    for alias, number in sorted(client.get_registered_model(name).aliases.items()):
        by_version[int(number)] = (*by_version.get(int(number), ()), alias)
    return by_version


def _pages(search: Any, condition: str | None = None) -> Iterator[Any]:
    token = None
    while True:
        page = search(condition, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _version(entry: Any, aliases: dict[int, tuple[str, ...]]) -> Version:
    return Version(
        name=entry.name,
        version=int(entry.version),
        export_hash=entry.tags.get(EXPORT_HASH, ""),
        run_id=entry.run_id or "",
        source=entry.source,
        aliases=aliases.get(int(entry.version), ()),
        tags=dict(entry.tags),
    )
