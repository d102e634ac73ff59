"""Real data pass through the whole graph: images, texts and clips, some of them missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clones import TINY, Clone

pytestmark = pytest.mark.slow

QUICK = {
    name: value
    for name, value in TINY.items()
    if name.startswith(("evaluate.", "export.", "model.head.hidden"))
}
QUICK["register.minimum"] = {"accuracy": 0.2}


def test_digits_with_missing_texts_and_clips_pass_from_source_to_triton(
    shared_data: Path, folder: Path
) -> None:
    (folder.parent / "shared").symlink_to(shared_data.parent)
    clone = Clone(folder, {**QUICK, "train.epochs": 4}, base="examples/digits.yaml")
    clone.run("dvc", "repro")
    ingest, align, evaluate = (
        json.loads((folder / "data" / "reports" / f"{stage}.json").read_text(encoding="utf-8"))
        for stage in ("ingest", "align", "evaluate")
    )
    assert ingest["rows"] == 1500
    assert ingest["rows_with_text"] < 1500
    assert ingest["rows_with_audio"] < 1500
    assert align["label_from_text_lookup"] > 0.9
    assert align["findings_leaks"] > 0
    assert evaluate["accuracy"] > 0.5
    assert "Data and pipelines are up to date" in clone.run("dvc", "status")
