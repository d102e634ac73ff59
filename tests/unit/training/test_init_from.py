"""Weights that exist are taken where they fit, and every difference is listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from polyweft.errors import DataError
from polyweft.models.build import save_trained
from polyweft.training.init_from import load_into, other_tokens
from tests import small


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("init") / "prepared")


def built(prepared: Path, seed: int, **changes: Any) -> nn.Module:
    torch.manual_seed(seed)
    return small.built(prepared, {**small.DUAL_TOWER, **changes})[0]


def test_a_trained_folder_of_the_same_model_is_taken_whole(prepared: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    champion, context = small.built(prepared)
    save_trained(tmp_path / "trained", champion, small.model_params(), context)
    model = built(prepared, 2)
    loaded = load_into(model, tmp_path / "trained")
    assert (loaded.missing, loaded.mismatched, loaded.unexpected) == ([], [], [])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, champion.state_dict()[name]), name
    assert "\n" not in str(loaded)


def test_a_vocabulary_that_numbers_words_otherwise_is_said(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((prepared / "tokenizer.json").read_bytes())
    assert other_tokens(tmp_path, prepared) is None
    assert other_tokens(tmp_path / "old.safetensors", prepared) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "prepare.tokenizer: folder" in str(other_tokens(tmp_path, prepared))


def test_what_fits_is_taken_and_every_difference_is_listed(prepared: Path, tmp_path: Path) -> None:
    champion, model = built(prepared, 1), built(prepared, 2, embedding_size=16)
    save_file(champion.state_dict() | {"relic": torch.ones(2)}, tmp_path / "old.safetensors")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.register_parameter("newcomer", nn.Parameter(torch.zeros(3)))
    loaded = load_into(model, tmp_path / "old.safetensors")
    assert loaded.unexpected == ["relic"]
    assert loaded.missing == ["newcomer"]
    mismatched = {name for name, _, _ in loaded.mismatched}
    assert mismatched == {"towers.image.projection.weight", "towers.text.projection.weight"}
    assert ("towers.image.projection.weight", [16, 16], [8, 16]) in loaded.mismatched
    for name, tensor in before.items():
        expected = tensor if name in mismatched else champion.state_dict()[name]
        assert torch.equal(model.state_dict()[name], expected), name
    text = str(loaded)
    assert "1 not used: relic" in text
    assert "1 missing there, left as they were: newcomer" in text
    assert len(text.splitlines()) == 4
    assert max(map(len, text.splitlines())) < 400


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_become_fp32(prepared: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    champion = built(prepared, 1)
    save_file({n: t.to(dtype) for n, t in champion.state_dict().items()}, tmp_path / "half.safetensors")
    model = built(prepared, 2)
    load_into(model, tmp_path / "half.safetensors")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_transformers_folders_fill_the_parts_that_are_theirs(prepared: Path, tmp_path: Path) -> None:
    from tests.unit.models.test_huggingface import DUAL, dual_encoder, tower

    torch.manual_seed(1)
    source: Any = small.built(prepared, DUAL)[0]
    torch.manual_seed(2)
    model: Any = small.built(prepared, DUAL)[0]
    tower(source, "text").encoder.model.save_pretrained(tmp_path / "bert")
    loaded = load_into(model, tmp_path / "bert")
    assert loaded.unexpected == []
    assert all(name.startswith("towers.text.encoder.model.") for name in loaded.loaded)
    own = {name for name in model.state_dict() if name.startswith("towers.text.encoder.model.")}
    assert set(loaded.loaded) == own
    dual_encoder(source).save_pretrained(tmp_path / "dual")
    loaded = load_into(model, tmp_path / "dual")
    for name, tensor in source.state_dict().items():
        if ".encoder.model." in name:
            assert name in loaded.loaded
            assert torch.equal(model.state_dict()[name], tensor), name


def test_what_cannot_be_read_or_does_not_fit_is_refused(prepared: Path, tmp_path: Path) -> None:
    model = built(prepared, 1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "stranger.safetensors")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for name, message in (
        ("nowhere", "is missing"),
        ("empty", "is missing"),
        ("broken.safetensors", "not a readable safetensors file"),
        ("stranger.safetensors", "none fits the model"),
        ("pickled", "pickled weights"),
        ("pickled/pytorch_model.bin", "pickled weights"),
    ):
        with pytest.raises(DataError, match=message):
            load_into(model, tmp_path / name)
