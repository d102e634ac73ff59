"""A checkpoint is whole, or it is passed over."""

from __future__ import annotations

import re
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyweft.errors import DataError, TrainingError
from polyweft.training import checkpoint


def _newest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any], list[str]]:
    warnings: list[str] = []
    found = checkpoint.newest(folder, warn=warnings.append)
    assert found is not None
    return found.part(""), found.state, warnings


def test_the_newest_of_the_kept_checkpoints_comes_back(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {"note": step})
    tensors, state, warnings = _newest(tmp_path)
    assert (state["step"], state["note"], warnings) == (15, 15, [])
    assert torch.equal(tensors["w"], torch.full((3,), 15.0))
    assert [place.name for place in sorted(tmp_path.iterdir())] == ["step-000000010", "step-000000015"]


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before_with_a_warning(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {})
    damaged = tmp_path / "step-000000010" / "tensors.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(bytes(content))
    tensors, state, warnings = _newest(tmp_path)
    assert state["step"] == 5
    assert len(warnings) == 1
    assert re.match(r"checkpoint step-000000010 is damaged, .*step-000000005 is used", warnings[0])
    assert torch.equal(tensors["w"], torch.full((3,), 5.0))


def test_where_no_checkpoint_is_whole_it_is_said_that_training_begins_anew(tmp_path: Path) -> None:
    for step in (5, 10):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {})
        (tmp_path / f"step-{step:09d}" / "tensors.safetensors").write_bytes(b"half")
    warnings: list[str] = []
    assert checkpoint.newest(tmp_path, warn=warnings.append) is None
    assert len(warnings) == 2
    assert all("none before it is whole: training begins anew" in warning for warning in warnings)


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".step-000000005").mkdir()
    (tmp_path / ".step-000000005" / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) is None


def test_a_checkpoint_of_another_model_is_refused_with_its_differences(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"model.a": torch.ones(2, 3), "model.b": torch.ones(1)}, {})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    with pytest.raises(TrainingError) as refused:
        found.restore({"a": torch.ones(3, 2), "c": torch.ones(1)}, "model.")
    for difference in ("missing c", "unexpected b", "a of shape [2, 3], expected [3, 2]", "another model"):
        assert difference in str(refused.value)


def test_restoring_is_in_place_and_keeps_the_memory_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    checkpoint.save(tmp_path, 1, {"w": saved, "scale": torch.tensor(2.5), "none": torch.empty(0)}, {})
    targets = {"w": torch.zeros_like(saved), "scale": torch.zeros(()), "none": torch.empty(0)}
    place = targets["w"].data_ptr()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    found.restore(targets, "")
    assert torch.equal(targets["w"], saved)
    assert targets["w"].stride() == saved.stride()
    assert targets["w"].data_ptr() == place
    assert float(targets["scale"]) == 2.5


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    checkpoint.save(tmp_path, 1, {"one": weight, "other": weight}, {})
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert torch.equal(found.read("one"), found.read("other"))


def test_nothing_but_the_file_formats_named_is_written(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"w": torch.ones(3)}, {"note": "x"})
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "state.json",
        "tensors.safetensors",
    }


def test_a_disk_without_room_says_so_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"w": torch.ones(3)}, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match="Free some space"):
            checkpoint.save(tmp_path, 2, {"w": torch.ones(30_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 1
