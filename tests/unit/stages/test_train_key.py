"""A checkpoint goes on only with the settings, data and weights that it began with; a death is explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.train import _key, _reason


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
