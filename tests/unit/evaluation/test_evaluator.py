"""What a model is credited with, on samples whose right answers are known."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyweft.config import parse_section
from polyweft.data.reader import Reader
from polyweft.data.shards import Sample
from polyweft.errors import ConfigError, DataError, MediaError, PolyweftError
from polyweft.evaluation.confidence import paired_difference
from polyweft.evaluation.evaluator import EvaluateParams, Evaluation, evaluate_split
from tests.unit.evaluation.table_model import TableModel, params, readers, sample, unit_rows

Readers = dict[str, Reader]
CLASSES = ["ant", "bee"]
HEADLINE = [
    *(f"{way}_recall_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)),
    "mean_average_precision",
    "ndcg_at_10",
    "mrr",
]


@pytest.fixture
def words(tmp_path: Path) -> Readers:
    return readers(tmp_path)


def evaluate(model: TableModel, rows: Sequence[Sample], **changes: Any) -> Evaluation:
    return evaluate_split(model, rows, params(**changes), seed=5)


def perfect(words: Readers, **more: Any) -> tuple[TableModel, list[Sample]]:
    """30 pictures; rows 0 and 1 bear the same caption, and each row has a Chinese one of its own."""
    vectors = np.eye(30, dtype=np.float32)
    vectors[1] = vectors[0]
    texts = {f"word {max(i, 1)}": vectors[i] for i in range(30)} | {f"字 {i}": vectors[i] for i in range(30)}
    rows = [sample(i, i, [f"word {max(i, 1)}", f"字 {i}"], **more) for i in range(30)]
    return TableModel(words, vectors, texts), rows


def test_a_model_that_knows_every_pair_scores_one_also_where_a_caption_has_two_right_images(
    words: Readers,
) -> None:
    # Row 0 and row 1 look alike to the model: their Chinese captions each have one right image, and tie.
    model, rows = perfect(words)
    found = evaluate(model, rows, languages=["en"]).metrics
    for name in HEADLINE:
        assert (found[name], found[f"{name}_low"], found[f"{name}_high"]) == (1.0, 1.0, 1.0), name
    assert (found["retrieval_images"], found["retrieval_captions"]) == (30, 29)
    assert evaluate(model, rows).metrics["text_to_image_recall_at_1"] == pytest.approx(57 / 59)


def test_true_recall_is_another_number(words: Readers) -> None:
    model, rows = perfect(words)
    found = evaluate(model, rows, languages=["en"]).metrics
    assert found["text_to_image_recall_at_1"] == 1.0
    assert found["text_to_image_true_recall_at_1"] == pytest.approx(28.5 / 29)


def test_a_constant_model_scores_nothing(words: Readers) -> None:
    rows = [sample(i, i, [f"word {i}"]) for i in range(60)]
    one = unit_rows(np.random.default_rng(0), 1, 48)
    model = TableModel(words, np.repeat(one, 60, axis=0), {f"word {i}": one[0] for i in range(60)})
    found = evaluate(model, rows).metrics
    assert all(found[f"{way}_recall_at_10"] == 0 for way in ("image_to_text", "text_to_image"))
    assert found["mrr"] == pytest.approx(1 / 60)


def noisy(words: Readers, rows: int = 40, **more: Any) -> tuple[TableModel, list[Sample]]:
    generator = np.random.default_rng(9)
    vectors = unit_rows(generator, rows, 12)
    texts = {}
    for i in range(rows):
        for text in (f"word {i}", f"字 {i}"):
            mixed = vectors[i] + generator.normal(size=12) * 0.35
            texts[text] = (mixed / np.linalg.norm(mixed)).astype(np.float32)
    answers = np.eye(2)[generator.integers(0, 2, rows)]
    samples = [
        sample(i, i, [f"word {i}", f"字 {i}"], label=CLASSES[i % 2], classes=CLASSES, leak=i % 5 == 0, **more)
        for i in range(rows)
    ]
    return TableModel(words, vectors, texts, classes=CLASSES, answers=answers), samples


def test_metrics_do_not_depend_on_the_order_of_rows_or_the_size_of_batches(words: Readers) -> None:
    model, rows = noisy(words)
    first = evaluate(model, rows).metrics
    order = np.random.default_rng(0).permutation(len(rows))
    for other in (
        evaluate(model, [rows[i] for i in order]).metrics,
        evaluate(model, rows, batch_size=1).metrics,
    ):
        points = {name: value for name, value in first.items() if not name.endswith(("_low", "_high"))}
        assert {name: other[name] for name in points} == pytest.approx(points)
    assert first["samples"] == 40
    assert 0 < first["text_to_image_recall_at_1"] < 1


def test_a_row_a_caption_gives_the_same_as_a_row_an_image(words: Readers) -> None:
    model, rows = noisy(words)
    texts = [(i, caption["text"] or "") for i, row in enumerate(rows) for caption in row.captions]
    split_up = [sample(100 + n, i, [text]) for n, (i, text) in enumerate(texts)]
    together = evaluate(model, rows).metrics
    apart = evaluate(model, split_up).metrics
    for name in HEADLINE:
        for ending in ("", "_low", "_high"):
            assert apart[name + ending] == pytest.approx(together[name + ending])
    assert apart["retrieval_images"] == 40


def test_every_metric_has_an_interval_around_it(words: Readers) -> None:
    model, rows = noisy(words)
    found = evaluate(model, rows).metrics
    for name in [*HEADLINE, "accuracy", "macro_f1", "accuracy_without_leaks", "mrr_without_leaks"]:
        assert 0 <= found[f"{name}_low"] <= found[name] <= found[f"{name}_high"] <= 1, name
        if found[name] < 0.95:
            assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_without_leaks_is_the_evaluation_of_the_other_rows(words: Readers) -> None:
    model, rows = noisy(words)
    with_leaks = evaluate(model, rows).metrics
    others = evaluate(model, [row for row in rows if not row.leak]).metrics
    assert with_leaks["leaks"] == 8
    for name in [*HEADLINE, "accuracy", "macro_f1"]:
        assert with_leaks[f"{name}_without_leaks"] == pytest.approx(others[name])
        assert f"{name}_without_leaks" not in others


def test_captions_equal_after_cleaning_are_one_caption(words: Readers) -> None:
    vectors = np.eye(3, dtype=np.float32)
    rows = [sample(0, 0, ["a  cat"]), sample(1, 1, ["a cat​", "ａ cat"]), sample(2, 2, ["dog"])]
    model = TableModel(words, vectors, {"a cat": vectors[0], "dog": vectors[2]})
    found = evaluate(model, rows).metrics
    assert (found["retrieval_captions"], found["retrieval_images"]) == (2, 3)
    assert found["text_to_image_recall_at_1"] == 1.0


def test_languages_and_the_choice_of_the_first_caption_select_queries_and_gallery(
    words: Readers,
) -> None:
    model, rows = noisy(words)
    assert evaluate(model, rows).metrics["retrieval_captions"] == 80
    first = evaluate(model, rows, caption_choice="first").metrics
    english = evaluate(model, rows, languages=["en"]).metrics
    assert first == english
    assert evaluate(model, rows, languages=["zh"]).metrics["mrr"] != english["mrr"]
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate(TableModel(words, np.eye(40), {}), rows, languages=["fr"])


def test_rows_that_lack_a_modality_are_counted_and_left_out_of_retrieval(words: Readers) -> None:
    model, rows = noisy(words)
    extra = [sample(90, None, ["word 3"]), sample(91, 4, []), sample(92, 5, ["https://a.example"])]
    found = evaluate(model, [*rows, *extra])
    assert found.metrics["samples"] == 43
    assert found.metrics["samples_without_image"] == 1
    assert found.metrics["samples_without_caption"] == 2
    assert found.metrics["mrr"] == pytest.approx(evaluate(model, rows).metrics["mrr"])
    assert found.predictions["image_to_text_rank"][40:] == [None, None, None]


@pytest.mark.parametrize(
    ("sees", "classified"), [(["image"], [0, 2]), (["text"], [0, 1]), (["image", "text"], [0, 1, 2])]
)
def test_a_row_is_classified_where_the_head_sees_something_of_it(
    words: Readers, sees: list[str], classified: list[int]
) -> None:
    vectors = np.eye(4, dtype=np.float32)
    more: dict[str, Any] = {"label": "ant", "classes": CLASSES}
    rows = [sample(0, 0, ["one"], **more), sample(1, None, ["one"], **more), sample(2, 2, [], **more)]
    rows += [sample(3, 3, ["one"], label="wasp", classes=CLASSES), sample(4, None, [], **more)]
    answers = np.tile([[0.9, 0.1]], (4, 1))
    model = TableModel(words, vectors, {"one": vectors[0]}, classes=CLASSES, answers=answers, sees=sees)
    found = evaluate(model, rows)
    assert found.rows["row_id"].tolist() == [f"row-{i}" for i in classified]
    assert found.metrics["classified_samples"] == len(classified)
    assert found.predictions["predicted"][4] is None
    seen = np.concatenate(model.seen_present)
    assert set(map(tuple, seen.astype(int))) <= {(1, 1), (0, 1), (1, 0)}


def test_accuracy_compares_names_so_that_a_champion_may_order_its_classes_otherwise(
    words: Readers,
) -> None:
    model, rows = noisy(words)
    other = TableModel(
        words,
        model.embeddings["image"],
        {},
        classes=CLASSES[::-1],
        answers=model.answers["probabilities"][:, ::-1],
    )
    other.texts = model.texts
    first, second = evaluate(model, rows), evaluate(other, rows)
    assert first.metrics == second.metrics
    assert paired_difference(first.rows, second.rows, "macro_f1", samples=100, seed=0) == (0, 0, 0)


def test_without_classes_there_is_no_accuracy(words: Readers) -> None:
    model, rows = perfect(words)
    found = evaluate(model, rows)
    assert not {"accuracy", "macro_f1"} & set(found.metrics)
    assert found.class_reports == []
    assert found.metrics["classified_samples"] == 0


def test_the_table_of_predictions_holds_what_the_metrics_say(words: Readers) -> None:
    model, rows = noisy(words)
    found = evaluate(model, rows, caption_choice="first")
    table, metrics = found.predictions, found.metrics
    assert {len(column) for column in table.values()} == {40}
    right = [guess == label for guess, label in zip(table["predicted"], table["label"], strict=True)]
    assert np.mean(right) == pytest.approx(metrics["accuracy"])
    assert np.trace(found.confusion_CC) == sum(right)
    for way in ("image_to_text", "text_to_image"):
        ranks = np.array(table[f"{way}_rank"])
        assert (ranks <= 5).mean() == pytest.approx(metrics[f"{way}_recall_at_5"])
    curve = {(line["direction"], line["k"]): line["recall"] for line in found.recall_curve}
    assert curve["text_to_image", 10] == metrics["text_to_image_recall_at_10"]
    assert curve["text_to_image", 50] == 1.0


def test_examples_show_the_images_that_a_caption_finds(words: Readers) -> None:
    model, rows = perfect(words)
    example = evaluate(model, rows, languages=["en"]).examples[0]
    assert example.caption == "word 1"
    assert set(example.rows[:2]) == {0, 1}
    assert example.right[:3] == [True, True, False]


@pytest.mark.parametrize("where", ["images", "texts", "answers"])
def test_nan_is_an_error_and_no_metric(words: Readers, where: str) -> None:
    model, rows = noisy(words)
    if where == "images":
        model.embeddings["image"][3, 0] = np.nan
    elif where == "answers":
        model.answers["probabilities"][3] = np.nan
    else:
        next(iter(model.texts.values()))[0] = np.nan
    with pytest.raises(PolyweftError, match="NaN"):
        evaluate(model, rows)


def test_a_split_with_no_rows_and_a_broken_image_name_themselves(words: Readers) -> None:
    model, rows = perfect(words)
    with pytest.raises(DataError, match=r"split 'test' has no rows.*evaluate\.split"):
        evaluate(model, [])
    broken = replace(rows[2], media={"image": b"\x89PNG broken"})
    with pytest.raises(MediaError, match="row-2"):
        evaluate(model, [broken])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "dev"),
        ("bootstrap_samples", 5),
        ("batch_size", 0),
        ("caption_choice", "last"),
        ("zero_shot_templates", ["a photo"]),
        ("zero_shot_templates", ["{} and {}"]),
    ],
)
def test_parameters_have_bounds(key: str, value: object) -> None:
    section = {**params().model_dump(), key: value}
    with pytest.raises(ConfigError, match=f"evaluate.{key}"):
        parse_section(EvaluateParams, "evaluate", section, where="params.yaml")


def test_600_rows_with_two_captions_and_1000_resamples_take_less_than_two_seconds(
    words: Readers,
) -> None:
    model, rows = noisy(words, rows=600)
    begin = time.process_time()
    evaluate(model, rows, bootstrap_samples=1000, batch_size=128)
    assert time.process_time() - begin < 2.0
