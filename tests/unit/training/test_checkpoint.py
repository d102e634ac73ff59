"""A checkpoint is whole, or it is passed over."""

from __future__ import annotations

from pathlib import Path

import torch

from polyweft.training import checkpoint


def test_the_newest_of_the_kept_checkpoints_comes_back(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        checkpoint.save(tmp_path, step, {"w": torch.full((3,), float(step))}, {"note": step})
    tensors, state, warnings = checkpoint.latest(tmp_path) or ({}, {}, [])
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
    tensors, state, warnings = checkpoint.latest(tmp_path) or ({}, {}, [])
    assert state["step"] == 5
    assert "step-000000010 is damaged" in warnings[0]
    assert torch.equal(tensors["w"], torch.full((3,), 5.0))


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / ".step-000000005").mkdir()
    (tmp_path / ".step-000000005" / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.latest(tmp_path) is None
