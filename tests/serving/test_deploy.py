"""The deploy stage: what it serves, what it leaves alone, and that its facts depend on the export alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import registry.versions
from polyweft.errors import ServingError
from polyweft.export.bundle import read_spec
from registry.repository import Repository
from registry.server import Server
from stages.deploy import DeployParams, _round_up, run
from tests.serving.tiny import spoil_golden, write_tiny_export

NAME = "tiny-deploy"
PARAMS = DeployParams(
    tolerance=1e-4,
    start_timeout_seconds=60.0,
    max_batch_size=16,
    threads=1,
    queue_delay_microseconds=500,
)


@dataclass(frozen=True)
class Champion:
    """What the registry answers: the export lies in a folder already."""

    folder: Path
    version: int = 5

    def download(self, folder: Path) -> Path:
        return self.folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return write_tiny_export(tmp_path / "export", seed=11)


@pytest.fixture
def paths(export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    monkeypatch.delenv("TRITON_URL", raising=False)
    monkeypatch.setenv("TRITON_REPOSITORY", str(tmp_path / "served" / "models"))
    registered = tmp_path / "receipt.json"
    registered.write_text(json.dumps({"export_hash": "x", "name": NAME}))
    return {"exported": export, "registered": registered, "receipt": tmp_path / "deploy" / "receipt.json"}


def _champion(monkeypatch: pytest.MonkeyPatch, champion: Champion | None) -> None:
    monkeypatch.setattr(registry.versions, "champion", lambda name: champion)


@pytest.mark.slow
def test_a_held_export_leaves_the_champion_served_and_its_own_facts(
    server: Server, paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_URL", server.url)
    monkeypatch.setenv("TRITON_REPOSITORY", str(server.root))
    champion = write_tiny_export(tmp_path / "champion", seed=12)
    _champion(monkeypatch, Champion(champion))
    report = run(PARAMS, **paths)
    own_hash = read_spec(paths["exported"])["export_hash"]
    assert report.run_facts["decision"] == "switched"
    assert report.run_facts["server_export_hash"] == read_spec(champion)["export_hash"]
    assert report.run_facts["server_largest_difference"] <= 1e-4
    assert report.facts["export_hash"] == own_hash
    assert json.loads(paths["receipt"].read_text()) == {"export_hash": own_hash}
    again = run(PARAMS, **paths)
    assert again.run_facts["decision"] == "kept"
    _champion(monkeypatch, None)
    assert run(PARAMS, **paths).facts == report.facts == again.facts


def test_no_champion_changes_nothing(paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _champion(monkeypatch, None)
    report = run(PARAMS, **paths)
    assert "no champion" in report.run_facts["decision"]
    assert report.facts["golden_queries"] == 4
    assert 0 < report.facts["largest_difference"] <= 1e-5
    assert not (paths["receipt"].parent.parent / "served").exists()


def test_an_experiment_asks_neither_registry_nor_server(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "lunar-cat")

    def asked(name: str) -> None:
        raise AssertionError("the registry was asked")

    monkeypatch.setattr(registry.versions, "champion", asked)
    report = run(PARAMS, **paths)
    assert "experiment" in report.run_facts["decision"]
    assert paths["receipt"].exists()


def test_an_export_that_differs_from_pytorch_fails_before_anything_is_asked(paths: dict[str, Path]) -> None:
    spoil_golden(paths["exported"])
    with pytest.raises(ServingError, match=r"deploy\.tolerance"):
        run(PARAMS, **paths)
    assert not paths["receipt"].exists()


def test_a_missing_serving_environment_names_make_setup(
    paths: dict[str, Path], export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYWEFT_TRITON_VENV", str(tmp_path / "nowhere"))
    _champion(monkeypatch, Champion(export))
    with pytest.raises(ServingError, match="make setup"):
        run(PARAMS, **paths)
    assert Repository(tmp_path / "served" / "models", NAME).versions() == {}


@pytest.mark.parametrize(
    ("value", "rounded"), [(2.086e-07, 3e-07), (1e-4, 1e-4), (0.0, 0.0), (9.7e-8, 1e-7), (0.25, 0.3)]
)
def test_differences_are_rounded_up_to_one_digit(value: float, rounded: float) -> None:
    assert _round_up(value) == pytest.approx(rounded, rel=1e-12)
    assert _round_up(value) >= value
