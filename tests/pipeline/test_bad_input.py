"""Training that cannot be done ends with exit code 1 and one message: what came, what fits, what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lone_train
import pytest

from tests import small

pytestmark = pytest.mark.slow

PATCHES_OF_5 = {
    **small.IMAGE,
    "tower": "vit",
    "vit": {"patch": 5, "width": 16, "layers": 1, "heads": 2, "pool": "mean"},
}
CUT = "train-00000.tar"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lone_train.make(tmp_path_factory.mktemp("bad_input") / "good")
    lone_train.change(folder, {"train.processes": 1})
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A folder in which training would run, for a test to spoil."""
    return Path(shutil.copytree(good, tmp_path / "run"))


def refusal(folder: Path) -> str:
    """The one line that the stage says."""
    code = lone_train.start(folder).wait(timeout=120)
    said = (folder / "output").read_text(encoding="utf-8").strip()
    assert code == 1, said
    assert said.startswith("train: ")
    assert len(said.splitlines()) == 1, said
    return said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.family": "clip"}, ["model.family", "'clip'", "dual_tower, fusion_classifier"]),
        ({"train.strategy": "horovod"}, ["train.strategy", "'horovod'", "'ddp' or 'fsdp'"]),
        (
            {"train.processes": 3, "train.batch_size": 2},
            ["train.batch_size 2", "3 processes", "choose at least one row for each"],
        ),
        (
            {"model.encoders.image": PATCHES_OF_5},
            ["model.encoders.image.vit.patch 5", "size 16", "choose a patch of 2, 4, 8"],
        ),
    ],
    ids=["family", "strategy", "fewer rows than processes", "patch"],
)
def test_a_setting_that_cannot_be_is_refused_in_one_message(
    folder: Path, settings: dict[str, Any], words: list[str]
) -> None:
    lone_train.change(folder, settings)
    said = refusal(folder)
    assert [word for word in words if word not in said] == [], said


def test_a_shard_that_was_cut_short_is_named_with_what_to_do(folder: Path) -> None:
    shard = folder / "prepared" / CUT
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    said = refusal(folder)
    for words in (str(shard.relative_to(folder)), "ends early", "dvc repro prepare"):
        assert words in said, said
    assert not (folder / "out" / "model.safetensors").exists(), "nothing is trained on the other shards"
