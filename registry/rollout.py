"""Rollouts that lose nothing: publish aside, load, ask, compare, switch; and put the old back on any failure.

A version of a Triton model is current the moment it loads, so clients never call a component: they call
ensembles that pin one version. A rollout loads the new components beside the old ones, asks golden queries
from raw bytes through `N_candidate`, and rewrites the clients' ensembles only when PyTorch's answers came
back. The old components stay loaded until the next rollout, so requests that are under way end well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from polyweft.errors import PolyweftError, ServingError
from polyweft.export.golden import read_golden
from polyweft.io import write_text
from registry.client import Client
from registry.configs import CANDIDATE, ServingSettings
from registry.control import Control
from registry.golden import ask_golden, raw
from registry.repository import Repository
from registry.server import REPOSITORY_VARIABLE, found_or_started, repository_root

TOLERANCE = 1e-4
ANSWER_SECONDS = 60.0
"""How long the server may take over one batch of golden queries."""


@dataclass(frozen=True)
class Rollout:
    """What a rollout did.

    Attributes
    ----------
    version
        The numeric version that clients are now answered by, and `export_hash`, which its answers carry.
    previous
        The version before; equal to `version` where nothing had to change.
    golden_queries, largest_difference
        How many were asked through the clients' ensemble, and the largest absolute difference to PyTorch.
    server
        Name and version as the server states them.
    url
        gRPC's host:port; of a server that was started for the rollout alone where `started`.
    """

    version: int
    export_hash: str
    previous: int | None
    golden_queries: int
    largest_difference: float
    server: str
    url: str
    started: bool = False


def serve_export(
    name: str,
    export: Path,
    *,
    tolerance: float = TOLERANCE,
    settings: ServingSettings | None = None,
    start_timeout: float = 60.0,
) -> Rollout:
    """Make the export in folder `export` what `name`'s clients are answered by; also the way back.

    Speaks to the running server (`TRITON_URL`, or that of `python -m registry serve`), or starts one for the
    check and stops it. See `roll_out` for what is raised.
    """
    with found_or_started(start_timeout=start_timeout) as (url, server):
        done = roll_out(url, Repository(repository_root(), name, settings), export, tolerance=tolerance)
        return replace(done, started=server is not None)


def roll_out(url: str, repository: Repository, export: Path, *, tolerance: float = TOLERANCE) -> Rollout:
    """Publish `export` in `repository` and make it current on the server at `url` (gRPC's host:port).

    An export that is current already is only asked its golden queries (and reloaded where it does not
    answer them); one that stands there as an older version is pinned again.

    Raises
    ------
    ServingError
        The new version cannot be loaded, or differs from PyTorch by more than `tolerance`. What was served
        before is served on, and a version that was new is removed again.
    ExportError
        The export's files are not those that its `model.json` names.
    """
    with repository.locked(), Control(url) as control:
        version, fresh = repository.publish(export)
        previous = repository.current
        golden = read_golden(repository.golden(version))
        try:
            if version == previous:
                worst = _confirm(control, repository, tolerance)
            else:
                worst = _switch(control, repository, version, tolerance)
        except PolyweftError as error:
            raise _refusal(repository, version, previous, error) from error
        finally:
            if fresh and repository.current != version:
                repository.discard(version)
        server, release = control.about()
        export_hash = repository.export_hash(version)
        return Rollout(version, export_hash, previous, len(golden), worst, f"{server} {release}", url)


def load_current(
    url: str, repository: Repository, *, tolerance: float = TOLERANCE, timeout_seconds: float = ANSWER_SECONDS
) -> float:
    """Load what the repository says is current on a server, ask its golden queries, and give the difference.

    Raises `ServingError` where nothing is current, or it does not load or answer as PyTorch did.
    """
    with repository.locked(), Control(url) as control:
        return _confirm(control, repository, tolerance, timeout_seconds)


def check(
    url: str, repository: Repository, *, tolerance: float = TOLERANCE, timeout_seconds: float = ANSWER_SECONDS
) -> float:
    """Ask the current version's golden queries: this is health, and Triton's own readiness is not.

    Raises `ServingError` where the answers are late, wrong or another version's.
    """
    version = _current(repository)
    return _ask_all(url, repository, version, tolerance, timeout_seconds)


def _refusal(
    repository: Repository, version: int, previous: int | None, error: PolyweftError
) -> ServingError:
    who = f"version {version} of {repository.registered}"
    if version == previous:
        return ServingError(f"{who}, which is current already, does not answer as it must: {error}")
    kept = "nothing was served before" if previous is None else f"version {previous} is served on"
    notes = "; ".join(["", *getattr(error, "__notes__", [])])
    return ServingError(f"{who} was not rolled out, {kept}: {error}{notes}")


def _switch(control: Control, repository: Repository, version: int, tolerance: float) -> float:
    golden = read_golden(repository.golden(version))
    export_hash, previous = repository.export_hash(version), repository.current
    with _put_back_on_failure(control, repository, version):
        repository.write_components(version, {version} | _loaded_beside(control, repository, version))
        repository.write_ensembles(version, (CANDIDATE,))
        _load_candidate(control, repository, version)
        with Client(control.url, repository.candidate) as client:
            ask_golden(client, golden, export_hash=export_hash, tolerance=tolerance)
        repository.write_ensembles(version)
        worst = _load_ensembles(control, repository, version, tolerance)
        repository.make_current(version)
    control.unload(repository.candidate)
    repository.remove_ensemble(repository.candidate)
    for model in repository.stale_ensembles(version):
        control.unload(model)
        repository.remove_ensemble(model)
    for model in repository.stale_components(version, previous):
        control.unload(model)
    return worst


def _load_candidate(control: Control, repository: Repository, version: int) -> None:
    """Load the new components, all at once, as what the candidate's ensemble needs."""
    missing = set(repository.components(version)) - control.known()
    if missing:
        raise ServingError(
            f"the server at {control.url} does not see {sorted(missing)}: it reads another folder than "
            f"{repository.root}. Set {REPOSITORY_VARIABLE} to the folder that it reads."
        )
    try:
        control.load(repository.candidate)
    except ServingError:
        # The ensemble's refusal names the component but not its reason; loading that one again does.
        for model in repository.components(version):
            if version not in control.loaded(model):
                control.load(model)
        raise


def _load_ensembles(control: Control, repository: Repository, version: int, tolerance: float) -> float:
    """Load what clients call as its configuration stands, and ask it; gives the largest difference."""
    for model in repository.ensembles(version):
        control.load(model)
    return _ask_all(control.url, repository, version, tolerance)


def _ask_all(
    url: str, repository: Repository, version: int, tolerance: float, timeout: float = ANSWER_SECONDS
) -> float:
    golden = read_golden(repository.golden(version))
    export_hash = repository.export_hash(version)
    with Client(url, repository.name, timeout_seconds=timeout) as client:
        worst = ask_golden(client, golden, export_hash=export_hash, tolerance=tolerance)
        for name, contents in raw(golden).items():
            given = next((content for content in contents if content), None)
            if given is None or name not in repository.geometry(version).ensembles():
                continue
            answered = client.ask_alone(name, [given]).model_version
            if answered != export_hash:
                raise ServingError(
                    f"{repository.name}'s ensembles answer with different versions: {answered[:12]}"
                )
    return worst


def _confirm(
    control: Control, repository: Repository, tolerance: float, timeout: float = ANSWER_SECONDS
) -> float:
    """Have the current version answer: as it is, or loaded anew."""
    version = _current(repository)
    if control.loaded(repository.name) == {version}:
        with contextlib.suppress(ServingError):
            loaded = control.loaded(repository.components(version)[0]) | {version}
            changed = repository.write_components(version, loaded)
            if repository.write_ensembles(version) or changed:
                return _load_ensembles(control, repository, version, tolerance)
            return _ask_all(control.url, repository, version, tolerance, timeout)
    damage = repository.damaged(version)
    if damage:
        raise ServingError(f"{damage}. Publish the export again: `dvc repro --force deploy`.")
    # A stub that was killed comes back by unloading and loading; a mere load takes the model for unchanged.
    for model in [*repository.ensembles(version), repository.candidate, *repository.components(version)]:
        control.unload(model)
    repository.remove_ensemble(repository.candidate)
    repository.write_components(version, {version})
    repository.write_ensembles(version)
    return _load_ensembles(control, repository, version, tolerance)


def _current(repository: Repository) -> int:
    version = repository.current
    if version is None:
        raise ServingError(
            f"no version of {repository.registered} is current in {repository.root}. Run `dvc repro` first."
        )
    return version


def _loaded_beside(control: Control, repository: Repository, version: int) -> set[int]:
    """The current version, where it is loaded and can be again, and its components share `version`'s."""
    current = repository.current
    if current is None or not repository.same_generation(current, version):
        return set()
    if repository.damaged(current) is not None:
        return set()
    return {current} if current in control.loaded(repository.components(version)[0]) else set()


@contextlib.contextmanager
def _put_back_on_failure(control: Control, repository: Repository, version: int) -> Iterator[None]:
    """On any exception put the configurations back as they were, and the server too."""
    ensembles = dict.fromkeys(repository.ensembles(version))
    if repository.current is not None:
        ensembles |= dict.fromkeys(repository.ensembles(repository.current))
    names = [*repository.components(version), *ensembles]
    paths = {name: repository.root / name / "config.pbtxt" for name in names}
    before = {name: path.read_text(encoding="utf-8") if path.exists() else "" for name, path in paths.items()}
    serving = [name for name in ensembles if control.loaded(name)]
    try:
        yield
    except BaseException as error:
        for name, content in before.items():
            if not content:
                paths[name].unlink(missing_ok=True)
            elif paths[name].read_text(encoding="utf-8") != content:
                write_text(paths[name], content)
        repository.remove_ensemble(repository.candidate)
        # Ensembles bring back the components they pin; what none of them needs goes.
        steps = [(control.load, name) for name in serving]
        gone = [name for name in names if not serving or not before[name]]
        steps += [(control.unload, name) for name in [repository.candidate, *reversed(gone)]]
        for act, name in steps:
            try:
                act(name)
            except ServingError as fault:
                error.add_note(f"putting {name} back: {fault}")
        raise
