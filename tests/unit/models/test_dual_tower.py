"""Towers embed on the unit sphere, ignore padding, keep what is absent out of heads, and come back whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyweft.errors import ConfigError, DataError
from polyweft.models.build import load_trained, save_trained
from polyweft.models.family import BuildContext, Family
from tests import small

STILL = {"tower": "transformer", "transformer": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0}}
VIT = {
    **small.IMAGE, "tower": "vit",
    "vit": {"patch": 4, "width": 16, "layers": 1, "heads": 2, "pool": "class_token"},
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("dual"), train=6, others=4)


def _built(prepared: Path, **encoders: Any) -> tuple[Family, BuildContext]:
    torch.manual_seed(0)
    section = {**small.DUAL_TOWER, "encoders": {"image": small.IMAGE, "text": STILL, **encoders}}
    model, context = small.built(prepared, section)
    return model.eval(), context


def _save(folder: Path, prepared: Path) -> Family:
    model, context = _built(prepared)
    section = {**small.DUAL_TOWER, "encoders": {"image": small.IMAGE, "text": STILL}}
    save_trained(folder, model, small.model_params(section), context)
    for name in ("text.json", "tokenizer.json"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    return model


@pytest.mark.parametrize("image", [small.IMAGE, VIT], ids=["cnn", "vit"])
@pytest.mark.parametrize("pool", ["end", "mean"])
def test_embeddings_have_unit_length_and_the_head_gives_a_logit_a_class(
    prepared: Path, image: dict[str, Any], pool: str
) -> None:
    text = {"tower": "transformer", "transformer": {**STILL["transformer"], "pool": pool}}  # type: ignore[dict-item]
    model, context = _built(prepared, image=image, text=text)
    ids = torch.from_numpy(context.readers["text"].read([b"one", b"two three"]))
    outputs = model({"image": torch.rand(2, 3, 16, 16), "text": ids}, torch.ones(2, 2))
    for name in ("image_embedding", "text_embedding"):
        assert outputs[name].shape == (2, 8)
        torch.testing.assert_close(outputs[name].norm(dim=1), torch.ones(2))
    assert outputs["head.single_label"].shape == (2, 2)


@pytest.mark.parametrize("tower", ["end", "mean", "lstm", "bag"])
def test_padding_of_any_length_and_id_changes_nothing(prepared: Path, tower: str) -> None:
    towers: dict[str, dict[str, Any]] = {
        "lstm": {"tower": "lstm", "lstm": {"width": 16, "hidden": 8}},
        "bag": {"tower": "bag", "bag": {"width": 16, "hidden": 16, "features": 16}},
    }
    plain = {"tower": "transformer", "transformer": {**STILL["transformer"], "pool": tower}}  # type: ignore[dict-item]
    model, context = _built(prepared, text=towers.get(tower, plain))
    start, end, pad = (int(context.text[f"{name}_id"]) for name in ("start", "end", "pad"))
    short = torch.tensor([[start, 7, 9, end], [start, 7, end, pad]])
    long = torch.tensor([[start, 7, 9, end, pad, pad, pad], [start, 7, end, pad, end, 5, pad]])
    torch.testing.assert_close(model.towers["text"](short)[0], model.towers["text"](long)[0])


def test_an_absent_modality_does_not_reach_the_head(prepared: Path) -> None:
    model, _ = _built(prepared)
    assert model.head is not None
    features, other, present = torch.rand(2, 16), torch.rand(2, 16), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    nothing = model.head({"image": features, "text": torch.zeros(2, 16)}, present)
    something = model.head({"image": features, "text": other}, present)
    torch.testing.assert_close(nothing["single_label"], something["single_label"])


def test_what_is_saved_loads_and_answers_the_same(prepared: Path, tmp_path: Path) -> None:
    model = _save(tmp_path, prepared)
    predictor = load_trained(tmp_path, threads=1)
    pixels = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    embedding, features = predictor.encode("image", pixels)
    np.testing.assert_array_equal(
        embedding, model.towers["image"](torch.from_numpy(pixels))[0].detach().numpy()
    )
    text = predictor.encode("text", predictor.readers["text"].read([b"one", b"two"]))[1]
    answers = predictor.answer({"image": features, "text": text}, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1.0, rtol=1e-5)
    assert (predictor.classes, predictor.sees) == (small.CLASSES, ["image", "text"])
    assert (predictor.embedding_size, predictor.outputs) == (8, {"probabilities": [2]})


def test_damaged_weights_are_refused_by_name(prepared: Path, tmp_path: Path) -> None:
    _save(tmp_path, prepared)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"model\.safetensors does not hold the weights"):
        load_trained(tmp_path, threads=1)


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        (18, "choose a patch of 2, 3, 6, 9."),
        (198, "choose a patch of 2, 3, 6, 9, 11, 18, 22, 33."),
        (17, "none does; choose another size."),
    ],
)
def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do(
    prepared: Path, size: int, advice: str
) -> None:
    with pytest.raises(ConfigError, match=rf"patch 4 does not divide its size {size}; {re.escape(advice)}$"):
        _built(prepared, image={**VIT, "size": size})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"family": "transformer"},
            r"^a test: `model`: model.family is 'transformer'; there are dual_tower, fusion_classifier",
        ),
        ({"contrast": {"loss": "triplet"}}, r"'infonce' or 'siglip'"),
        ({"head": {**small.HEAD, "fusion": "sum"}}, r"'early', .*'late'"),
        (
            {"encoders": {"image": small.IMAGE, "smell": {}}},
            r"no modality is called 'smell'; there are image, text",
        ),
        (
            {"encoders": {"image": {**small.IMAGE, "tower": "vit"}, "text": STILL}},
            r"no section `vit`; add it",
        ),
        ({"contrats": {}}, r"key `model\.contrats`. Allowed here: contrast, embedding_size, .* head\."),
        ({"head": {**small.HEAD, "fusoin": 1}}, r"key `model\.head\.fusoin`. Allowed here: .* fusion, "),
    ],
    ids=["family", "loss", "fusion", "modality", "tower", "key of the family", "key of its head"],
)
def test_what_does_not_exist_is_refused_with_what_does(
    prepared: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        small.built(prepared, {**small.DUAL_TOWER, **changes})


def test_a_modality_that_no_row_has_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    from polyweft.io import read_json, write_json

    prepared = small.prepare(tmp_path, train=6, others=4)
    dataset = read_json(prepared / "dataset.json")
    write_json(prepared / "dataset.json", {**dataset, "modalities": {"image": 14, "text": 14, "audio": 0}})
    section = {**small.DUAL_TOWER, "encoders": {"image": small.IMAGE, "audio": small.AUDIO}}
    with pytest.raises(
        ConfigError, match=r"names 'audio', but no row of the data has it; they have \['image'"
    ):
        small.built(prepared, section)
