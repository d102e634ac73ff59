"""The stage on real shards and real, untrained models: its files, their bytes, and what bad input gets."""

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
from polyweft.data.shards import DATASET_FILE, write_split
from polyweft.errors import DataError
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.io import read_json, read_table, write_json
from polyweft.models.build import save_trained
from polyweft.report import Report
from stages import evaluate
from tests import small
from tests.unit.evaluation.table_model import params

RUNTIME = RuntimeParams(seed=7, threads=1)
SEES_ALL: dict[str, Any] = {
    **small.DUAL_TOWER,
    "head": {
        **small.HEAD,
        "missing": "impute",
        "tasks": {"single_label": 1.0, "multi_label": 1.0, "regression": 1.0},
    },
}
PLAIN: dict[str, Any] = {**small.DUAL_TOWER, "head": None}


def prepare(folder: Path) -> Path:
    small.prepare(folder, train=24, others=0)
    made = [replace(small.sample(100 + i), leak=i % 7 == 0) for i in range(24)]
    made += [small.sample(200, without=("image",)), small.sample(201, without=("text",))]
    content = read_json(folder / DATASET_FILE)
    content["shards"]["test"] = write_split(folder, "test", made, shard_samples=10)
    content["splits"]["test"], content["splits"]["train"] = len(made), 0
    content["shards"]["train"] = []
    del content["shards"]["validation"]
    write_json(folder / DATASET_FILE, content)
    return folder


def train(folder: Path, prepared: Path, section: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    for name in ("text.json", "tokenizer.json"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    torch.manual_seed(0)
    module, context = small.built(prepared, section)
    save_trained(folder, module, small.model_params(section), context)
    return folder


Evaluate = Callable[..., Report]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Evaluate:
    monkeypatch.chdir(tmp_path)
    prepared = prepare(tmp_path / "prepare")
    trained = {
        "all": train(tmp_path / "train", prepared, SEES_ALL),
        "plain": train(tmp_path / "plain", prepared, PLAIN),
    }

    def go(out: str = "out", *, model: str = "all", settings: EvaluateParams | None = None) -> Report:
        return evaluate.run(
            settings or params(), RUNTIME, prepared=prepared, trained=trained[model], out=tmp_path / out
        )

    return go


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def test_the_report_holds_every_metric_flat_with_its_interval(run: Evaluate) -> None:
    facts = run().facts
    names = ["accuracy", "macro_f1", "roc_auc", "label_micro_f1", "label_map"]
    names += ["mean_average_precision", "ndcg_at_10", "mrr"]
    names += [f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    for name in names:
        for suffix in ("", "_without_leaks"):
            value = facts[name + suffix]
            assert 0 <= facts[f"{name}{suffix}_low"] <= value <= facts[f"{name}{suffix}_high"] <= 1
    assert facts["rmse"] >= facts["mae"] > 0
    assert facts["samples"] == 26
    assert (facts["retrieval_images"], facts["samples_without_image"]) == (24, 1)
    assert facts["split"] == "test"
    json.dumps(facts, allow_nan=False)


def test_two_runs_write_the_same_bytes(run: Evaluate, tmp_path: Path) -> None:
    first, second = run("one"), run("two")
    assert first.facts == second.facts
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["confusion.csv", "missing.csv", "per_class.csv", "predictions.parquet", "recall.csv"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_tables_agree_with_the_report(run: Evaluate, tmp_path: Path) -> None:
    facts = run().facts
    pairs = [(line["actual"], line["predicted"]) for line in lines(tmp_path / "out/confusion.csv")]
    assert len(pairs) == facts["classified_samples"] == 26
    assert np.mean([a == p for a, p in pairs]) == pytest.approx(facts["accuracy"], abs=1e-6)
    curve = {(line["direction"], int(line["k"])): line for line in lines(tmp_path / "out/recall.csv")}
    assert float(curve["image_to_text", 5]["recall"]) == facts["image_to_text_recall_at_5"]
    classes = lines(tmp_path / "out/per_class.csv")
    assert [line["class"] for line in classes] == small.CLASSES + small.LABELS
    assert np.mean([float(line["f1"]) for line in classes[:2]]) == pytest.approx(facts["macro_f1"], abs=1e-5)
    table = read_table(tmp_path / "out/predictions.parquet").to_pylist()
    assert [line["id"] for line in table][-2:] == ["row-200", "row-201"]
    assert table[-2]["image_to_text_rank"] is None
    assert table[-2]["predicted"] in small.CLASSES
    assert set(table[0]["labels"]) <= set(small.LABELS)
    errors = [abs(line["value"] - line["target"]) for line in table]
    assert np.mean(errors) == pytest.approx(facts["mae"], abs=1e-5)


def test_each_modality_is_taken_away_over_the_rows_that_have_another(run: Evaluate, tmp_path: Path) -> None:
    facts = run().facts
    table = lines(tmp_path / "out/missing.csv")
    assert {line["modality"] for line in table} == {"image", "text"}
    assert {line["metric"] for line in table} == {"accuracy", "label_micro_f1", "r2"}
    assert {line["samples"] for line in table} == {"24"}
    for line in table:
        assert facts[f"{line['metric']}_{line['presence']}"] == float(line["value"])


def test_the_page_goes_to_the_untracked_folder(run: Evaluate, tmp_path: Path) -> None:
    assert run().pages == [Path("reports/html/evaluate/index.html")]
    html = (tmp_path / "reports/html/evaluate/index.html").read_text(encoding="utf-8")
    for title in ("Recall@K", "Without a modality", "Labels", "Predicted over actual numbers"):
        assert f"<h2>{title}</h2>" in html


def test_a_model_without_a_head_leaves_accuracy_out_and_the_tables_empty(
    run: Evaluate, tmp_path: Path
) -> None:
    facts = run(model="plain").facts
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
