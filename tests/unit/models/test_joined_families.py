"""Families give one loss and one gradient, in however many processes and micro-batches; and they learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from polyweft.errors import ConfigError
from polyweft.models.build import build_model
from polyweft.models.family import BuildContext
from polyweft.models.fusion import FUSIONS
from tests.unit.models.joined_families import CASES, HEAD, MODALITIES, batch, build, outcome, params_of

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_processes_and_micro_batches_change_neither_losses_nor_gradients(tmp_path: Path) -> None:
    """2 processes and 1, accumulation 1 and 4: within 1e-6."""
    command = [sys.executable, "-m", "tests.unit.models.joined_families"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], cwd=ROOT, env=environment)
        for rank in range(2)
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one, accumulated = (outcome(tmp_path, 0, 1, count) for count in (1, 4))
    torch.set_num_threads(threads)
    assert [worker.wait(timeout=180) for worker in workers] == [0, 0]
    results = {
        "1 process, 4 micro-batches": accumulated,
        "2 processes": load_file(tmp_path / "out-1.safetensors"),
        "2 processes, 4 micro-batches": load_file(tmp_path / "out-4.safetensors"),
    }
    assert {"trimodal infonce: contrastive", "trimodal siglip: d scale.bias"} <= set(one)
    for way, found in results.items():
        assert set(found) == set(one)
        for name, expected in one.items():
            difference = (found[name] - expected).abs().max()
            assert difference <= 1e-6, f"{way}: {name} differs by {difference}"


@pytest.mark.parametrize("case", list(CASES))
def test_a_family_learns_a_batch_by_heart(tmp_path: Path, case: str) -> None:
    model, _ = build(tmp_path, **CASES[case])
    work = batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    first: dict[str, float] = {}
    for _ in range(25):
        losses = model.losses(model(work.inputs, work.present_BM), work.targets)
        first = first or {name: float(loss.detach()) for name, loss in losses.items()}
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        model.after_step()
    for name, loss in losses.items():
        assert loss < first[name], name
    assert all(isinstance(value, float) for value in model.facts().values())


@pytest.mark.parametrize("case", list(CASES))
def test_a_rows_outputs_depend_on_that_row_alone(tmp_path: Path, case: str) -> None:
    model, _ = build(tmp_path, **CASES[case])
    whole, part = batch(), batch(slice(5, 8))
    outputs, alone = (model(work.inputs, work.present_BM) for work in (whole, part))
    assert set(outputs) == set(alone)
    for name, value in outputs.items():
        assert len(value) == 16, name
        torch.testing.assert_close(alone[name], value[5:8], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_classifier_takes_any_fusion_and_any_one_modality(tmp_path: Path, fusion: str) -> None:
    head = HEAD | {"fusion": fusion, "missing": "learned"}
    model, _ = build(tmp_path, family="fusion_classifier", embedding_size=0, head=head)
    work = batch()
    for column in range(3):
        present = torch.zeros(16, 3)
        present[:, column] = 1
        outputs = model.eval()(work.inputs, present)
        assert outputs["head.single_label"].isfinite().all()
    embedding, _features = model.towers["image"](work.inputs["image"])
    assert embedding.shape == (16, 0)


def test_every_pair_of_modalities_shares_one_space(tmp_path: Path) -> None:
    model, _ = build(tmp_path, **CASES["trimodal siglip"])
    outputs = model(batch().inputs, batch().present_BM)
    for name in MODALITIES:
        torch.testing.assert_close(outputs[f"{name}_embedding"].norm(dim=1), torch.ones(16))


def test_without_classes_the_classifier_is_refused_and_trimodal_has_no_head(tmp_path: Path) -> None:
    _, context = build(tmp_path, **CASES["fusion_classifier"])
    bare = BuildContext([], [], context.readers, context.text)
    head: dict[str, Any] = {"head": HEAD | {"tasks": {"single_label": 1.0}}}
    with pytest.raises(ConfigError, match=r"the data have 0 classes"):
        build_model(params_of(**CASES["fusion_classifier"] | head), bare)
    assert build_model(params_of(**CASES["trimodal infonce"] | head), bare).head is None


def test_trimodal_needs_two_modalities_and_a_space() -> None:
    with pytest.raises(ValidationError, match="two modalities or more"):
        params_of(family="trimodal", contrast={"loss": "siglip"}, embedding_size=0)
