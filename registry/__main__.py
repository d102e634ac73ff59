"""`python -m registry`: look at the registered versions, check where they come from, and switch them."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from polyweft.errors import PolyweftError, RegistryError, ServingError
from polyweft.workspace import VARIABLE, quiet_environment, workspace
from registry import versions
from registry.versions import Version

_WIDTH_WITHOUT_TERMINAL = 160


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when all is well, 1 with one message when not, 130 when stopped."""
    quiet_environment()
    os.environ.setdefault(VARIABLE, str(workspace()))
    given = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = given.command
    try:
        return command(given)
    except PolyweftError as error:
        print(f"registry: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("registry: stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m registry", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], says: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=says, description=says)
        made.set_defaults(command=command)
        return made

    add("list", list_versions, "names, versions, aliases, the gate's decisions and key metrics")
    add("status", show_status, "the champion beside what is served, and whether a server is up")
    made = add("lineage", show_lineage, "where a version comes from; --verify recomputes every hash")
    made.add_argument("reference", metavar="NAME@ALIAS", help="or NAME/VERSION")
    made.add_argument("--verify", action="store_true", help="fail where one byte differs, and name the file")
    made = add("weights", bring_weights, "copy a version's trained folder, to start from: train.init_from")
    made.add_argument("reference", metavar="NAME@ALIAS", help="or NAME/VERSION")
    made.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    made = add("promote", promote, "make a version the champion and serve it")
    made.add_argument("name", metavar="NAME")
    made.add_argument("version", metavar="VERSION", type=int)
    _add_alias_only(made)
    made = add("rollback", roll_back, "put the champion before back, in the registry and in serving")
    made.add_argument("name", metavar="NAME")
    _add_alias_only(made)
    made = add("serve", serve, "serve the champions with Triton until Ctrl-C")
    for use, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        made.add_argument(f"--{use}-port", type=int, default=port, metavar="PORT", help=f"default {port}")
    made = add("clean", clean, "list old versions, checkpoints and caches; --yes removes them")
    made.add_argument("--yes", action="store_true", help="remove what is listed")
    return parser


def _add_alias_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alias-only", action="store_true", help="leave the served model as it is")


def list_versions(given: argparse.Namespace) -> int:
    """Print a table of all versions."""
    rows = [
        (
            version.name,
            str(version.version),
            " ".join(version.aliases),
            version.tags.get("gate.decision", ""),
            _metrics(version),
            version.export_hash[:12],
            version.tags.get("commit", "")[:12],
        )
        for name in versions.names()
        for version in reversed(versions.versions(name))
    ]
    if not rows:
        print("No model is registered yet. `dvc repro` registers one.")
        return 0
    _print_table(("name", "version", "alias", "gate", "metrics", "export", "commit"), rows)
    return 0


def show_status(given: argparse.Namespace) -> int:
    """Print each model's champion beside the version that is served."""
    from registry.repository import Repository, served_models
    from registry.server import find_server, repository_root

    url, root = find_server(), repository_root()
    print(
        f"server: {f'answers at {url} (gRPC)' if url else 'none runs; `python -m registry serve` starts it'}"
    )
    served = served_models(root) if root.is_dir() else []
    rows = []
    for name in sorted({*versions.names(), *served}):
        champion = versions.champion(name)
        current = Repository(root, name).current if name in served else None
        shown = Repository(root, name).export_hash(current) if current is not None else ""
        rows.append(
            (
                name,
                f"{champion.version} ({champion.export_hash[:12]})" if champion else "none",
                f"{current} ({shown[:12]})" if current is not None else "none",
                _in_step(champion, shown),
            )
        )
    _print_table(("name", "champion", "served version", "state"), rows)
    return 0


def _in_step(champion: Version | None, served: str) -> str:
    if champion is None:
        return "no champion; the gate has promoted none" if not served else "served without a champion"
    if not served:
        return "not served; `dvc repro` deploys it"
    if served == champion.export_hash:
        return "the champion is served"
    return f"differs; `python -m registry promote {champion.name} {champion.version}` switches"


def show_lineage(given: argparse.Namespace) -> int:
    """Print where a version comes from, and with --verify what differs from it."""
    from registry import lineage

    version = versions.resolve(given.reference)
    record = lineage.load_record(version)
    runs = lineage.find_runs(record)
    print(f"{version.name} version {version.version} {' '.join(version.aliases)}")
    print(f"  export {version.export_hash}")
    print(f"  commit {record['commit'] or 'none'}")
    print(f"  MLflow run {version.run_id}, pipeline run {record['pipeline'] or 'none'}")
    rows = _lineage_rows(record, runs)
    _print_table(("stage", "", "what", "md5 or value", "MLflow run"), rows)
    return _verify(version, record) if given.verify else 0


def bring_weights(given: argparse.Namespace) -> int:
    """Copy the folder that `train` left for a version into `--out`."""
    from registry import lineage

    version = versions.resolve(given.reference)
    lineage.restore_output(lineage.load_record(version), "data/train", given.out)
    print(f"{given.out}: weights of {version.name} version {version.version}. train.init_from may name it.")
    return 0


def _lineage_rows(record: dict[str, Any], runs: dict[str, str | None]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for stage in record["order"]:
        made, run = record["stages"][stage], runs[stage] or "not found"
        for kind in ("deps", "outs"):
            rows += [(stage, kind[:-1], e["path"], e.get("md5", "none"), run) for e in made.get(kind, [])]
        for file, values in (made.get("params") or {}).items():
            rows += [(stage, "param", key, str(value), file) for key, value in values.items()]
    return rows


def _verify(version: Version, record: dict[str, Any]) -> int:
    from registry import lineage

    with tempfile.TemporaryDirectory(prefix="polyweft-verify-") as folder:
        version.download(Path(folder))
    differences = lineage.verify(record)
    if differences:
        shown = "\n".join(f"  {difference.path} {difference.reason}" for difference in differences)
        raise RegistryError(
            f"{version.name} version {version.version} does not match this workspace:\n{shown}\n"
            "If the workspace has moved on, check out the version's commit and run `dvc checkout`; if a file "
            "was damaged, remove it and run `dvc checkout`."
        )
    print("verified: every file, dvc.lock, params.yaml and the registered copy agree with the record.")
    return 0


def promote(given: argparse.Namespace) -> int:
    """Make a version champion by hand, past the gate."""
    return _switch(versions.get(given.name, given.version), "promote", given.alias_only)


def roll_back(given: argparse.Namespace) -> int:
    """Put the previous champion back."""
    before = versions.previous(given.name)
    if before is None:
        raise RegistryError(
            f"{versions.check_name(given.name)} has no champion before the present one. `python -m registry "
            "list` shows the versions; `promote` takes any of them."
        )
    return _switch(before, "rollback", given.alias_only)


def _switch(version: Version, event: str, alias_only: bool) -> int:
    # Served first: a version that does not load or answer must not become champion.
    if not alias_only:
        from registry.rollout import serve_export

        with tempfile.TemporaryDirectory(prefix="polyweft-switch-") as folder:
            done = serve_export(version.name, version.download(Path(folder)))
        print(f"served: version {done.version} of {version.name}, {done.golden_queries} golden queries right")
    try:
        versions.move_champion(version, event=event, reasons=["by hand"])
    except RegistryError as error:
        if alias_only:
            raise
        raise ServingError(f"{version.name} version {version.version} is served, but: {error}") from error
    print(f"champion: {version.name} version {version.version} ({version.export_hash[:12]})")
    return 0


def serve(given: argparse.Namespace) -> int:
    """Serve until told to stop."""
    from registry.server import repository_root
    from registry.serving import serve as run_server

    run_server(repository_root(), given.http_port, given.grpc_port, given.metrics_port)
    return 0


def clean(given: argparse.Namespace) -> int:
    """List what can go, and with --yes remove it."""
    from registry import cleaning

    leftovers = cleaning.find_leftovers()
    if not leftovers:
        print("Nothing to clean.")
        return 0
    rows = [(leftover.kind, leftover.what, f"{leftover.size / 1e6:.1f} MB") for leftover in leftovers]
    _print_table(("kind", "what", "size"), rows)
    if not given.yes:
        print("Nothing was removed. `python -m registry clean --yes` removes what is listed.")
        return 0
    print(f"Removed; {cleaning.clean(leftovers) / 1e6:.1f} MB are free.")
    return 0


def _metrics(version: Version) -> str:
    found = {
        key.removeprefix("metric."): value for key, value in version.tags.items() if key.startswith("metric.")
    }
    return " ".join(f"{name} {float(value):.4f}" for name, value in sorted(found.items()))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL)
    table = Table(*head)
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
