"""`python -m registry`, run as a person runs it, on a real MLflow store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from registry import ledger, lineage, versions
from registry.__main__ import main
from registry.packaging import register_export
from tests.unit.registry.fake_exports import make_workspace, registration, write_export

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TRITON_URL", raising=False)
    monkeypatch.delenv("TRITON_REPOSITORY", raising=False)
    return make_workspace(tmp_path / "workspace", monkeypatch)


def register(workspace: Path, count: int) -> None:
    for shift in range(count):
        export = write_export(workspace / "exports" / str(shift), sharpness=1.0 + shift)
        made = register_export("colours", export, registration())
        versions.set_tags(made, {"metric.accuracy": "0.5"})


def test_empty_registry_lists_nothing(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert "No model is registered" in capsys.readouterr().out


def test_list_shows_versions_with_alias_and_metrics(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(workspace, 2)
    assert main(["promote", "colours", "1", "--alias-only"]) == 0
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "champion" in out
    assert "accuracy 0.5000" in out
    assert versions.get("colours", 2).export_hash[:12] in out


def test_promote_and_rollback_move_the_alias_and_the_ledger(workspace: Path) -> None:
    register(workspace, 2)
    for version in ("1", "2"):
        assert main(["promote", "colours", version, "--alias-only"]) == 0
    assert main(["rollback", "colours", "--alias-only"]) == 0
    champion = versions.champion("colours")
    assert champion is not None
    assert champion.version == 1
    assert [entry["event"] for entry in ledger.read()] == ["promote", "promote", "rollback"]


def test_status_names_champion_and_says_that_no_server_runs(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(workspace, 1)
    main(["promote", "colours", "1", "--alias-only"])
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert "server: none runs" in out
    assert "not served" in out


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["promote", "colours", "9"], "no version 9"),
        (["promote", "bad name", "1"], "not allowed"),
        (["rollback", "colours"], "no champion before"),
        (["lineage", "colours@champion"], "no alias"),
        (["lineage", "colours"], "NAME@ALIAS"),
    ],
)
def test_errors_are_one_message_and_exit_code_1(
    workspace: Path, capsys: pytest.CaptureFixture[str], command: list[str], says: str
) -> None:
    assert main(command) == 1
    err = capsys.readouterr().err
    assert err.startswith("registry: ")
    assert says in err


def test_unreachable_mlflow_is_one_message(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["list"]) == 1
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err


def test_lineage_shows_the_record_and_verify_names_what_differs(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(workspace, 1)
    Path("data").mkdir()
    Path("data/out.bin").write_bytes(b"whole")
    md5 = "4a3b6b4d0f3d1c0a3a0c5f6d5b0f8c11"
    stage = {
        "cmd": "x",
        "params": {"params.yaml": {"a.b": 1}},
        "outs": [{"path": "data/out.bin", "md5": md5}],
    }
    record = {
        "export_hash": "e",
        "commit": "c0ffee",
        "pipeline": None,
        "stages": {"make": stage},
        "order": ["make"],
        "files": {},
    }
    lineage.store_record(versions.get("colours", 1), record)
    assert main(["lineage", "colours/1"]) == 0
    assert "c0ffee" in capsys.readouterr().out
    assert main(["lineage", "colours/1", "--verify"]) == 1
    assert "data/out.bin has md5" in capsys.readouterr().err


def test_clean_lists_first_and_removes_on_demand_only(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register(workspace, 4)
    main(["promote", "colours", "2", "--alias-only"])
    main(["promote", "colours", "3", "--alias-only"])
    for name in ("old", "new"):
        (workspace / ".polyweft" / "checkpoints" / name).mkdir(parents=True)
    os.utime(workspace / ".polyweft" / "checkpoints" / "old", (0, 0))
    capsys.readouterr()
    assert main(["clean"]) == 0
    out = capsys.readouterr().out
    assert "colours version 1" in out
    assert "checkpoints/old" in out
    assert "Nothing was removed" in out
    assert len(versions.versions("colours")) == 4
    assert len(list((workspace / "mlartifacts" / "models").iterdir())) == 4
    assert main(["clean", "--yes"]) == 0
    assert [version.version for version in versions.versions("colours")] == [2, 3, 4]
    assert len(list((workspace / "mlartifacts" / "models").iterdir())) == 3
    assert [path.name for path in (workspace / ".polyweft" / "checkpoints").iterdir()] == ["new"]
    assert versions.get("colours", 2).download(workspace / "got").is_dir()
    capsys.readouterr()
    assert main(["clean"]) == 0
    assert "Nothing to clean" in capsys.readouterr().out


def test_program_answers_help_without_mlflow(workspace: Path) -> None:
    code = (
        "import sys; from registry.__main__ import _parser; _parser(); "
        "print([m for m in ('mlflow', 'torch', 'onnxruntime', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
