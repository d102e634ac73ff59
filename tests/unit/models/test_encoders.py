"""Encoders of every modality: shapes, what padding may not change, ONNX's answers, and what is refused."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from polyweft.modalities import reader_module
from polyweft.models import audio, graph, video
from polyweft.models.image_cnn import CnnParams, ImageCnn
from polyweft.models.image_resnet import ImageResnet, ResnetParams
from polyweft.models.text_lstm import LstmParams, TextLstm

END = 2
CNN = {"channels": [8, 16], "blocks": [0, 1]}


def pixels(batch: int) -> Tensor:
    return torch.randn(batch, 3, 20, 20)


def words(batch: int, length: int = 6) -> Tensor:
    ids = torch.randint(3, 40, (batch, length))
    ids[:, -1] = END
    ids[0, 2] = END
    return ids


def modality(module: Any, section: dict[str, Any]) -> tuple[Any, Any]:
    params = module.Params.model_validate(section)
    reader = reader_module(module.__name__.rpartition(".")[2]).Reader(module.reader_spec(params))
    return module.build(params, reader), reader


def sounds(batch: int) -> Tensor:
    return torch.randn(batch, 16, 26)


def graphs(batch: int) -> Tensor:
    _, reader = modality(graph, GRAPH)
    rows = torch.zeros(batch, *reader.shape)
    rows[:, :3, : reader.spec.node_width] = torch.randn(batch, 3, reader.spec.node_width)
    rows[:, :3, 0] = 1.0
    rows[:, 0, reader.spec.node_width + 4 : reader.spec.node_width + 8] = torch.rand(batch, 4)
    return rows


AUDIO = {"rate": 8000, "seconds": 0.25, "mels": 16, **CNN}
GRAPH = {"nodes": 5, "names": 8, "attributes": 8, "relations": 4, "width": 16}
VIDEO = {"frames": 4, "size": 16, "cnn": CNN}


def clips(batch: int) -> Tensor:
    return torch.randn(batch, 4, 3, 16, 16)


ENCODERS: dict[str, tuple[Callable[[], Any], Callable[[int], Tensor]]] = {
    "cnn": (lambda: ImageCnn(CnnParams.model_validate({**CNN, "kernel": 7})), pixels),
    "pyramid": (
        lambda: ImageCnn(CnnParams(channels=[8, 16, 24], blocks=[0, 1, 1], scales=3)),
        lambda batch: torch.randn(batch, 3, 22, 18),
    ),
    "resnet": (lambda: ImageResnet(ResnetParams(block="basic", blocks=[1, 1], width=8)), pixels),
    "bottleneck": (lambda: ImageResnet(ResnetParams(block="bottleneck", blocks=[1, 2], width=8)), pixels),
    "lstm": (
        lambda: TextLstm(LstmParams(width=8, hidden=12, layers=2), vocabulary_size=40, end_id=END),
        words,
    ),
    "audio": (lambda: modality(audio, AUDIO)[0], sounds),
    "graph": (lambda: modality(graph, GRAPH)[0], graphs),
    "video_mean": (lambda: modality(video, {**VIDEO, "pooling": "mean"})[0], clips),
    "video_attention": (lambda: modality(video, {**VIDEO, "pooling": "attention"})[0], clips),
    "video_transformer": (lambda: modality(video, {**VIDEO, "pooling": "transformer"})[0], clips),
}


@pytest.fixture(params=ENCODERS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, Callable[[int], Tensor]]:
    torch.manual_seed(1)
    build, inputs = ENCODERS[request.param]
    return build().eval(), inputs


def test_features_and_tokens_have_the_width_that_is_said(pair: tuple[Any, Callable[[int], Tensor]]) -> None:
    encoder, inputs = pair
    x = inputs(3)
    tokens = encoder.tokens(x)
    assert encoder(x).shape == (3, encoder.out_features)
    assert tokens.ndim == 3
    assert (tokens.shape[0], tokens.shape[2]) == (3, encoder.out_features)


def test_a_row_is_read_by_itself(pair: tuple[Any, Callable[[int], Tensor]]) -> None:
    encoder, inputs = pair
    x = inputs(4)
    with torch.no_grad():
        together = encoder(x)
        alone = torch.cat([encoder(row[None]) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_weight_learns(pair: tuple[Any, Callable[[int], Tensor]]) -> None:
    encoder, inputs = pair
    for module in encoder.modules():  # a residual branch that begins at zero hides what is behind it
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    encoder(inputs(3)).square().sum().backward()
    still = [
        name for name, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert not still


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_autocast_stays_near_float32(
    pair: tuple[Any, Callable[[int], Tensor]], precision: torch.dtype
) -> None:
    encoder, inputs = pair
    x = inputs(3)
    with torch.no_grad():
        exact = encoder(x)
        with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
            near = encoder(x)
    assert (near.float() - exact).abs().max() <= 0.05 * exact.abs().max()


# The others hold no operation that these do not; an export takes seconds.
EXPORTED = ["pyramid", "resnet", "lstm", "audio", "graph", "video_attention", "video_transformer"]


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_gives_the_same_for_any_batch(name: str) -> None:
    torch.manual_seed(1)
    build, inputs = ENCODERS[name]
    encoder = build().eval()
    axes: dict[int, Any] = {0: torch.export.Dim("batch")}
    if name == "lstm":
        axes[1] = torch.export.Dim("tokens", min=2, max=77)
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            encoder,
            (inputs(2),),
            dynamo=True,
            input_names=["x"],
            dynamic_shapes=(axes,),
            opset_version=20,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = words(batch, 4 + batch) if name == "lstm" else inputs(batch)
        with torch.no_grad():
            wanted = encoder(x).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], wanted, atol=1e-4)


def test_what_stands_behind_a_texts_end_changes_nothing() -> None:
    torch.manual_seed(2)
    encoder = ENCODERS["lstm"][0]().eval()
    ids = words(3)
    other = ids.clone()
    other[0, 3:] = 7
    longer = torch.cat([ids, torch.zeros(3, 4, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids), encoder(other))
        torch.testing.assert_close(encoder(ids), encoder(longer))
        assert not encoder.tokens(ids)[0, 3:].any()


def test_a_graphs_features_do_not_depend_on_the_order_of_its_nodes() -> None:
    torch.manual_seed(3)
    encoder, reader = modality(graph, GRAPH)
    encoder.eval()
    one, two, turned = (
        json.dumps(
            {
                "nodes": [{"name": name} for name in names],
                "edges": [{"source": source, "target": target, "relation": "on"}],
            }
        ).encode()
        for names, source, target in (("abc", 0, 2), ("cab", 1, 0), ("abc", 2, 0))
    )
    with torch.no_grad():
        first, second, third = encoder(torch.from_numpy(reader.read([one, two, turned])))
        tokens = encoder.tokens(torch.from_numpy(reader.read([one])))[0]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    assert (first - third).abs().max() > 1e-3  # which end an edge leaves does matter
    assert tokens[:3].any(dim=1).all()
    assert not tokens[3:].any()


def test_only_the_transformer_sees_the_order_of_frames() -> None:
    for name, seen in (("video_mean", False), ("video_attention", False), ("video_transformer", True)):
        torch.manual_seed(4)
        encoder = ENCODERS[name][0]().eval()
        for parameter in encoder.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        x = clips(2)
        with torch.no_grad():
            moved = (encoder(x) - encoder(x.flip(1))).abs().max()
        assert (moved > 1e-3) == seen, name


@pytest.mark.parametrize(
    ("module", "section", "message"),
    [
        (audio, {**AUDIO, "mean": -4.0}, "both mean and std"),
        (audio, {**AUDIO, "window_ms": 100.0, "seconds": 0.05}, "longer than a clip"),
        (audio, {**AUDIO, "blocks": [1]}, "one number a stage"),
        (video, {**VIDEO, "pooling": "transformer", "heads": 3}, "heads 3 does not divide"),
        (video, {**VIDEO, "pooling": "max"}, "mean"),
        (video, {**VIDEO, "cnn": {**CNN, "scales": 3}, "pooling": "mean"}, "there are 2 stages"),
    ],
)
def test_params_that_cannot_be_built_are_refused(module: Any, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        module.Params.model_validate(section)
