"""One run of the whole graph that the pipeline tests share; it is made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from clones import Clone


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` ran once, committed. A test that changes it puts it back."""
    made = Clone(tmp_path_factory.mktemp("ran") / "clone")
    made.run("dvc", "repro")
    made.commit("The first run")
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test puts a clone of its own."""
    return tmp_path / "clone"
