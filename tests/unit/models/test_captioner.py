"""The captioner's losses count what they should, and a few steps teach it to describe."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyweft.data.batches import choose_contents, take
from polyweft.data.generation import GenerationSpec, Special, generate
from polyweft.errors import ConfigError
from polyweft.losses.targets import Targets
from polyweft.models.captioner import Captioner
from polyweft.training.feed import Feed
from tests import small

STILL = {"tower": "transformer", "transformer": {"width": 16, "layers": 1, "heads": 2, "dropout": 0.0}}
SECTION: dict[str, Any] = {
    "family": "captioner", **small.SIZES, "encoders": {"image": small.IMAGE, "text": STILL},
    "contrast": {"loss": "infonce"}, "matching": {"weight": 1.0, "negatives": "nearest"},
    "captioning": {"weight": 1.0, "label_smoothing": 0.1},
    "decoder": {"width": 32, "layers": 1, "heads": 2, "dropout": 0.0},
    "generation": {"strategy": "greedy", "max_tokens": 5},
    "head": {**small.HEAD, "dropout": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("captioner") / "prepared")


def built(prepared: Path, **changes: Any) -> tuple[Captioner, dict[str, Tensor], Targets]:
    """A model in evaluation mode, and the inputs and targets of sixteen rows."""
    torch.manual_seed(0)
    model, context = small.built(prepared, SECTION | changes)
    assert isinstance(model, Captioner)
    arrays = small.arrays(prepared, context)
    batch = take(arrays, np.arange(16), choose_contents(arrays, seed=0, epoch=0))
    feed = Feed(context.readers, torch.device("cpu"))
    return model.eval(), feed.inputs(batch), feed.targets(batch)


def losses(model: Captioner, inputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
    return model.losses(model(inputs, targets.present_BM), targets)


def test_a_rows_outputs_depend_on_that_row_alone(prepared: Path) -> None:
    model, inputs, targets = built(prepared)
    whole = model(inputs, targets.present_BM)
    part = model({name: x[3:7] for name, x in inputs.items()}, targets.present_BM[3:7])
    assert {"image_embedding", "image_tokens", "caption_loss", "head.single_label"} < set(whole)
    for name, tensor in whole.items():
        assert len(tensor) == 16
        torch.testing.assert_close(part[name], tensor[3:7], msg=name)


def test_each_loss_reaches_what_it_should_teach(prepared: Path) -> None:
    model, inputs, targets = built(prepared)
    found = losses(model, inputs, targets)
    assert set(found) == {"contrastive", "matching", "captioning", "single_label"}
    for name, taught in {
        "matching": ("towers.image", "decoder.blocks.0.both_ways", "decoder.matching"),
        "captioning": ("towers.image", "decoder.blocks.0.causal", "decoder.tokens"),
        "contrastive": ("towers.image", "towers.text", "scale"),
    }.items():
        model.zero_grad()
        losses(model, inputs, targets)[name].backward()  # type: ignore[no-untyped-call]
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        for part in taught:
            assert any(n.startswith(part) for n in moved), (name, part)
    without = built(prepared, matching={"weight": 0.0, "negatives": "drawn"}, head=None)[0]
    assert set(losses(without, inputs, targets)) == {"contrastive", "captioning"}


def test_rows_that_lack_image_or_text_take_no_part(prepared: Path) -> None:
    model, inputs, targets = built(prepared, head=None)
    lacking = (targets.present_BM == 0).any(dim=1)
    assert 2 <= int(lacking.sum()) <= 8
    before = losses(model, inputs, targets)
    inputs["text"][lacking, 1] = 17
    inputs["image"][lacking] += 1
    targets.ids_BT[lacking, 1] = 17
    after = losses(model, inputs, targets)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)


def test_the_caption_loss_is_the_mean_over_tokens_and_about_chance_at_first(prepared: Path) -> None:
    model, inputs, targets = built(prepared, captioning={"weight": 2.0, "label_smoothing": 0.0})
    outputs = model(inputs, targets.present_BM)
    paired = targets.has("image") & targets.has("text")
    mean = outputs["caption_loss"][paired].sum() / outputs["caption_tokens"][paired].sum()
    torch.testing.assert_close(model.losses(outputs, targets)["captioning"], 2 * mean)
    assert float(mean.detach()) == pytest.approx(math.log(len(model.decoder.logit_bias)), rel=0.1)


def test_without_a_wrong_partner_only_true_pairs_are_asked_about(prepared: Path) -> None:
    model, inputs, targets = built(prepared, head=None)
    same = {name: torch.zeros_like(key) for name, key in targets.keys.items()}
    outputs = model(inputs, targets.present_BM)
    found = model.losses(outputs, dataclasses.replace(targets, keys=same))["matching"]
    paired = targets.has("image") & targets.has("text")
    logits = model.decoder.match(targets.ids_BT, outputs["image_tokens"])[paired]
    torch.testing.assert_close(found, torch.nn.functional.softplus(-logits).mean())


def test_the_temperature_and_the_noise_of_balanced_tasks_are_logged(prepared: Path) -> None:
    tasks = {"single_label": 1.0, "regression": 1.0}
    head = {**small.HEAD, "tasks": tasks, "balance": "uncertainty"}
    assert set(built(prepared, head=head)[0].facts()) == {
        *built(prepared, head=None)[0].facts(), "noise_single_label", "noise_regression",
    }  # fmt: skip


def test_drawn_negatives_follow_torchs_seed(prepared: Path) -> None:
    model, inputs, targets = built(prepared, matching={"weight": 1.0, "negatives": "drawn"})

    def once(seed: int) -> float:
        torch.manual_seed(seed)
        return float(losses(model, inputs, targets)["matching"].detach())

    assert once(1) == once(1)
    assert len({once(seed) for seed in range(4)}) > 1


def test_some_steps_teach_it_to_describe_and_to_tell_pairs_apart(prepared: Path) -> None:
    model, inputs, targets = built(prepared, captioning={"weight": 1.0, "label_smoothing": 0.0}, head=None)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
    for _ in range(220):
        optimizer.zero_grad()
        found = losses(model, inputs, targets)
        torch.stack(list(found.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.after_step()
    assert float(found["captioning"].detach()) < 0.3
    assert float(found["matching"].detach()) < 0.3  # 0.64 at chance
    paired = targets.has("image") & targets.has("text")
    image_NLF = model.eval().towers["image"](inputs["image"][paired])[1]

    def step(ids_BT: Any, rows_B: Any) -> Any:
        with torch.no_grad():
            return model.decoder(torch.from_numpy(ids_BT), image_NLF[torch.from_numpy(rows_B)])[:, -1].numpy()

    spec = GenerationSpec("beam", beams=2, max_tokens=8)
    written = generate(step, len(image_NLF), spec, Special(start=1, end=2, pad=0))
    right = [
        [1, *ids, 2] == row[: len(ids) + 2].tolist()
        for ids, row in zip(written, targets.ids_BT[paired], strict=True)
    ]
    assert np.mean(right) > 0.9


def test_captions_longer_than_the_texts_of_the_data_are_refused(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="Choose at most 11"):
        built(prepared, generation={"strategy": "greedy", "max_tokens": 12})


def test_it_needs_image_text_and_a_joint_space(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="image and text"):
        built(prepared, encoders={"image": small.IMAGE})
    with pytest.raises(ConfigError, match="embedding_size"):
        built(prepared, embedding_size=0)
