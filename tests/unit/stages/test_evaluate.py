"""The stage on real shards and a real, untrained model: its files, their bytes, and what bad input gets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyweft.config import RuntimeParams
from polyweft.data.shards import Sample, write_split
from polyweft.data.tokenizer_training import write_tokenizer
from polyweft.errors import DataError
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.io import read_json, read_table, write_json
from polyweft.models.build import ModelParams, build_model, save_trained
from polyweft.report import Report
from stages import evaluate
from tests.unit.evaluation.table_model import params, sample

CLASSES = ["ant", "bee", "cow"]
RUNTIME = RuntimeParams(seed=7, threads=1)
MODEL = ModelParams.model_validate(
    {
        "family": "dual_tower",
        "embedding_size": 16,
        "feature_size": 16,
        "image": {
            "tower": "cnn",
            "size": 16,
            "resize": "squash",
            "normalization": "half",
            "background": [255, 255, 255],
            "max_pixels": 10_000,
            "cnn": {"channels": [8, 8], "blocks": [1, 1]},
            "vit": {"patch": 8, "width": 16, "layers": 1, "heads": 2, "pool": "mean"},
        },
        "text": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0},
        "head": {"sees": "both", "hidden": 16, "dropout": 0.0},
    }
)


def prepare(folder: Path, samples: list[Sample]) -> Path:
    folder.mkdir(parents=True)
    shards = {"train": [], "test": write_split(folder, "test", samples, shard_samples=10)}
    content = {"classes": CLASSES, "shards": shards, "splits": {"train": 0, "test": len(samples)}}
    write_json(folder / "dataset.json", {**content, "modalities": {}, "languages": ["en"]})
    return folder


def train(folder: Path, classes: list[str]) -> Path:
    folder.mkdir(parents=True)
    choice: dict[str, Any] = {"kind": "hash", "vocabulary_size": 512, "max_tokens": 16, "lowercase": True}
    write_tokenizer(folder, ["word"], clip_vocabulary=None, **choice)
    text = read_json(folder / "text.json")
    torch.manual_seed(0)
    save_trained(
        folder, build_model(MODEL, classes=len(classes), text=text), MODEL, classes=classes, text=text
    )
    return folder


def rows() -> list[Sample]:
    made = [
        sample(i, i, [f"word {i % 20}", f"字 {i}"], label=CLASSES[i % 3], classes=CLASSES, leak=i % 7 == 0)
        for i in range(24)
    ]
    return [*made, replace(made[0], id="no image", image=None), replace(made[1], id="no text", captions=[])]


Evaluate = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(tmp_path / "prepare", rows())
    trained = {True: train(tmp_path / "train", CLASSES), False: train(tmp_path / "plain", [])}

    def go(out: str = "out", *, classes: bool = True, settings: EvaluateParams | None = None) -> Report:
        return evaluate.run(
            settings or params(), RUNTIME, prepared=prepared, trained=trained[classes], out=tmp_path / out
        )

    return go


def test_the_report_holds_every_metric_flat_with_its_interval(run: Evaluate) -> None:
    facts = run().facts
    names = ["accuracy", "macro_f1", "mean_average_precision", "ndcg_at_10", "mrr"]
    names += [f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    for name in names:
        for suffix in ("", "_without_leaks"):
            value = facts[name + suffix]
            assert 0 <= facts[f"{name}{suffix}_low"] <= value <= facts[f"{name}{suffix}_high"] <= 1
    assert facts["samples"] == 26
    assert (facts["retrieval_images"], facts["samples_without_image"]) == (24, 1)
    assert facts["split"] == "test"
    json.dumps(facts, allow_nan=False)


def test_two_runs_write_the_same_bytes(run: Evaluate, tmp_path: Path) -> None:
    first, second = run("one"), run("two")
    assert first.facts == second.facts
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["confusion.csv", "per_class.csv", "predictions.parquet", "recall.csv"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_tables_agree_with_the_report(run: Evaluate, tmp_path: Path) -> None:
    facts = run().facts
    with (tmp_path / "out/confusion.csv").open(encoding="utf-8") as handle:
        pairs = [(line["actual"], line["predicted"]) for line in csv.DictReader(handle)]
    assert len(pairs) == facts["classified_samples"] == 26
    assert np.mean([a == p for a, p in pairs]) == pytest.approx(facts["accuracy"], abs=1e-6)
    with (tmp_path / "out/recall.csv").open(encoding="utf-8") as handle:
        curve = {(line["direction"], int(line["k"])): line for line in csv.DictReader(handle)}
    assert float(curve["image_to_text", 5]["recall"]) == facts["image_to_text_recall_at_5"]
    with (tmp_path / "out/per_class.csv").open(encoding="utf-8") as handle:
        classes = list(csv.DictReader(handle))
    assert [line["class"] for line in classes] == CLASSES
    assert np.mean([float(line["f1"]) for line in classes]) == pytest.approx(facts["macro_f1"], abs=1e-5)
    table = read_table(tmp_path / "out/predictions.parquet").to_pylist()
    assert [line["id"] for line in table][-2:] == ["no image", "no text"]
    assert table[-2]["image_to_text_rank"] is None
    assert table[-2]["predicted"] in CLASSES


def test_the_page_goes_to_the_untracked_folder(run: Evaluate, tmp_path: Path) -> None:
    assert run().pages == [Path("reports/html/evaluate/index.html")]
    assert "Recall@K" in (tmp_path / "reports/html/evaluate/index.html").read_text(encoding="utf-8")


def test_a_model_without_classes_leaves_accuracy_out_and_the_tables_empty(
    run: Evaluate, tmp_path: Path
) -> None:
    facts = run(classes=False).facts
    assert "accuracy" not in facts
    assert facts["classified_samples"] == 0
    assert (tmp_path / "out/confusion.csv").read_text() == "actual,predicted\n"
    assert "mrr" in facts


def test_a_split_without_rows_or_an_unknown_one_says_what_to_do(run: Evaluate) -> None:
    with pytest.raises(DataError, match=r"split 'train' has no rows.*evaluate\.split"):
        run(settings=params(split="train"))
    with pytest.raises(DataError, match=r"no split 'validation'"):
        run(settings=params(split="validation"))


def test_a_model_without_its_tokenizer_is_an_error_that_names_the_file(run: Evaluate, tmp_path: Path) -> None:
    (tmp_path / "train/text.json").unlink()
    with pytest.raises(DataError, match=r"text\.json"):
        run()
