"""One tiny export, made once: tests that damage it copy it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyweft.config import RuntimeParams
from polyweft.report import Report
from tests.unit.export.tiny_export import PARAMS, write_prepared, write_trained


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="session")
def made(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """The folder and the report of the stage `export`."""
    from stages.export import run

    prepared = write_prepared(tmp_path_factory.mktemp("prepared"))
    out = tmp_path_factory.mktemp("exported") / "export"
    return out, run(PARAMS, RuntimeParams(seed=7, threads=1), prepared=prepared, trained=trained, out=out)


@pytest.fixture(scope="session")
def exported(made: tuple[Path, Report]) -> Path:
    return made[0]
