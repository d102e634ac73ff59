"""The towers embed on the unit sphere, ignore padding, and keep what is absent out of the head."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyweft.config import parse_section
from polyweft.errors import ConfigError, DataError
from polyweft.models.build import ModelParams, build_model, load_trained, save_trained

TEXT = {"kind": "hash", "max_tokens": 12, "pad_id": 0, "start_id": 1, "end_id": 2, "vocabulary_size": 50}


def _section(**image: Any) -> dict[str, Any]:
    return {
        "family": "dual_tower",
        "embedding_size": 16,
        "feature_size": 24,
        "image": {
            "tower": "cnn",
            "size": 16,
            "resize": "squash",
            "normalization": "half",
            "background": [255, 255, 255],
            "max_pixels": 1000,
            "cnn": {"channels": [8, 16], "blocks": [1, 1]},
            "vit": {"patch": 4, "width": 32, "layers": 1, "heads": 2, "pool": "mean"},
            **image,
        },
        "text": {"width": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "head": {"sees": "both", "hidden": 16, "dropout": 0.0},
    }


def _params(**image: Any) -> ModelParams:
    return parse_section(ModelParams, "model", _section(**image), where="test")


@pytest.mark.parametrize("image", [{}, {"tower": "vit"}])
def test_embeddings_have_unit_length_and_the_head_gives_a_logit_a_class(image: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(_params(**image), classes=3, text=TEXT).eval()
    ids = torch.tensor([[1, 7, 2], [1, 8, 2]])
    images, texts, logits = model(torch.rand(2, 3, 16, 16), ids, torch.ones(2, 2))
    for embeddings in (images, texts):
        assert embeddings.shape == (2, 16)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))
    assert logits.shape == (2, 3)


def test_padding_of_any_length_and_id_changes_nothing() -> None:
    torch.manual_seed(0)
    model = build_model(_params(), classes=0, text=TEXT).eval()
    short = torch.tensor([[1, 7, 9, 2], [1, 7, 2, 0]])
    long = torch.tensor([[1, 7, 9, 2, 0, 0, 0], [1, 7, 2, 0, 2, 5, 0]])
    torch.testing.assert_close(model.text(short)[0], model.text(long)[0])


def test_an_absent_modality_does_not_reach_the_head() -> None:
    torch.manual_seed(0)
    model = build_model(_params(), classes=3, text=TEXT).eval()
    assert model.head is not None
    features, other = torch.rand(2, 24), torch.rand(2, 24)
    present = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(
        model.head(features, torch.zeros(2, 24), present), model.head(features, other, present)
    )


def test_what_is_saved_loads_and_answers_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(_params(), classes=2, text=TEXT).eval()
    save_trained(tmp_path, model, _params(), classes=["a", "b"], text=TEXT)
    predictor = load_trained(tmp_path, threads=1)
    pixels = np.random.default_rng(0).random((2, 3, 16, 16), np.float32)
    embedding, features = predictor.images(pixels)
    expected = model.image(torch.from_numpy(pixels))[0].detach().numpy()
    np.testing.assert_array_equal(embedding, expected)
    text_features = predictor.texts(np.array([[1, 7, 2], [1, 8, 2]]))[1]
    probabilities = predictor.classify(features, text_features, np.ones((2, 2), np.float32))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, rtol=1e-5)
    assert (predictor.classes, predictor.sees, predictor.embedding_size) == (["a", "b"], "both", 16)


def test_damaged_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = build_model(_params(), classes=2, text=TEXT)
    save_trained(tmp_path, model, _params(), classes=["a", "b"], text=TEXT)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(DataError, match=r"model\.safetensors does not hold the weights"):
        load_trained(tmp_path, threads=1)


def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do() -> None:
    params = _params(tower="vit", size=18)
    with pytest.raises(ConfigError, match=r"patch 4 does not divide model\.image\.size 18"):
        build_model(params, classes=2, text=TEXT)
