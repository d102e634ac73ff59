"""Asking a served model its golden queries: what it must answer to pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyweft.errors import ServingError
from polyweft.export.bundle import read_spec
from polyweft.export.golden import Golden, ask_export, read_golden
from registry.client import Answer
from registry.golden import ask_golden, raw
from tests.serving.tiny import write_tiny_export


@dataclass
class Server:
    """Answers as the golden queries expect, but for what a test changes."""

    golden: Golden
    version: str
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    name: str = "n"

    def ask(self, contents: dict[str, list[bytes]]) -> Answer:
        assert contents == raw(self.golden)
        return Answer({**self.golden.expected, **self.changed}, self.version, list(self.golden.captions))


def served(tmp_path: Path, **form: Any) -> Server:
    export = write_tiny_export(tmp_path / "export", seed=3, **form)
    return Server(read_golden(export / "golden"), read_spec(export)["export_hash"])


def asked(server: Server) -> float:
    return ask_golden(server, server.golden, export_hash=read_hash(server), tolerance=1e-4)  # type: ignore[arg-type]


def read_hash(server: Server) -> str:
    return server.version if server.version != "another" else "expected"


@pytest.mark.parametrize("sees", [["image"], ["text"], ["image", "text"]])
def test_the_export_itself_answers_as_expected(tmp_path: Path, sees: list[str]) -> None:
    export = write_tiny_export(tmp_path / "export", seed=3, sees=sees)
    assert ask_export(export, read_golden(export / "golden"), threads=1) <= 1e-5


def test_absent_modalities_are_empty_bytes(tmp_path: Path) -> None:
    server = served(tmp_path)
    assert raw(server.golden)["image"][1] == b""
    assert raw(server.golden)["text"][2] == b""
    assert asked(server) == 0.0


def test_another_model_a_difference_and_another_caption_are_refused(tmp_path: Path) -> None:
    server = served(tmp_path, generates=True)
    assert asked(server) == 0.0
    server.changed["probabilities"] = server.golden.expected["probabilities"] + np.float32(0.001)
    with pytest.raises(ServingError, match=r"probabilities differs .* 0\.001"):
        asked(server)
    server.changed = {}
    server.version = "another"
    with pytest.raises(ServingError, match="answered by model another"):
        asked(server)
    export = read_golden(tmp_path / "export" / "golden")
    server = Server(export, "v")
    server.ask = lambda contents: Answer(export.expected, "v", ["something else"] * 4)  # type: ignore[method-assign]
    with pytest.raises(ServingError, match="caption differs"):
        asked(server)
