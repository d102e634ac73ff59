"""Lineage against a real DVC: the record agrees with `dvc.lock`, and one flipped byte is found and named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from polyweft.errors import RegistryError
from registry import lineage, versions
from registry.packaging import register_export
from tests.unit.registry.fake_exports import make_workspace, registration, write_export

GRAPH = """\
stages:
  prepare:
    cmd: python -c "import pathlib; p = pathlib.Path('data/prepare'); (p / 'deep').mkdir(parents=True);
      (p / 'a.tar').write_text('a'); (p / 'deep' / '图.tar').write_text('b')"
    deps: [source]
    params: [prepare, runtime.seed]
    outs: [data/prepare]
  train:
    cmd: python -c "import pathlib; p = pathlib.Path('data/train.bin'); p.write_bytes(bytes(100))"
    deps: [data/prepare]
    params: [train.lr]
    outs: [data/train.bin]
  aside:
    cmd: python -c "import pathlib; pathlib.Path('data/aside.bin').write_bytes(b'x')"
    deps: [source]
    outs: [data/aside.bin]
"""
PARAMS = "prepare: {splits: [0.8, 0.2], unused: null}\ntrain: {lr: 1e-4}\nruntime: {seed: 1}\n"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reproduced")
    (root / "source" / "images").mkdir(parents=True)
    (root / "source" / "images" / "1.png").write_bytes(b"1")
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text(PARAMS)
    program = Path(sys.executable).parent
    environment = os.environ | {
        "DO_NOT_TRACK": "1",
        "DVC_NO_ANALYTICS": "1",
        "PATH": f"{program}{os.pathsep}{os.environ['PATH']}",
    }
    for arguments in (["init", "--no-scm", "-q"], ["repro", "-q"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, env=environment, check=True)
    return root


@pytest.fixture
def workspace(reproduced: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "workspace"
    shutil.copytree(reproduced, folder)
    return make_workspace(folder, monkeypatch)


def record() -> lineage.Record:
    return lineage.build_record("e" * 64, [Path("data/train.bin")])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # DVC links its cache
    path.write_bytes(content)


def test_record_holds_the_stages_that_the_output_comes_from(workspace: Path) -> None:
    assert record()["order"] == ["prepare", "train"]
    assert record()["stages"]["train"]["params"] == {"params.yaml": {"train.lr": 0.0001}}


def test_untouched_workspace_verifies(workspace: Path) -> None:
    assert lineage.verify(record()) == []


@pytest.mark.parametrize(
    "name",
    [
        "data/train.bin",
        "data/prepare/a.tar",
        "data/prepare/deep/图.tar",
        "source/images/1.png",
        "data/aside.bin",  # of a stage that the version does not come from
    ],
)
def test_one_flipped_bit_is_found_and_its_file_named(workspace: Path, name: str) -> None:
    kept = record()
    flip(Path(name))
    assert [difference.path for difference in lineage.verify(kept)] == [name]


def test_file_inside_a_folder_is_named_without_dvcs_cache(workspace: Path) -> None:
    shutil.rmtree(workspace / ".dvc" / "cache")
    kept = record()
    flip(Path("data/prepare/a.tar"))
    assert [difference.path for difference in lineage.verify(kept)] == ["data/prepare/a.tar"]


def test_missing_and_added_files_are_named(workspace: Path) -> None:
    kept = record()
    Path("data/train.bin").unlink()
    Path("data/prepare/a.tar").unlink()
    Path("data/prepare/new.tar").write_text("n")
    found = {difference.path: difference.reason for difference in lineage.verify(kept)}
    assert set(found) == {"data/train.bin", "data/prepare/a.tar", "data/prepare/new.tar"}
    assert "is missing" in found["data/train.bin"]


def test_lock_that_states_another_hash_is_found(workspace: Path) -> None:
    kept = record()
    lock = Path("dvc.lock").read_text()
    md5 = kept["stages"]["train"]["outs"][0]["md5"]
    Path("dvc.lock").write_text(lock.replace(md5, "0" * 32))
    assert [difference.path for difference in lineage.verify(kept)] == ["dvc.lock: train: data/train.bin"]


def test_changed_parameter_is_named(workspace: Path) -> None:
    kept = record()
    Path("params.yaml").write_text(PARAMS.replace("1e-4", "2e-4"))
    assert [difference.path for difference in lineage.verify(kept)] == ["params.yaml: train.lr"]


def test_stage_gone_from_the_lock_is_found(workspace: Path) -> None:
    kept = record()
    Path("dvc.lock").unlink()
    assert {difference.path for difference in lineage.verify(kept)} == {
        "dvc.lock: prepare",
        "dvc.lock: train",
    }


def test_record_without_dvc_does_not_verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lineage.verify(record())


def test_record_comes_back_from_the_registry_and_changes_are_seen(workspace: Path) -> None:
    made = register_export("colours", write_export(workspace / "export"), registration())
    lineage.store_record(made, record())
    made = versions.get("colours", 1)
    assert lineage.load_record(made) == record()
    (kept,) = (workspace / "mlartifacts").rglob("lineage.json")
    kept.write_text(kept.read_text().replace("train", "brain"))
    with pytest.raises(RegistryError, match="not the one that was registered"):
        lineage.load_record(made)


def test_stage_run_is_found_by_the_hash_of_its_output(workspace: Path) -> None:
    client = versions.connect()
    experiment = versions.experiment_id(client)
    kept = record()
    md5 = kept["stages"]["train"]["outs"][0]["md5"]
    client.create_run(experiment, tags={"polyweft.stage": "train", "polyweft.out.data/train.bin": "0" * 32})
    right = client.create_run(
        experiment, tags={"polyweft.stage": "train", "polyweft.out.data/train.bin": md5}
    )
    assert lineage.find_runs(kept) == {"prepare": None, "train": right.info.run_id}
