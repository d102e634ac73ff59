"""What stands between DVC and the workers: the key of checkpoints, starting again, the reason of a death."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyweft.io import write_json
from polyweft.training import memory
from stages import train
from stages.train import _key, _launch_until_it_fits, _reason
from tests import small


def _sections(**train: Any) -> dict[str, dict[str, Any]]:
    model = {"encoders": {"image": {"source": "weights/vit", "note": "x" * 300}}}
    return {"train": {"init_from": None, "lr": 0.1, **train}, "model": model, "runtime": {"seed": 1}}


def test_the_key_follows_every_folder_of_weights_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    prepared = tmp_path / "prepared"
    for folder in (prepared, tmp_path / "weights/vit", tmp_path / "champion", tmp_path / "teacher"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    sections = _sections(init_from="champion", distill={"teacher": "teacher"})
    keys = [_key(sections, prepared)]
    assert _key(sections, prepared) == keys[0]
    for folder in ("weights/vit", "champion", "teacher", "prepared"):
        (tmp_path / folder / "model.safetensors").write_bytes(b"other")
        keys.append(_key(sections, prepared))
    keys.append(_key(_sections(init_from="champion", lr=0.2), prepared))
    assert len(set(keys)) == len(keys)


def test_a_worker_that_died_without_a_word_is_named_by_what_it_read(tmp_path: Path) -> None:
    (tmp_path / "agent-0.log").write_text("one\nSegmentation fault\n")
    (tmp_path / "reading-1.txt").write_bytes(b"row-17".ljust(256))
    said = _reason(tmp_path, -11)
    assert "a worker died reading row-17. Run `dvc repro` to go on" in said
    assert said.endswith("Segmentation fault")


def test_training_is_started_again_as_long_as_its_workers_ask_for_fewer_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int | None] = []

    def launch(spec: Path, **how: Any) -> int:
        before = memory.chosen_micro_batch(tmp_path, 8)
        seen.append(before)
        assert not (tmp_path / "error.json").exists(), "the message of the start before"
        if before is not None and before > 2:
            write_json(tmp_path / memory.FILE, {"micro_batch": before // 2})
            write_json(tmp_path / "error.json", {"message": "memory ran out"})
            return 1
        return 0

    monkeypatch.setattr(train, "launch", launch)
    assert _launch_until_it_fits(tmp_path, small.train_params(micro_batch=8), threads=1) == 0
    assert seen == [8, 4, 2]


def test_training_that_fails_without_asking_for_less_is_not_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Path] = []

    def launch(spec: Path, **how: Any) -> int:
        starts.append(spec)
        return 3

    monkeypatch.setattr(train, "launch", launch)
    assert _launch_until_it_fits(tmp_path, small.train_params(), threads=1) == 3
    assert len(starts) == 1
