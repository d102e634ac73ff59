"""The Transformer and its towers: what a mask hides, reading one position, checkpointing, bf16, ONNX."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polyweft.errors import ConfigError
from polyweft.models.image_vit import ImageVit, VitParams
from polyweft.models.text_transformer import TextParams, TextTransformer
from polyweft.models.transformer import Attention, Transformer, init_weights, vectors_at

END = 2


def transformer(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    built = Transformer(32, 3, 4, dropout)
    built.apply(init_weights)
    for parameter in built.parameters():  # no value that is exactly 0 or 1 by chance of the start
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def some(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def vit(pool: str) -> ImageVit:
    torch.manual_seed(0)
    return ImageVit(VitParams.model_validate({**VIT, "pool": pool}), 16)


VIT = {"patch": 8, "width": 16, "layers": 2, "heads": 2, "pool": "mean"}


def text() -> TextTransformer:
    torch.manual_seed(0)
    params = TextParams(width=16, layers=2, heads=2, dropout=0.0)
    return TextTransformer(params, vocabulary_size=20, max_tokens=9, end_id=END)


IDS = torch.tensor([[1, 5, END, 7, 7], [1, 6, 8, 9, END]])


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_that_of_torch(masked: bool) -> None:
    torch.manual_seed(0)
    attention, x = Attention(32, 4), some(3, 7, 32)
    mask = some(3, 1, 7, 7) > -0.5
    mask[..., 0] = True
    q, k, v = (
        part(x).view(3, 7, 4, 8).transpose(1, 2) for part in (attention.query, attention.key, attention.value)
    )
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask if masked else None)
    expected = attention.out(mixed.transpose(1, 2).reshape(3, 7, 32))
    torch.testing.assert_close(attention(x, mask if masked else None), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_reading_one_position_gives_its_vector_and_its_gradients(masked: bool) -> None:
    model, at_B = transformer(), torch.tensor([0, 3, 5])
    x = some(3, 6, 32).requires_grad_()
    mask = torch.ones(3, 1, 1, 6, dtype=torch.bool)
    mask[0, ..., 2:] = False
    there = mask if masked else None
    weights = some(3, 32)
    wanted, got = (
        (out, torch.autograd.grad((out * weights).sum(), [x, *model.parameters()]))
        for out in (vectors_at(model(x, there), at_B), model(x, there, at_B))
    )
    torch.testing.assert_close(got, wanted, atol=2e-5, rtol=1e-4)


def test_what_the_mask_hides_changes_nothing() -> None:
    model, x = transformer(), some(2, 6, 32)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[..., 4:] = False
    other = x.clone()
    other[:, 4:] = 100.0
    assert torch.equal(model(x, mask)[:, :4], model(other, mask)[:, :4])


def test_a_row_that_may_look_nowhere_is_finite() -> None:
    nowhere = torch.zeros(2, 1, 1, 6, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        assert transformer().to(dtype)(some(2, 6, 32).to(dtype), nowhere).isfinite().all()


def test_checkpointing_changes_neither_loss_nor_gradients_and_keeps_less() -> None:
    kept: list[int] = []
    results = []
    for checkpointing in (False, True):
        model, x = transformer(dropout=0.5).train(), some(2, 6, 32)
        model.checkpointing = checkpointing
        torch.manual_seed(3)
        kept.clear()
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
        with hooks:
            loss = model(x).square().mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        results.append((loss, gradients, sum(kept)))
    (loss, gradients, all_kept), (again, again_gradients, fewer_kept) = results
    assert torch.equal(loss, again)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again_gradients, strict=True))
    assert fewer_kept < all_kept / 2


def test_bf16_stays_bf16_between_the_blocks_and_near_fp32() -> None:
    model, x = transformer(), some(4, 6, 32)
    seen: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _in, out: seen.append(out.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, at_B=torch.tensor([0, 1, 2, 3]))
    assert set(seen) == {torch.bfloat16}
    exact = model(x, at_B=torch.tensor([0, 1, 2, 3]))
    assert functional.cosine_similarity(out.float(), exact).min() > 0.99


@pytest.mark.parametrize("pool", ["mean", "class_token"])
def test_the_image_tower_pools_its_tokens(pool: str) -> None:
    model, x = vit(pool), some(3, 3, 16, 16)
    tokens = model.tokens(x)
    assert tokens.shape == (3, 4 + (pool == "class_token"), 16)
    pooled = tokens.mean(dim=1) if pool == "mean" else tokens[:, 0]
    torch.testing.assert_close(model(x), pooled, atol=1e-5, rtol=1e-4)


def test_the_text_tower_reads_its_end_and_leaves_padding_zero() -> None:
    model = text()
    tokens = model.tokens(IDS)
    assert not tokens[0, 3:].any()
    assert tokens[0, :3].any(dim=1).all()
    torch.testing.assert_close(
        model(IDS), tokens[torch.arange(2), torch.tensor([2, 4])], atol=1e-5, rtol=1e-4
    )


def test_padding_changes_no_text_feature() -> None:
    model = text()
    shorter = model(IDS[:1, :3])
    torch.testing.assert_close(model(IDS[:1]), shorter)
    other = IDS[:1].clone()
    other[0, 3:] = 11
    assert torch.equal(model(other), model(IDS[:1]))


@pytest.mark.parametrize("tower", ["class_token", "mean", "text"])
def test_every_parameter_gets_a_gradient(tower: str) -> None:
    model = text() if tower == "text" else vit(tower)
    model(IDS if tower == "text" else some(2, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("tower", ["class_token", "text"])
def test_onnx_gives_the_same_for_other_batches_and_lengths(tower: str, tmp_path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    model = (text() if tower == "text" else vit(tower)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    if tower == "text":
        example, shapes = IDS, {0: batch, 1: torch.export.Dim("tokens", min=2, max=9)}
        others = [IDS[:, :4].clone(), torch.tensor([[1, 3, 4, 5, 6, 7, END]] * 5)]
        others[0][:, 3] = END
    else:
        example, shapes = some(2, 3, 16, 16), {0: batch}
        others = [some(1, 3, 16, 16), some(5, 3, 16, 16)]
    path = tmp_path / "tower.onnx"
    torch.onnx.export(
        model, (example,), str(path), dynamo=True, opset_version=20, dynamic_shapes=(shapes,), verbose=False
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for other in [example, *others]:
        (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
        np.testing.assert_allclose(got, model(other).detach().numpy(), atol=1e-5)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="patch 8 does not divide its size 20"):
        ImageVit(VitParams.model_validate(VIT), 20)
    with pytest.raises(ConfigError, match="heads 3 does not divide its width 16"):
        ImageVit(VitParams.model_validate({**VIT, "heads": 3}), 16)
    with pytest.raises(ConfigError, match="heads 3 does not divide its width 16"):
        TextTransformer(
            TextParams(width=16, layers=1, heads=3, dropout=0.0), vocabulary_size=9, max_tokens=4, end_id=END
        )
