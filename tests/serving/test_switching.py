"""Promote and rollback move the alias and what the real tritonserver answers, both or neither."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry import versions
from registry.__main__ import main
from registry.packaging import register_export
from registry.repository import Repository
from registry.server import repository_root
from tests.serving.tiny import write_tiny_export
from tests.unit.registry.fake_exports import make_workspace, registration

NAME = "switching"
ENVIRONMENT = Path(__file__).parent.parent.parent / ".venv-triton"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("TRITON_URL", "TRITON_REPOSITORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("POLYWEFT_TRITON_VENV", os.environ.get("POLYWEFT_TRITON_VENV", str(ENVIRONMENT)))
    return make_workspace(tmp_path / "workspace", monkeypatch)


def served() -> str:
    repository = Repository(repository_root(), NAME)
    return repository.export_hash(repository.current) if repository.current is not None else ""


def champion() -> str:
    found = versions.champion(NAME)
    return found.export_hash if found else ""


@pytest.mark.slow
def test_promote_and_rollback_switch_registry_and_server_together(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, broken = (
        register_export(NAME, write_tiny_export(workspace / str(seed), seed=seed), registration())
        for seed in range(3)
    )
    assert main(["promote", NAME, "1"]) == 0
    assert served() == champion() == first.export_hash
    assert main(["promote", NAME, "2"]) == 0
    assert served() == champion() == second.export_hash
    (golden,) = (workspace / "mlartifacts").rglob("*/2/golden/golden.safetensors")
    content = bytearray(golden.read_bytes())
    content[-2] ^= 0x40
    golden.write_bytes(content)
    assert main(["promote", NAME, "3"]) == 1
    assert served() == champion() == second.export_hash != broken.export_hash
    assert main(["rollback", NAME]) == 0
    assert served() == champion() == first.export_hash
    capsys.readouterr()
    assert main(["status"]) == 0
    assert "the champion is served" in capsys.readouterr().out
