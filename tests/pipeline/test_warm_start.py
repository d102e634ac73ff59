"""A run that starts from weights that exist takes them whole and says what it took."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import lone_train
import pytest

pytestmark = pytest.mark.slow


def test_a_champion_is_taken_over_tensor_by_tensor(tmp_path: Path) -> None:
    folder = lone_train.make(tmp_path / "run", processes=1, epochs=1)
    lone_train.finish(folder)
    trained = lone_train.outputs(folder)
    shutil.copytree(folder / "out", folder / "models" / "champion")

    # No epoch: what it starts from is what it leaves.
    lone_train.change(folder, {"train.init_from": "models/champion", "train.epochs": 0, "runtime.seed": 99})
    lone_train.finish(folder)
    assert lone_train.outputs(folder)["model.safetensors"] == trained["model.safetensors"]
    said = (folder / "output").read_text(encoding="utf-8")
    assert "every name: reports/init_from.json" in said
    listed = json.loads((folder / "reports" / "init_from.json").read_text(encoding="utf-8"))
    assert f"took {len(listed['loaded'])} of the model's {len(listed['loaded'])} tensors" in said
    assert listed["missing"] == listed["mismatched"] == listed["unexpected"] == []
