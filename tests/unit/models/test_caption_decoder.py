"""The decoder is causal, looks at the image and not at its padding, and runs the same in ONNX Runtime."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyweft.errors import ConfigError
from polyweft.models.caption_decoder import CaptionDecoder, DecoderParams

END = 2


def decoder(*, dropout: float = 0.0, layers: int = 2) -> CaptionDecoder:
    torch.manual_seed(0)
    params = DecoderParams(width=32, layers=layers, heads=4, dropout=dropout)
    module = CaptionDecoder(params, feature_size=24, vocabulary_size=40, max_tokens=12, end_id=END).eval()
    for parameter in module.parameters():  # away from the start, where biases and logits are all but zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    return module


def inputs(rows: int = 3, tokens: int = 6, places: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (rows, tokens), generator=generator)
    ids[:, 0] = 1
    return ids, torch.randn(rows, places, 24, generator=generator)


def test_a_later_token_changes_no_earlier_logits() -> None:
    module, (ids, image) = decoder(), inputs()
    changed = ids.clone()
    changed[:, 4] = 7
    before, after = module(ids, image), module(changed, image)
    assert before.shape == (3, 6, 40)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=2).min() > 1e-3


def test_logits_of_a_prefix_are_the_first_of_the_whole() -> None:
    module, (ids, image) = decoder(), inputs()
    torch.testing.assert_close(module(ids[:, :3], image), module(ids, image)[:, :3])


def test_the_image_counts_and_its_padding_does_not() -> None:
    module, (ids, image) = decoder(), inputs()
    padded = torch.cat([image, torch.zeros(3, 4, 24)], dim=1)
    for read in (module.forward, module.match):
        torch.testing.assert_close(read(ids, padded), read(ids, image))
        assert (read(ids, image) - read(ids, image.roll(1, dims=0))).abs().max() > 1e-3


def test_a_row_without_an_image_stays_finite_and_leaves_the_others_alone() -> None:
    module, (ids, image) = decoder(), inputs()
    without = image.clone()
    without[1] = 0
    assert module(ids, without).isfinite().all()
    torch.testing.assert_close(module(ids, without)[[0, 2]], module(ids, image)[[0, 2]])


def test_padding_of_the_text_changes_neither_the_match_nor_the_loss() -> None:
    module, (ids, image) = decoder(), inputs()
    ids[0, 3], ids[1, 5], ids[2, 1] = END, END, END
    longer = torch.cat([ids, torch.full((3, 4), 9)], dim=1)
    torch.testing.assert_close(module.match(longer, image), module.match(ids, image))
    loss, count = module.caption_loss(longer, image, 0.1)
    torch.testing.assert_close((loss, count), module.caption_loss(ids, image, 0.1))
    assert count.tolist() == [3, 5, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_smoothed_cross_entropy_written_out(smoothing: float) -> None:
    module, (ids, image) = decoder(), inputs(rows=1)
    ids[0, 4] = END
    log_p = module(ids, image)[0].log_softmax(dim=1)
    expected = 0.0
    for place in range(4):  # tokens 1 to 4, the end token being the fourth
        target = (1 - smoothing) * log_p[place, ids[0, place + 1]] + smoothing * log_p[place].mean()
        expected -= target.item()
    assert float(module.caption_loss(ids, image, smoothing)[0]) == pytest.approx(expected, rel=1e-5)


def test_captioning_and_matching_share_all_but_self_attention() -> None:
    module, (ids, image) = decoder(), inputs()
    ids[:, 5] = END

    def touched(loss: Tensor) -> set[str]:
        module.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return {name for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}

    captioning = touched(module.caption_loss(ids, image, 0.0)[0].sum())
    matching = touched(module.match(ids, image).sum())
    alone = {name for name in captioning ^ matching if "key.bias" not in name}
    assert all("causal" in n or "both_ways" in n or n.startswith(("logit_bias", "matching")) for n in alone)
    assert any("cross" in name for name in captioning & matching)
    assert "tokens.weight" in captioning & matching


def test_it_exports_with_a_free_batch_and_free_lengths(tmp_path: Path) -> None:
    import onnxruntime

    module, (ids, image) = decoder(layers=1), inputs()
    batch, places = (torch.export.Dim(name, min=1, max=64) for name in ("batch", "places"))
    tokens = torch.export.Dim("tokens", min=1, max=12)
    program = torch.onnx.export(
        module,
        (ids, image),
        dynamo=True,
        opset_version=20,
        input_names=["input_ids", "image_features"],
        output_names=["logits"],
        dynamic_shapes={
            "ids_BT": {0: batch, 1: tokens},
            "image_BLF": {0: batch, 1: places},
        },
        verbose=False,
    )
    assert program is not None
    program.save(str(tmp_path / "decoder.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx", providers=["CPUExecutionProvider"])
    for rows, length, seen in ((1, 1, 1), (2, 12, 5), (4, 3, 9)):
        ids, image = inputs(rows, length, seen)
        image[0, seen // 2 + 1 :] = 0
        ours = module(ids, image).detach().numpy()
        theirs = session.run(None, {"input_ids": ids.numpy(), "image_features": image.numpy()})[0]
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    params = DecoderParams(width=32, layers=1, heads=5, dropout=0.0)
    with pytest.raises(ConfigError, match="heads 5 does not divide"):
        CaptionDecoder(params, feature_size=8, vocabulary_size=9, max_tokens=4, end_id=END)


def test_at_the_start_every_token_is_about_as_likely() -> None:
    torch.manual_seed(0)
    params = DecoderParams(width=32, layers=1, heads=4, dropout=0.0)
    module = CaptionDecoder(params, feature_size=24, vocabulary_size=40, max_tokens=12, end_id=END)
    ids, image = inputs()
    ids[:, 5] = END
    loss, count = module.caption_loss(ids, image, 0.0)
    assert float(loss.sum() / count.sum()) == pytest.approx(math.log(40), rel=0.1)
