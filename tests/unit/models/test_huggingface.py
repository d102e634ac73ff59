"""Models of transformers behind the project's form: equal to transformers' own, frozen as asked, portable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyweft.data.batches import choose_contents, take
from polyweft.errors import ConfigError
from polyweft.losses.targets import Targets
from polyweft.models.build import build_model
from polyweft.models.family import BuildContext
from polyweft.models.huggingface_late_fusion import LateFusion
from polyweft.training.feed import Feed
from tests import small

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PIXELS = {key: small.IMAGE[key] for key in ("size", "resize", "normalization", "background", "max_pixels")}
IMAGE = {**PIXELS, "source": None, "config": {**SMALL, "patch_size": 8}, "tuning": "full", "pool": "pooler"}
TEXT = {"source": None, "config": SMALL, "tuning": "full", "pool": "pooler"}
SECTION: dict[str, Any] = {
    "family": "huggingface_late_fusion", "embedding_size": 0, "feature_size": 16,
    "encoders": {"image": IMAGE, "text": TEXT}, "head": {**small.HEAD, "fusion": "late", "dropout": 0.0},
}  # fmt: skip
DUAL = {**SECTION, "embedding_size": 8, "contrast": {"loss": "infonce"}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("huggingface") / "prepared")


@pytest.fixture(scope="module")
def batch(prepared: Path) -> tuple[dict[str, Tensor], Targets]:
    _, context = small.built(prepared)
    arrays = small.arrays(prepared, context)
    rows = take(arrays, np.arange(12), choose_contents(arrays, seed=0, epoch=0))
    feed = Feed(context.readers, torch.device("cpu"))
    return feed.inputs(rows), feed.targets(rows)


def built(prepared: Path, section: dict[str, Any], seed: int = 0) -> tuple[LateFusion, BuildContext]:
    torch.manual_seed(seed)
    model, context = small.built(prepared, section)
    assert isinstance(model, LateFusion)
    return model.eval(), context


def changed(section: dict[str, Any], modality: str, **keys: Any) -> dict[str, Any]:
    encoders = section["encoders"]
    return {**section, "encoders": {**encoders, modality: {**encoders[modality], **keys}}}


def tower(model: LateFusion, modality: str) -> Any:
    return model.towers[modality]


def dual_encoder(model: LateFusion) -> Any:
    """transformers' own of the model's two parts, with projections of its own."""
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    image, text = (tower(model, name).encoder.model for name in ("image", "text"))
    config = VisionTextDualEncoderConfig.from_vision_text_configs(image.config, text.config, projection_dim=8)
    return VisionTextDualEncoderModel(config, vision_model=image, text_model=text)


def test_the_joint_space_is_that_of_vision_text_dual_encoder(
    prepared: Path, batch: tuple[dict[str, Tensor], Targets]
) -> None:
    model, _ = built(prepared, DUAL)
    inputs, targets = batch
    outputs = model(inputs, targets.present_BM)
    dual = dual_encoder(model).eval()
    dual.visual_projection, dual.text_projection = (tower(model, n).projection for n in ("image", "text"))
    end = (inputs["text"] == 2).int().argmax(dim=1, keepdim=True)
    mask = torch.arange(inputs["text"].shape[1]) <= end
    theirs = dual(input_ids=inputs["text"], pixel_values=inputs["image"], attention_mask=mask.long())
    torch.testing.assert_close(outputs["image_embedding"], theirs.image_embeds)
    torch.testing.assert_close(outputs["text_embedding"], theirs.text_embeds)
    torch.testing.assert_close(outputs["scale"][0], dual.logit_scale.exp(), rtol=1e-3, atol=0.0)
    assert set(model.losses(outputs, targets)) == {"contrastive", "single_label"}


@pytest.mark.parametrize("pool", ["pooler", "first", "mean"])
def test_padding_changes_nothing_and_tokens_are_zero_there(prepared: Path, pool: str) -> None:
    model, _ = built(prepared, changed(SECTION, "text", pool=pool))
    encoder = tower(model, "text").encoder
    short = torch.tensor([[1, 7, 9, 2], [1, 7, 2, 0]])
    long = torch.tensor([[1, 7, 9, 2, 0, 0], [1, 7, 2, 0, 5, 2]])
    torch.testing.assert_close(encoder(long), encoder(short))
    assert (encoder.tokens(long)[1, 3:] == 0).all()
    assert (encoder.tokens(long)[1, :3] != 0).any(dim=1).all()


@pytest.mark.parametrize(
    ("tuning", "trained"),
    [("frozen", 0.0), ("full", 1.0), ({"last_layers": 1}, 0.5), ({"last_layers": 2}, 1.0)],
)
def test_tuning_trains_what_it_names_and_no_more(
    prepared: Path, batch: tuple[dict[str, Tensor], Targets], tuning: Any, trained: float
) -> None:
    model, _ = built(prepared, changed(SECTION, "image", tuning=tuning))
    encoder = tower(model, "image").encoder
    inputs, targets = batch
    outputs = model.train()(inputs, targets.present_BM)
    torch.stack(list(model.losses(outputs, targets).values())).sum().backward()  # type: ignore[no-untyped-call]
    moved = {n for n, p in encoder.model.named_parameters() if p.grad is not None}
    blocks = sum(any(name.startswith(f"layers.{i}.") for name in moved) for i in range(2))
    assert blocks / 2 == trained
    assert any(name.startswith("pooler") for name in moved) == (trained > 0)
    assert any(name.startswith("embeddings") for name in moved) == (tuning == "full")
    assert encoder.model.training == (tuning != "frozen")


@pytest.mark.parametrize("section", [SECTION, DUAL])
def test_the_noise_of_balanced_tasks_is_logged_with_the_temperature(
    prepared: Path, section: dict[str, Any]
) -> None:
    plain = built(prepared, section)[0].facts()
    head = {**section["head"], "balance": "uncertainty"}
    assert built(prepared, {**section, "head": head})[0].facts() == {**plain, "noise_single_label": 1.0}


def test_a_folder_gives_its_weights_and_the_model_no_longer_needs_it(prepared: Path, tmp_path: Path) -> None:
    first, _ = built(prepared, SECTION)
    section = SECTION
    for name in ("image", "text"):
        tower(first, name).encoder.model.save_pretrained(tmp_path / name)
        section = changed(section, name, source=str(tmp_path / name), config={})
    second, context = built(prepared, section, seed=1)
    state = first.state_dict()
    for name, tensor in second.state_dict().items():
        if ".encoder." in name:
            torch.testing.assert_close(tensor, state[name], msg=name)
    assert json.loads(json.dumps(second.portable.model_dump())) == second.portable.model_dump()
    for part in (tmp_path / "image", tmp_path / "text"):
        (part / "model.safetensors").unlink()
    third = build_model(small.model_params(second.portable.model_dump()), context)
    third.load_state_dict(second.state_dict())
    with pytest.raises(ConfigError, match="safetensors"):
        built(prepared, section)


def test_a_dual_encoder_gives_its_projections_and_temperature(prepared: Path, tmp_path: Path) -> None:
    dual = dual_encoder(built(prepared, DUAL)[0])
    dual.logit_scale.data.fill_(3.0)
    dual.save_pretrained(tmp_path / "dual")
    loaded, _ = built(prepared, {**DUAL, "dual_encoder": str(tmp_path / "dual")}, seed=1)
    assert loaded.scale is not None
    assert float(loaded.scale.logit_scale.detach()) == 3.0
    torch.testing.assert_close(tower(loaded, "text").projection.weight, dual.text_projection.weight)
    with pytest.raises(ConfigError, match="Set embedding_size to 8"):
        built(prepared, {**DUAL, "embedding_size": 16, "dual_encoder": str(tmp_path / "dual")})


def test_a_missing_modality_does_not_reach_the_answer(
    prepared: Path, batch: tuple[dict[str, Tensor], Targets]
) -> None:
    model, _ = built(prepared, SECTION)
    inputs, _ = batch
    without_text = torch.tensor([[1.0, 0.0]]).repeat(12, 1)
    other = {**inputs, "text": inputs["text"].flip(0)}
    for task, logits in model(inputs, without_text).items():
        torch.testing.assert_close(model(other, without_text)[task], logits)


@pytest.mark.parametrize(
    ("modality", "keys", "message"),
    [
        ("image", {"config": {"patch_size": 5}}, "must divide it"),
        ("image", {"config": {"hiden_size": 16}}, "no key 'hiden_size'"),
        ("image", {"tuning": {"last_layers": 99}}, "there are 2"),
        ("image", {"source": "nowhere/at-all"}, "neither a folder"),
        ("text", {"config": {**SMALL, "vocab_size": 7}}, "prepare.tokenizer: folder"),
        ("text", {"tuning": "thawed"}, "tuning"),
        ("text", {"pool": "last"}, "pool"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, modality: str, keys: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=message):
        built(prepared, changed(SECTION, modality, **keys))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({**SECTION, "head": None}, "nothing to learn"),
        ({**SECTION, "embedding_size": 8}, "embedding_size is 8"),
        ({**SECTION, "dual_encoder": "x"}, "needs the section contrast"),
        ({**SECTION, "encoders": {**SECTION["encoders"], "audio": small.AUDIO}}, "takes image and text"),
    ],
)
def test_sections_that_contradict_themselves_are_refused(
    prepared: Path, section: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        built(prepared, section)
