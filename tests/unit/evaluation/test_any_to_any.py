"""Any modality finds any other; a head without a modality; classes by name; the measures of each task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyweft.data.reader import Reader
from polyweft.data.shards import Sample
from polyweft.errors import MediaError
from polyweft.evaluation.evaluator import Evaluation, evaluate_split
from polyweft.evaluation.report import page
from tests.unit.evaluation.table_model import TableModel, params, readers, sample

CLASSES = ["ant", "bee"]
Readers = dict[str, Reader]


@pytest.fixture
def words(tmp_path: Path) -> Readers:
    return readers(tmp_path)


def evaluate(model: TableModel, rows: list[Sample], **changes: Any) -> Evaluation:
    return evaluate_split(model, rows, params(**changes), seed=5)


def three(words: Readers, count: int = 20, **more: Any) -> TableModel:
    """Image, text and clip n have the same embedding; clips of the second half are heard wrong."""
    vectors = np.eye(count, dtype=np.float32)
    heard = vectors.copy()
    heard[count // 2 :] = np.roll(heard[count // 2 :], 1, axis=0)
    texts = {f"word {i}": vectors[i] for i in range(count)}
    return TableModel(words, vectors, texts, audio=heard, **more)


def rows_of(count: int = 20, **more: Any) -> list[Sample]:
    return [
        sample(i, i, [f"word {i}"], audio=i, label=CLASSES[i % 2], classes=CLASSES, **more)
        for i in range(count)
    ]


def test_every_ordered_pair_of_modalities_is_measured(words: Readers) -> None:
    found = evaluate(three(words), rows_of()).metrics
    for a, b, expected in (("image", "text", 1.0), ("image", "audio", 0.5), ("text", "audio", 0.5)):
        for way in (f"{a}_to_{b}", f"{b}_to_{a}"):
            assert found[f"{way}_recall_at_1"] == expected, way
            assert found[f"{way}_recall_at_1_low"] <= expected <= found[f"{way}_recall_at_1_high"]
    each = [found[f"{way}_mrr"] for way in ("image_to_text", "image_to_audio", "text_to_audio")]
    assert found["mrr"] == pytest.approx(np.mean(each))
    assert (found["retrieval_images"], found["retrieval_captions"], found["retrieval_audio"]) == (20, 20, 20)


def test_a_pair_is_measured_over_the_rows_that_have_both(words: Readers) -> None:
    rows = [sample(i, i, [f"word {i}"]) for i in range(10)]
    rows += [sample(10 + i, None, [f"word {i}"], audio=i) for i in range(10)]
    found = evaluate(three(words), rows)
    assert not [name for name in found.metrics if "image_to_audio" in name]
    assert found.metrics["text_to_audio_recall_at_1"] == 1.0
    assert found.metrics["samples_without_audio"] == found.metrics["samples_without_image"] == 10
    ranks = found.predictions
    assert ranks["text_to_audio_rank"] == [None] * 10 + [1] * 10
    assert ranks["image_to_text_rank"] == [1] * 10 + [None] * 10
    assert sorted({unit.split(":")[0] for unit in found.rows["unit_id"]}) == ["audio", "image"]


def test_a_clip_that_several_rows_bear_finds_any_of_their_images(words: Readers) -> None:
    vectors = np.eye(6, dtype=np.float32)
    model = TableModel(words, vectors, {}, audio=vectors)
    rows = [sample(i, i, [], audio=i // 3 * 3) for i in range(6)]
    found = evaluate(model, rows)
    assert found.metrics["retrieval_audio"] == 2
    assert found.predictions["audio_to_image_rank"] == [1, 1, 1, 1, 1, 1]
    # Each clip is like an image of the other: before its own best stand that one and two that tie.
    model = TableModel(words, vectors, {}, audio=np.roll(vectors, 3, axis=0))
    assert evaluate(model, rows).predictions["audio_to_image_rank"] == [4] * 6


def test_a_model_without_a_joint_space_is_not_asked_to_retrieve(words: Readers) -> None:
    model = TableModel(
        words, np.zeros((20, 0), np.float32), {}, classes=CLASSES, answers=np.eye(2)[[0, 1] * 10]
    )
    found = evaluate(model, rows_of())
    assert found.metrics["accuracy"] == 1.0
    assert not [name for name in found.metrics if "recall" in name or name == "mrr"]
    assert "Confusion" in page(found, rows_of(), split="test")


def answers_by_number(count: int = 20) -> np.ndarray:
    return np.eye(2)[np.arange(count) % 2]


def test_a_modality_is_taken_away_where_another_is_left(words: Readers) -> None:
    # Without the image, the table's head goes by the clip, of which the second half is heard wrong.
    rows = [*rows_of(), sample(50, 3, [], label="bee", classes=CLASSES)]
    model = three(words, classes=CLASSES, answers=answers_by_number(), sees=["image", "audio"])
    found = evaluate(model, rows)
    assert found.metrics["accuracy"] == 1.0
    assert {(line.modality, line.samples) for line in found.removals} == {("image", 20), ("audio", 20)}
    assert found.metrics["accuracy_without_audio"] == found.metrics["accuracy_with_audio"] == 1.0
    assert found.metrics["accuracy_with_image"] == 1.0
    assert found.metrics["accuracy_without_image"] == 1.0
    assert "accuracy_without_image_imputed" not in found.metrics
    removed = [p for p in model.seen_present if not p[:, 0].any()]
    assert sum(map(len, removed)) == 20


def test_a_modality_is_also_taken_away_from_the_rows_that_are_no_leaks_alone(words: Readers) -> None:
    rows = [replace(row, leak=place < 5) for place, row in enumerate(rows_of())]
    model = three(words, classes=CLASSES, answers=answers_by_number(), sees=["image", "audio"])
    found, clean = evaluate(model, rows).metrics, evaluate(model, rows[5:]).metrics
    assert {line.samples for line in evaluate(model, rows).removals} == {20}
    for name in ("accuracy_with_image", "accuracy_without_image"):
        for end in ("", "_low", "_high"):
            assert found[f"{name}_without_leaks{end}"] == pytest.approx(clean[f"{name}{end}"])


def test_both_stand_ins_for_what_is_absent_are_compared(words: Readers) -> None:
    rows = rows_of()
    model = three(words, classes=CLASSES, answers=answers_by_number(), sees=["image", "audio"])
    model.imputes = True
    found = evaluate(model, rows)
    assert found.metrics["accuracy_without_image_imputed"] == 1.0
    assert found.metrics["accuracy_without_image_learned"] == 0.5  # all zero: the first class
    assert found.metrics["accuracy_without_image"] == 0.5
    html = page(found, rows, split="test")
    assert "Without, reconstructed" in html
    assert "Without a modality" in html
    assert "Recall@10 from any to any" in html


def test_a_head_that_sees_one_modality_loses_none(words: Readers) -> None:
    model = three(words, classes=CLASSES, answers=answers_by_number())
    assert evaluate(model, rows_of()).removals == []


def test_labels_and_numbers_are_measured_beside_classes(words: Readers) -> None:
    names = ["high", "odd"]
    rows = [
        sample(i, i, [], label=CLASSES[i % 2], classes=CLASSES, target=float(i), labels=["odd"][: i % 2])
        for i in range(10)
    ]
    tables = {
        "probabilities": answers_by_number(10),
        "label_probabilities": np.stack([np.linspace(0, 0.4, 10), np.arange(10) % 2 * 0.9], axis=1),
        "value": np.arange(10)[:, None] + 0.5,
    }
    model = TableModel(
        words, np.zeros((10, 0), np.float32), {}, classes=CLASSES, labels=names, answers=tables
    )
    found = evaluate(model, rows)
    assert found.metrics["labelled_samples"] == 5  # a row without labels has none that are known
    assert found.metrics["label_micro_f1"] == found.metrics["label_map"] == 1.0
    assert [(line.name, line.support) for line in found.label_reports] == [("high", 0), ("odd", 5)]
    assert (found.metrics["mae"], found.metrics["rmse"]) == (0.5, 0.5)
    assert found.metrics["pearson"] == pytest.approx(1.0)
    assert found.metrics["roc_auc"] == 1.0
    assert found.predictions["predicted_labels"] == [["odd"] if i % 2 else [] for i in range(10)]
    assert found.predictions["value"] == [i + 0.5 for i in range(10)]


def test_a_metric_that_is_undefined_is_left_out(words: Readers) -> None:
    rows = [sample(i, i, [], label="bee", classes=CLASSES, target=1.0) for i in range(4)]
    tables = {"probabilities": answers_by_number(4), "value": np.ones((4, 1))}
    model = TableModel(words, np.zeros((4, 0), np.float32), {}, classes=CLASSES, answers=tables)
    found = evaluate(model, rows).metrics
    assert found["accuracy"] == 0.5
    assert not {"roc_auc", "roc_auc_low", "r2", "pearson"} & set(found)


def test_classes_are_told_by_the_mean_of_their_prompts(words: Readers) -> None:
    vectors = np.eye(4, dtype=np.float32)
    prompts = {"a ant": vectors[0], "one ant": vectors[2], "a bee": vectors[1], "one bee": vectors[1]}
    model = TableModel(words, vectors, prompts, audio=vectors, classes=CLASSES)
    rows = [
        sample(i, i, [], audio=i, label=label, classes=CLASSES)
        for i, label in enumerate(["ant", "bee", "bee", "ant"])
    ]
    found = evaluate(model, rows, zero_shot_templates=["a {}", "one {}"]).metrics
    # Image 2 is like "one ant" and so an ant; image 3 is like nothing: a tie, and so a mistake.
    assert found["zero_shot_accuracy"] == found["zero_shot_accuracy_audio"] == 0.5
    assert found["zero_shot_accuracy_low"] <= 0.5 <= found["zero_shot_accuracy_high"]
    assert "zero_shot_accuracy" not in evaluate(model, rows).metrics


def test_a_content_of_any_modality_that_cannot_be_read_names_its_row(words: Readers) -> None:
    rows = rows_of(4)
    rows[2].media["audio"] = b"not a number"
    with pytest.raises(MediaError, match=r"audio of sample 'row-2'"):
        evaluate(three(words), rows)


def test_features_by_position_are_joined_whatever_their_length(words: Readers) -> None:
    class Positions(TableModel):
        """Texts have as many positions as they have tokens; the head looks at the sum."""

        def encode(self, modality: str, inputs: Any) -> Any:
            embedding, features = super().encode(modality, inputs)
            length = inputs.shape[1] if modality == "text" else 1
            positions = np.zeros((len(features), length, features.shape[1]), np.float32)
            positions[:, 0] = features
            return embedding, positions

        def answer(self, features: Any, present_BM: Any, *, impute: bool | None = None) -> Any:
            assert all(part.ndim == 3 for part in features.values())
            assert features["text"].shape[1] == 6
            return super().answer({n: part.sum(axis=1) for n, part in features.items()}, present_BM)

    rows = [sample(i, i, ["a " * (i % 4 + 1)], label=CLASSES[i % 2], classes=CLASSES) for i in range(12)]
    model = Positions(words, np.eye(12), {}, classes=CLASSES, answers=answers_by_number(12))
    assert evaluate(model, rows, batch_size=2).metrics["accuracy"] == 1.0
