"""Choosing among models: a search over parameters, and models of several files on the same data."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from clones import Clone
from ruamel.yaml import YAML

pytestmark = pytest.mark.slow

SWEEP = """
trials: 2
stage: train
target: validation_score
direction: maximize
space:
  train.lr: {low: 1e-3, high: 5e-3, log: true}
  train.epochs: {choices: [2]}
"""


@pytest.fixture
def put_back(ran: Clone) -> Iterator[Clone]:
    """The clone that other tests share, as it was before, whatever the test did."""
    yield ran
    ran.run("git", "checkout", "-q", ".")
    ran.run("git", "clean", "-qfd")
    ran.run("dvc", "checkout", "-q")
    shutil.rmtree(ran.folder / "reports/html/compare", ignore_errors=True)


def test_a_sweep_names_the_best_trial_which_dvc_takes_over(put_back: Clone) -> None:
    ran = put_back
    before, lock = (ran.folder / "params.yaml").read_bytes(), ran.lock()
    (ran.folder / "sweep.yaml").write_text(SWEEP)
    both = ran.run("python", "-m", "flows.sweep", "--file", "sweep.yaml")
    assert "Error" not in both, "the server has every line before it is stopped"
    rows = re.findall(r"^(sweep-\d)  +(0\.\d+) +(\S+) +2$", both, re.MULTILINE)
    assert {name for name, _, _ in rows} == {"sweep-0", "sweep-1"}
    assert rows == sorted(rows, key=lambda row: -float(row[1]))
    assert f"best: {rows[0][0]}    take it over: dvc exp apply {rows[0][0]}" in both
    assert (ran.folder / "params.yaml").read_bytes() == before, "trials run beside the workspace"
    assert ran.lock() == lock
    ran.run("dvc", "exp", "apply", rows[0][0])
    params = YAML(typ="safe").load((ran.folder / "params.yaml").read_text())
    report = json.loads((ran.folder / "data/reports/train.json").read_text())
    assert params["train"]["lr"] == pytest.approx(float(rows[0][2]), rel=1e-3)
    assert report["validation_score"] == pytest.approx(float(rows[0][1]), abs=1e-4)


def test_models_are_set_side_by_side_and_the_workspace_stays_as_it_was(put_back: Clone) -> None:
    ran = put_back
    lock = ran.lock()
    yaml = YAML()
    content = yaml.load((ran.folder / "params.yaml").read_text())
    content["train"]["epochs"] = 2
    image_only = {"image": content["model"]["encoders"]["image"]}
    fused = {
        "family": "fusion_classifier", "embedding_size": 0, "feature_size": 32, "encoders": image_only,
        "head": {**content["model"]["head"], "sees": ["image"], "fusion": "early"},
    }  # fmt: skip
    for name, model in (("towers", content["model"]), ("pixels", fused)):
        with (ran.folder / f"{name}.yaml").open("w") as handle:
            yaml.dump({**content, "model": model}, handle)
    said = ran.run("python", "-m", "flows.compare", "towers.yaml", "pixels.yaml")
    assert "page: reports/html/compare/index.html" in said
    table = (ran.folder / "reports/compare.md").read_text()
    head, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    found = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert set(found) == {"towers", "pixels"}
    for row in found.values():
        assert re.fullmatch(r"[01]\.\d{3} \[[01]\.\d{3}, [01]\.\d{3}\]", row["accuracy"])
        assert float(row["GFLOP"]) > 0
        assert float(row["latency ms"]) > 0
        assert float(row["s / epoch"]) > 0
    assert found["pixels"]["text to image R@10"] == "-", "a model without a joint space has no recall"
    parameters = {name: int(row["parameters"].replace(",", "")) for name, row in found.items()}
    assert parameters["pixels"] < parameters["towers"]
    assert "towers" in (ran.folder / "reports/html/compare/index.html").read_text()
    assert ran.lock() == lock
    assert ran.run("git", "status", "--porcelain", "--untracked-files=no") == ""


def test_a_file_that_is_not_there_is_one_message(ran: Clone) -> None:
    said = ran.run("python", "-m", "flows.compare", "nowhere.yaml", code=1)
    assert "compare: nowhere.yaml: no such file" in said
    assert "Traceback" not in said
