"""Versions, aliases and the ledger, on a real MLflow store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyweft.errors import RegistryError
from polyweft.export.golden import read_golden
from registry import ledger, versions
from registry.packaging import register_export
from registry.versions import Version
from tests.serving.tiny import write_tiny_export
from tests.unit.registry.fake_exports import (
    COLOURS,
    make_workspace,
    picture,
    registration,
    write_export,
)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return make_workspace(tmp_path / "workspace", monkeypatch)


def register(workspace: Path, *, shift: int = 0, name: str = "colours") -> Version:
    export = write_export(workspace / "exports" / str(shift), shift=shift)
    return register_export(name, export, registration(accuracy=0.5))


def test_export_is_found_by_its_hash_and_downloads_as_it_was(workspace: Path) -> None:
    made = register(workspace)
    found = versions.find_export("colours", made.export_hash)
    assert found == made
    got = found.download(workspace / "got")
    for file in (workspace / "exports" / "0").rglob("*"):
        if file.is_file():
            assert (got / file.relative_to(workspace / "exports" / "0")).read_bytes() == file.read_bytes()
    assert versions.find_export("colours", "0" * 64) is None


def test_run_named_by_the_environment_is_left_alone(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = versions.connect()
    other = client.create_run(versions.experiment_id(client)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", other)
    made = register(workspace)
    assert made.run_id != other
    assert client.get_run(other).data.metrics == {}
    assert client.get_run(made.run_id).data.metrics == {"accuracy": 0.5}
    assert client.get_run(made.run_id).info.status == "FINISHED"


def test_registered_model_predicts_by_itself(workspace: Path) -> None:
    import mlflow
    import pandas as pd

    register(workspace)
    model = mlflow.pyfunc.load_model("models:/colours/1")
    table = pd.DataFrame({"image": [picture(COLOURS["red"]), None], "text": [None, "a green thing"]})
    answer = model.predict(table)
    assert int(np.argmax(answer["probabilities"][0])) == sorted(COLOURS).index("red")
    assert answer["probabilities"][1] is None
    assert answer["image_embedding"][1] is None
    assert answer["text_embedding"][0] is None
    assert np.linalg.norm(answer["text_embedding"][1]) == pytest.approx(1, abs=1e-5)
    assert model.metadata.signature is not None
    assert model.input_example is not None


def test_registered_captioner_takes_every_modality_and_writes(workspace: Path) -> None:
    import mlflow
    import pandas as pd

    export = write_tiny_export(
        workspace / "wide", seed=2, modalities=["image", "text", "audio"], generates=True, embedding=0
    )
    golden = read_golden(export / "golden")
    register_export("wide", export, registration())
    model = mlflow.pyfunc.load_model("models:/wide/1")
    table = pd.DataFrame(
        {
            name: [content.decode() if name == "text" and content else content for content in contents]
            for name, contents in golden.contents.items()
        }
    )
    answer = model.predict(table)
    assert [caption or "" for caption in answer["caption"]] == golden.captions
    assert answer["caption"][1] is None
    np.testing.assert_allclose(np.stack(answer["probabilities"]), golden.expected["probabilities"], atol=1e-5)
    assert set(answer) == {"caption", "probabilities"}


def test_damaged_copy_in_the_registry_is_refused(workspace: Path) -> None:
    made = register(workspace)
    for graph in (workspace / "mlartifacts").rglob("image.onnx"):
        content = bytearray(graph.read_bytes())
        content[-1] ^= 1
        graph.write_bytes(content)
    with pytest.raises(RegistryError, match=r"image\.onnx"):
        made.download(workspace / "got")


def test_killed_registration_leaves_no_version(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("registry.packaging.log_lineage", stop)
        with pytest.raises(KeyboardInterrupt):
            register(workspace)
    assert versions.versions("colours") == []
    assert register(workspace).version == 1


def test_champion_moves_forth_and_back(workspace: Path) -> None:
    assert versions.champion("colours") is None
    first, second = register(workspace), register(workspace, shift=1)
    versions.move_champion(first, event="promote", reasons=["first"])
    assert versions.previous("colours") is None
    versions.move_champion(second, event="promote", reasons=["better"])
    assert versions.resolve("colours@champion").version == 2
    before = versions.previous("colours")
    assert before is not None
    assert before.version == 1
    versions.move_champion(before, event="rollback", reasons=["by hand"])
    assert versions.resolve("colours@champion").version == 1
    assert versions.get("colours", 2).tags[versions.ROLLED_BACK] == "true"
    versions.move_champion(versions.get("colours", 2), event="promote", reasons=["by hand"])
    assert versions.ROLLED_BACK not in versions.get("colours", 2).tags
    events = [(entry["event"], entry["version"], entry["previous"]) for entry in ledger.read("colours")]
    assert events == [("promote", 1, None), ("promote", 2, 1), ("rollback", 1, 2), ("promote", 2, 1)]


def test_promoting_the_champion_changes_nothing(workspace: Path) -> None:
    first = register(workspace)
    versions.move_champion(first, event="promote", reasons=[])
    versions.move_champion(first, event="promote", reasons=[])
    assert len(ledger.read()) == 1


def test_two_versions_are_listed_in_order(workspace: Path) -> None:
    register(workspace)
    register(workspace, shift=1)
    register(workspace, name="other")
    assert versions.names() == ["colours", "other"]
    assert [version.version for version in versions.versions("colours")] == [1, 2]


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "a'b", "a" * 65, "名"])
def test_bad_names_are_refused(workspace: Path, name: str) -> None:
    with pytest.raises(RegistryError, match="not allowed"):
        versions.versions(name)


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("colours", "NAME@ALIAS"),
        ("colours@", "NAME@ALIAS"),
        ("colours/x", "NAME@ALIAS"),
        ("colours@champion", "no alias"),
        ("colours/7", "no version 7"),
    ],
)
def test_reference_that_names_nothing_says_so(workspace: Path, reference: str, says: str) -> None:
    with pytest.raises(RegistryError, match=says):
        versions.resolve(reference)


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "sqlite:////nowhere/at/all/mlflow.db"])
def test_unreachable_mlflow_is_named_with_a_remedy(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(RegistryError, match=r"cannot be reached.*MLFLOW_TRACKING_URI") as caught:
        versions.names()
    assert uri in str(caught.value)


def test_ledger_survives_a_torn_line(workspace: Path) -> None:
    ledger.append("hold", "colours", version=1)
    with ledger.ledger_file().open("ab") as handle:
        handle.write(b'{"event": "pro')
    ledger.append("promote", "colours", version=2)
    assert [entry["event"] for entry in ledger.read()] == ["hold", "promote"]
    assert json.loads(ledger.ledger_file().read_text().splitlines()[-1])["version"] == 2
