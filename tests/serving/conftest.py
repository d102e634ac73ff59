"""One real tritonserver for all serving tests, each of which serves a model of its own name on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.server import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("triton") / "models") as started:
        yield started
