"""What every test may use: the real data, and an environment that sends no statistics and lets git commit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polyweft.workspace import quiet_environment

ROOT = Path(__file__).parent.parent
quiet_environment()

# Tests commit to repositories of their own; a new machine has told git of no one.
for role in ("AUTHOR", "COMMITTER"):
    os.environ.setdefault(f"GIT_{role}_NAME", "test")
    os.environ.setdefault(f"GIT_{role}_EMAIL", "test@example.invalid")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the project; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent. Put `shared` beside the project to run this test.")
    return folder
