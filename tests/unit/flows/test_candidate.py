"""What a model of a comparison costs: counted as by hand, over what its latency is measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.candidate import forward_flops, one_row
from polyweft.models.build import TorchPredictor
from tests import small

TOKENS = 12  # of the longest text that `small.prepare` writes
TEXT_HEAD = {**small.HEAD, "sees": ["text"]}
DECIDE = 2 * (16 * 8 + 8 * 2)
"""A head's two Linear layers, from 16 features over 8 to 2 classes."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("candidate") / "prepared")


def predictor(prepared: Path, section: dict[str, Any]) -> TorchPredictor:
    module, context = small.built(prepared, section)
    return TorchPredictor(module, small.model_params(section), context)


def of_text(prepared: Path, encoder: dict[str, Any]) -> TorchPredictor:
    section = {
        "family": "fusion_classifier", "embedding_size": 0, "feature_size": 16,
        "encoders": {"text": encoder}, "head": TEXT_HEAD,
    }  # fmt: skip
    return predictor(prepared, section)


def test_the_text_that_is_counted_is_the_longest(prepared: Path) -> None:
    ids = one_row(of_text(prepared, small.TEXT_TOWER))["text"]
    assert ids.shape == (1, TOKENS)
    assert list(ids[0]).index(2) == TOKENS - 1, "its end is its last token"


@pytest.mark.parametrize("layers", [1, 2])
def test_an_lstm_counts_four_gates_a_token_direction_and_layer(prepared: Path, layers: int) -> None:
    width, hidden = 16, 8
    lstm = {"tower": "lstm", "lstm": {"width": width, "hidden": hidden, "layers": layers}}
    # Each gate is a product with the input and one with the state before (Hochreiter and Schmidhuber, 1997).
    of_layers = [2 * 4 * hidden * (size + hidden) for size in (width, 2 * hidden)[:layers]]
    expected = TOKENS * 2 * sum(of_layers) + DECIDE
    assert forward_flops(of_text(prepared, lstm)) == expected


def test_attention_of_a_transformers_model_counts(prepared: Path) -> None:
    width, inner, side, pixels = 16, 32, 16, 8
    shape = {
        "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": inner,
    }  # fmt: skip
    image = {name: value for name, value in small.IMAGE.items() if name not in ("tower", "cnn")}
    common = {"source": None, "tuning": "full", "pool": "mean"}
    section = {
        "family": "huggingface_late_fusion", "embedding_size": 0, "feature_size": width,
        "encoders": {
            "image": {**common, **image, "config": {**shape, "patch_size": pixels}},
            "text": {**common, "config": shape},
        },
        "head": {**small.HEAD, "fusion": "late"},
    }  # fmt: skip
    patches = (side // pixels) ** 2
    embed = 2 * patches * 3 * pixels**2 * width
    blocks = [_block(length, width, inner) for length in (patches + 1, TOKENS)]  # a class token with patches
    assert forward_flops(predictor(prepared, section)) == embed + sum(blocks) + 2 * DECIDE


def test_a_decoder_is_counted_as_little_as_it_is_timed(prepared: Path) -> None:
    def captioner(layers: int) -> dict[str, Any]:
        return {
            "family": "captioner", **small.SIZES,
            "encoders": {"image": small.IMAGE, "text": small.TEXT_TOWER},
            "contrast": {"loss": "infonce"}, "matching": {"weight": 1.0, "negatives": "nearest"},
            "captioning": {"weight": 1.0, "label_smoothing": 0.1},
            "decoder": {"width": 16, "layers": layers, "heads": 2, "dropout": 0.0},
            "generation": {"strategy": "greedy", "max_tokens": 6},
        }  # fmt: skip

    towers = {**small.DUAL_TOWER, "head": None}
    counted = {forward_flops(predictor(prepared, captioner(layers))) for layers in (1, 3)}
    assert len(counted) == 1
    # Its image tower projects the mean of positions, so it costs as much as one that gives the mean alone.
    assert counted == {forward_flops(predictor(prepared, towers))}


def _block(length: int, width: int, inner: int) -> int:
    """A Transformer's block: query, key, value and output, scores and their mixture, two layers behind."""
    return 2 * length * (4 * width**2 + 2 * length * width + 2 * width * inner)
