"""The register stage on a real MLflow store: once per export, gated, and without traces in experiments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from polyweft.config import RuntimeParams
from polyweft.errors import ExportError
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.report import Report
from registry import ledger, lineage, versions
from registry.gate import RegisterParams
from stages.register import run
from tests.unit.registry.fake_exports import make_workspace, write_export, write_prepared

EVALUATE = EvaluateParams(
    split="test", languages=None, caption_choice="all", bootstrap_samples=100, batch_size=32
)
PARAMS = {
    "name": "colours",
    "primary_metric": "accuracy",
    "non_inferiority_margin": 0.05,
    "minimum": {"accuracy": 0.8},
    "bootstrap_samples": 100,
    "description": "Tells colours apart.",
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = make_workspace(tmp_path / "workspace", monkeypatch)
    write_prepared(folder / "data" / "prepare")
    write_export(folder / "data" / "export")
    (folder / "data" / "reports").mkdir()
    (folder / "data" / "reports" / "align.json").write_text('{"pairs_quarantined": 7}')
    return folder


def register(**changes: object) -> Report:
    return run(
        RegisterParams.model_validate(PARAMS | changes),
        EVALUATE,
        RuntimeParams(seed=0, threads=1),
        prepared=Path("data/prepare"),
        exported=Path("data/export"),
        evaluated=Path("data/evaluate"),
        receipt=Path("data/register/receipt.json"),
    )


def export(workspace: Path, **form: object) -> None:
    shutil.rmtree(workspace / "data" / "export")
    write_export(workspace / "data" / "export", **form)


def served() -> int | None:
    champion = versions.champion("colours")
    return champion.version if champion else None


def test_first_version_becomes_champion(workspace: Path) -> None:
    report = register()
    assert report.run_facts["decision"] == "promoted"
    assert served() == 1
    assert report.facts["minimum_bars"]["accuracy"] == {"bar": 0.8, "value": 1.0, "pass": True}
    receipt = json.loads(Path("data/register/receipt.json").read_text())
    assert receipt["export_hash"] == report.facts["export_hash"]


def test_same_export_is_not_registered_twice(workspace: Path) -> None:
    first = register()
    entries = ledger.read()
    second = register()
    assert second.facts == first.facts
    assert (second.run_facts["decision"], second.run_facts["registered"]) == ("unchanged", "again")
    assert len(versions.versions("colours")) == 1
    assert ledger.read() == entries


def test_export_put_back_is_found_again(workspace: Path) -> None:
    register()
    export(workspace, sharpness=4.0)
    register()
    export(workspace)
    report = register()
    assert report.run_facts["version"] == 1
    assert len(versions.versions("colours")) == 2


def test_bad_candidate_is_held_and_the_champion_stays(workspace: Path) -> None:
    register()
    export(workspace, shift=1)
    report = register()
    assert report.run_facts["decision"] == "held"
    assert "accuracy is 0.0000, below the bar of 0.8" in report.run_facts["reasons"]
    assert served() == 1
    assert versions.get("colours", 2).tags["gate.decision"] == "held"
    assert ledger.read()[-1]["event"] == "hold"
    assert Path("data/register/receipt.json").exists()


def test_candidate_worse_than_the_champion_is_held_though_it_passes_the_bars(workspace: Path) -> None:
    register(minimum={"accuracy": 0.0})
    export(workspace, shift=1)
    report = register(minimum={"accuracy": 0.0})
    assert report.run_facts["decision"] == "held"
    assert report.run_facts["checks"]["non_inferiority"]["difference"] == -1.0


def test_equal_candidate_takes_over(workspace: Path) -> None:
    register()
    export(workspace, sharpness=4.0)
    assert register().run_facts["decision"] == "promoted"
    assert served() == 2


def test_champion_whose_files_are_gone_means_hold(workspace: Path) -> None:
    register()
    shutil.rmtree(workspace / "mlartifacts" / "models")
    export(workspace, sharpness=4.0)
    report = register()
    assert report.run_facts["decision"] == "held"
    assert "cannot be evaluated" in report.run_facts["reasons"][0]
    assert served() == 1


def test_champion_of_another_data_set_means_hold(workspace: Path) -> None:
    register()
    prepared = workspace / "data" / "prepare"
    content = json.loads((prepared / "dataset.json").read_text())
    (prepared / "dataset.json").write_text(json.dumps(content | {"classes": ["azure", "green", "red"]}))
    export(workspace, classes=["azure", "green", "red"])
    report = register(minimum={"accuracy": 0.0})
    assert report.run_facts["decision"] == "held"
    assert served() == 1


def test_version_rolled_back_by_hand_is_not_promoted_again(workspace: Path) -> None:
    register()
    export(workspace, sharpness=4.0)
    register()
    versions.move_champion(versions.get("colours", 1), event="rollback", reasons=["by hand"])
    report = register()
    assert report.run_facts["decision"] == "held"
    assert "rolled back by hand" in report.run_facts["reasons"][0]
    assert served() == 1


def test_experiment_touches_nothing_and_states_the_same_facts(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "trial")
    before = (workspace / "mlflow.db").read_bytes()
    trial = register()
    assert trial.run_facts["decision"] == "not asked"
    assert (workspace / "mlflow.db").read_bytes() == before
    assert ledger.read() == []
    receipt = Path("data/register/receipt.json").read_bytes()
    monkeypatch.delenv("DVC_EXP_NAME")
    assert register().facts == trial.facts
    assert Path("data/register/receipt.json").read_bytes() == receipt


def test_decision_and_version_stay_out_of_what_git_tracks(workspace: Path) -> None:
    facts = register().facts
    assert not {"version", "decision", "reasons", "champion"} & set(facts)


def test_version_carries_card_metrics_and_lineage(workspace: Path) -> None:
    register()
    version = versions.get("colours", 1)
    client = versions.connect()
    card = Path(client.download_artifacts(version.run_id, "model_card.md", str(workspace))).read_text()
    assert "pairs_quarantined" in card
    assert "| accuracy | 1.0000 | 1.0000 to 1.0000 | 0.8000 |" in card
    assert client.get_run(version.run_id).data.metrics["accuracy"] == 1.0
    assert lineage.load_record(version)["export_hash"] == version.export_hash
    assert version.tags["metric.accuracy"] == "1.000000"


def test_damaged_export_is_an_error_and_registers_nothing(workspace: Path) -> None:
    (workspace / "data" / "export" / "image.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"image\.onnx"):
        register()
    assert versions.versions("colours") == []
