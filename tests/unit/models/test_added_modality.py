"""A modality is one file and one line: it is stored, trained, evaluated and exported like the others."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from polyweft import modalities
from polyweft.data import shards
from polyweft.evaluation.evaluator import EvaluateParams, evaluate_split
from polyweft.io import read_table, write_json
from polyweft.models.build import load_trained, save_trained
from polyweft.progress import Bar
from polyweft.training.distributed import ALONE
from polyweft.training.learner import Surroundings
from polyweft.training.loop import fit
from tests import small
from tests.unit.models import table_stages

ROOT = Path(__file__).parents[3]
TABLE = Path(__file__).with_name("table_modality.py")
SECTION = {
    "family": "fusion_classifier",
    "embedding_size": 0,
    "feature_size": 16,
    "encoders": {"image": small.IMAGE, "table": {"columns": 3, "width": 16}},
    "head": {**small.HEAD, "sees": ["image", "table"], "fusion": "gated"},
}


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The line, and rows that have the modality."""
    here = "tests.unit.models.table_modality"
    line = modalities.Modality(here, here, frozenset({"csv"}))
    monkeypatch.setitem(modalities.MODALITIES, "table", line)
    # What imports the table's contents when it is loaded, and would find the line in the file.
    monkeypatch.setattr(shards, "MEDIA", (*modalities.MEDIA, "table"))
    monkeypatch.setitem(shards._KINDS, "csv", "table")
    folder = small.prepare(tmp_path / "prepared", train=40, others=16)
    content = shards.read_json(folder / "dataset.json")
    content["modalities"]["table"] = 72
    for split in ("train", "validation", "test"):
        rows = [_with_table(sample) for sample in shards.read_split(folder, split)]
        shards.write_split(folder, split, rows, shard_samples=16)
    write_json(folder / "dataset.json", content)
    return folder


def _with_table(sample: shards.Sample) -> shards.Sample:
    rng = np.random.default_rng([9, int(sample.id.split("-")[1])])
    numbers = [float(sample.class_index), *rng.normal(size=2)]
    media = {**sample.media, "table": ",".join(f"{number:.3f}" for number in numbers).encode()}
    return dataclasses.replace(sample, media=media, extensions={**sample.extensions, "table": "csv"})


def test_it_is_trained_evaluated_and_exported_like_the_others(prepared: Path, tmp_path: Path) -> None:
    from polyweft.export.graphs import describe, export_graphs

    torch.manual_seed(0)
    model, context = small.built(prepared, SECTION)
    with Bar("test", shown=False) as bar:
        result = fit(
            model, small.train_params(epochs=12, lr=1e-2), context.readers, small.arrays(prepared, context),
            small.arrays(prepared, context, "validation"),
            Surroundings(ALONE, tmp_path / "checkpoints", lambda metrics, step: None, bar), seed=1,
        )  # fmt: skip
    model.load_state_dict(result.weights)
    save_trained(tmp_path / "trained", model, small.model_params(SECTION), context)
    predictor = load_trained(tmp_path / "trained", threads=1)
    params = EvaluateParams(
        split="test", languages=None, caption_choice="all", bootstrap_samples=100, batch_size=16
    )
    samples = list(shards.read_split(prepared, "test"))
    metrics = evaluate_split(predictor, samples, params, seed=0).metrics
    assert metrics["accuracy_without_image"] >= 0.9  # the table alone tells the class
    export_graphs(predictor, describe(predictor, opset=20), tmp_path / "export")
    assert (tmp_path / "export" / "table.onnx").stat().st_size > 0


def test_the_data_stages_read_it_check_it_and_may_name_it(tmp_path: Path) -> None:
    program = [sys.executable, "-m", table_stages.__name__, str(tmp_path)]
    subprocess.run(program, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    aside = read_table(tmp_path / "validate" / "quarantine.parquet").to_pylist()
    assert [(entry["id"], entry["check"]) for entry in aside] == [
        (f"row-{table_stages.BROKEN}", "table_broken"),
        (f"row-{table_stages.WITHOUT}", "table_filled"),
    ]
    assert "could not convert" in aside[0]["reason"]
    twice = [f"row-{number}" for number in table_stages.TWICE]
    leaks = [
        {found["id"], found["other_id"]}
        for found in read_table(tmp_path / "align" / "findings.parquet").to_pylist()
        if found["check"] == "leaks"
    ]
    assert leaks == [set(twice)]
    dataset = shards.read_json(tmp_path / "prepare" / "dataset.json")
    assert dataset["modalities"]["table"] == table_stages.ROWS - 2


def test_the_guide_shows_the_whole_file() -> None:
    guide = (ROOT / "docs" / "guide" / "extending.md").read_text(encoding="utf-8")
    assert f"```python\n{TABLE.read_text(encoding='utf-8')}```" in guide


def test_its_reader_runs_without_torch_and_without_the_project(tmp_path: Path) -> None:
    program = (
        "import sys; import importlib.util as u; "
        f"s = u.spec_from_file_location('table', {str(TABLE)!r}); m = u.module_from_spec(s); "
        "s.loader.exec_module(m); print(m.Reader({'columns': 2}, None).read([b'1,2']).tolist()); "
        "assert 'torch' not in sys.modules and 'polyweft' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[[1.0, 2.0]]"
