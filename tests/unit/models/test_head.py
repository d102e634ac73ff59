"""The head answers its tasks, copes with what is missing, learns, and exports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from polyweft.errors import ConfigError
from polyweft.losses.targets import Targets
from polyweft.models.family import BuildContext
from polyweft.models.fusion import FUSIONS, TOKEN_FUSIONS
from polyweft.models.head import Head, HeadParams, build_head

MODALITIES = ["image", "text", "audio"]
EVERY = {"single_label": 1.0, "multi_label": 1.0, "regression": 1.0}
F, ROWS = 8, 6


def _params(**changes: Any) -> HeadParams:
    plain = {
        "sees": MODALITIES, "fusion": "early", "hidden": 16, "dropout": 0.0, "missing": "learned",
        "tasks": {"single_label": 1.0}, "heads": 2,
    }  # fmt: skip
    return HeadParams.model_validate(plain | changes)


def _head(**changes: Any) -> Head:
    torch.manual_seed(0)
    return Head(_params(**changes), MODALITIES, F, classes=3, labels=4)


def _features(rows: int = ROWS, *, tokens: bool = False, seed: int = 1, extra: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(rows, 3 + m + extra, F) if tokens else (rows, F) for m in range(3)]
    return {m: torch.randn(s, generator=generator) for m, s in zip(MODALITIES, shapes, strict=True)}


PRESENT = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]])


def _targets() -> Targets:
    labels = torch.tensor([[1.0, 0, 0, 1]]).repeat(ROWS, 1)
    labels[2] = torch.nan
    return Targets(
        class_B=torch.tensor([0, 1, 2, -1, 1, 0]),
        labels_BK=labels,
        value_B=torch.tensor([1.0, 2, 3, torch.nan, 5, 6]),
        keys={name: torch.arange(ROWS) for name in MODALITIES},
        present_BM=torch.ones(ROWS, 3),
        modalities=MODALITIES,
        ids_BT=torch.zeros(ROWS, 1, dtype=torch.int64),
    )


@pytest.mark.parametrize("missing", ["learned", "impute"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_trains_on_every_task_with_modalities_missing(fusion: str, missing: str) -> None:
    head = _head(fusion=fusion, missing=missing, tasks=EVERY, balance="uncertainty", decisions="weighted")
    features = {name: x.requires_grad_() for name, x in _features(tokens=fusion in TOKEN_FUSIONS).items()}
    outputs = head(features, PRESENT)
    assert all(len(value) == ROWS for value in outputs.values())
    losses = head.losses(outputs, _targets())
    assert set(losses) == {*EVERY, *({"imputation"} if missing == "impute" else ())}
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    answers = head.eval().answers(head(features, PRESENT))
    assert {name: list(value.shape[1:]) for name, value in answers.items()} == head.outputs()
    torch.testing.assert_close(answers["probabilities"].sum(dim=1), torch.ones(ROWS))


@pytest.mark.parametrize("impute", [None, False])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_what_an_absent_modality_holds_is_not_looked_at(fusion: str, impute: bool | None) -> None:
    tokens = fusion in TOKEN_FUSIONS
    head = _head(fusion=fusion, missing="impute").eval()
    one, other = _features(tokens=tokens), _features(tokens=tokens, seed=2)
    there = {m: PRESENT[:, i].view(-1, *[1] * (2 if tokens else 1)) for i, m in enumerate(MODALITIES)}
    mixed = {m: one[m] * there[m] + other[m] * (1 - there[m]) for m in MODALITIES}
    expected = head(one, PRESENT, impute)["single_label"]
    torch.testing.assert_close(head(mixed, PRESENT, impute)["single_label"], expected)


def test_it_looks_only_at_what_it_sees() -> None:
    head = _head(sees=["audio", "image"]).eval()
    assert head.sees == ["image", "audio"]
    one = _features()
    other = one | {"text": torch.randn(ROWS, F)}
    swapped = PRESENT.clone()
    swapped[:, 1] = 1 - swapped[:, 1]
    assert torch.equal(head(one, PRESENT)["single_label"], head(other, swapped)["single_label"])


def test_imputation_learns_to_reconstruct_and_answers_better_than_without() -> None:
    """Audio repeats the image: a head that saw both reconstructs one from the other."""
    torch.manual_seed(0)
    head = _head(sees=["image", "audio"], missing="impute", impute_weight=1.0)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    whole = replace(_targets(), labels_BK=torch.full((64, 4), torch.nan), present_BM=torch.ones(64, 3))
    errors = []
    for step in range(150):
        image = torch.randn(64, F, generator=generator)
        targets = replace(whole, class_B=image[:, :3].argmax(dim=1), value_B=torch.full((64,), torch.nan))
        present = torch.ones(64, 3)
        present[: 16 * (step % 3), 0] = 0
        outputs = head({"image": image, "audio": 2 * image}, present)
        loss = head.losses(outputs, targets)
        errors.append(loss["imputation"].item())
        optimizer.zero_grad()
        torch.stack(list(loss.values())).sum().backward()
        optimizer.step()
    assert errors[-1] < 0.3 * errors[0]
    assert "single_label.learned" in outputs
    assert "reconstruction" not in head.eval()({"image": image, "audio": image}, present)


def test_the_imputation_target_and_its_source_get_no_gradient_from_it() -> None:
    head = _head(missing="impute")
    features = {name: x.requires_grad_() for name, x in _features().items()}
    outputs = head(features, PRESENT)
    head.imputation_loss(outputs, _targets()).backward()
    assert all(x.grad is None or not x.grad.any() for x in features.values())


def test_a_dropped_modality_is_reconstructed_and_a_missing_one_is_not_a_target() -> None:
    head = _head(sees=["image", "text"], missing="impute")
    dropped = torch.tensor([[1.0, 0, 1]]).repeat(ROWS, 1)
    outputs = head(_features(), dropped)
    loss = head.imputation_loss(outputs, _targets())
    # text alone can be reconstructed, from the image; it is there, though dropped
    torch.testing.assert_close(loss, outputs["reconstruction"][:, 1].mean())
    assert head.imputation_loss(outputs, replace(_targets(), present_BM=dropped)) == 0


def test_values_are_standardised_for_the_loss_and_served_in_their_own_unit() -> None:
    head = _head(tasks={"regression": 1.0}).eval()
    targets = _targets()
    head.prepare(targets.class_B, targets.labels_BK, targets.value_B * 1000)
    known = targets.value_B[~targets.value_B.isnan()] * 1000
    raw = {"regression": torch.zeros(ROWS, 1)}
    torch.testing.assert_close(head.answers(raw)["value"], known.mean().expand(ROWS, 1))
    raw = {
        "regression": (targets.value_B.nan_to_num()[:, None] * 1000 - known.mean()) / known.std(correction=0)
    }
    assert head.losses(raw, replace(targets, value_B=targets.value_B * 1000))["regression"] < 1e-6


def test_balanced_weights_come_from_the_training_split() -> None:
    head, targets = _head(class_weights="balanced", tasks=EVERY), _targets()
    head.prepare(targets.class_B, targets.labels_BK, targets.value_B)
    assert head.class_weights.tolist() == pytest.approx([5 / 6, 5 / 6, 5 / 3])
    assert head.label_weights.tolist() == pytest.approx([0.01, 5.0, 5.0, 0.01])
    plain = _head(tasks=EVERY)
    plain.prepare(targets.class_B, targets.labels_BK, targets.value_B)
    assert plain.class_weights.tolist() == [1.0, 1.0, 1.0]


def test_two_classes_may_be_one_logit() -> None:
    head = Head(_params(tasks={"binary": 1.0}), MODALITIES, F, classes=2, labels=0).eval()
    raw = head(_features(), PRESENT)
    assert raw["binary"].shape == (ROWS, 1)
    assert head.outputs() == {"probabilities": [2]}
    yes = head.answers(raw)["probabilities"][:, 1]
    torch.testing.assert_close(yes, raw["binary"][:, 0].sigmoid())


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_exported_head_answers_as_the_trained_one(fusion: str, exports: Path) -> None:
    """With other batches and lengths than those it was exported with, and with modalities missing."""
    import onnxruntime

    tokens, missing = fusion in TOKEN_FUSIONS, "impute" if fusion in ("early", "mid") else "learned"
    head = _head(fusion=fusion, missing=missing, tasks=EVERY).eval()

    class Answers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = head

        def forward(self, inputs: list[Tensor]) -> tuple[Tensor, ...]:
            answers = self.head.answers(
                self.head(dict(zip(MODALITIES, inputs[:-1], strict=True)), inputs[-1])
            )
            return tuple(answers[name] for name in self.head.outputs())

    inputs = [*_features(2, tokens=tokens).values(), torch.ones(2, 3)]
    batch = torch.export.Dim("batch")
    axes = [
        {0: batch} | ({1: torch.export.Dim(f"length{m}", min=2, max=64)} if tokens else {}) for m in range(3)
    ]
    path = exports / f"{fusion}.onnx"
    names = [f"{m}_features" for m in MODALITIES]
    program = torch.onnx.export(
        Answers().eval(), (inputs,), input_names=[*names, "present"], output_names=list(head.outputs()),
        dynamic_shapes=([*axes, {0: batch}],), dynamo=True, opset_version=20, verbose=False,
    )  # fmt: skip
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, extra in ((1, 0), (ROWS, 5)):
        features, present = _features(rows, tokens=tokens, extra=extra), PRESENT[-rows:]
        features = {name: x.clone() for name, x in features.items()}
        if tokens and rows > 1:
            features["text"][:2, 2:] = 0
        feed = {f"{m}_features": x.numpy() for m, x in features.items()} | {"present": present.numpy()}
        with torch.no_grad():
            expected = head.answers(head(features, present))
        for name, value in zip(head.outputs(), session.run(list(head.outputs()), feed), strict=True):
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "tensor"}, "'early', 'weighted', 'attention', 'gated', 'mid', 'hierarchical' or 'late'"),
        ({"tasks": {"ranking": 1.0}}, "'single_label', 'binary', 'multi_label' or 'regression'"),
        ({"tasks": {"single_label": 1.0, "binary": 1.0}}, "keep one of them"),
        ({"tasks": {"single_label": -1.0}}, "0 or more"),
        ({"tasks": {}}, "at least 1 item"),
        ({"missing": "zero"}, "'learned' or 'impute'"),
    ],
)
def test_what_does_not_exist_is_refused_with_a_list_of_what_does(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        _params(**changes)


def _build(classes: int, labels: int, **changes: Any) -> Head | None:
    context = BuildContext([str(i) for i in range(classes)], [str(i) for i in range(labels)], {}, {})
    return build_head(_params(**changes), MODALITIES[:2], F, context)


@pytest.mark.parametrize(
    ("classes", "labels", "changes", "message"),
    [
        (3, 0, {"sees": ["smell"]}, "sees names 'smell'.*takes image, text"),
        (3, 0, {"sees": ["text"], "missing": "impute"}, "sees text alone"),
        (3, 0, {"sees": ["text"], "fusion": "mid", "heads": 3}, "heads 3 does not divide"),
        (3, 0, {"sees": ["text"], "tasks": {"binary": 1.0}}, "3 classes; it needs exactly two"),
        (3, 0, {"sees": ["text"], "tasks": {"multi_label": 1.0}}, "the data have no labels"),
        (0, 3, {"sees": ["text"], "tasks": {"single_label": 1.0, "multi_label": 1.0}}, "needs two or more"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(
    classes: int, labels: int, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _build(classes, labels, **changes)


def test_regression_without_a_single_target_is_refused_before_training() -> None:
    targets = _targets()
    none = torch.full((ROWS,), torch.nan)
    with pytest.raises(ConfigError, match=r"has regression, but none of the 6 rows of train .*`target`"):
        _head(tasks={"regression": 1.0}).prepare(targets.class_B, targets.labels_BK, none)
    _head().prepare(targets.class_B, targets.labels_BK, none)


def test_without_classes_a_head_of_classes_alone_is_not_built() -> None:
    assert _build(0, 0, sees=["text"]) is None
    assert build_head(None, MODALITIES, F, BuildContext([], [], {}, {})) is None
