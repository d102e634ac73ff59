"""The tiny exports and what they were made from; tests that damage one copy it first."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.export import tiny_export


@pytest.fixture(scope="session")
def made() -> tiny_export.Made:
    return tiny_export.made()


@pytest.fixture(scope="session", params=tiny_export.KINDS)
def each(request: pytest.FixtureRequest) -> tiny_export.Made:
    """An export of every kind, one after the other."""
    return tiny_export.made(request.param)


@pytest.fixture(scope="session")
def trained(made: tiny_export.Made) -> Path:
    return made.trained


@pytest.fixture(scope="session")
def exported(made: tiny_export.Made) -> Path:
    return made.exported
