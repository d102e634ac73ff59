"""Turn the aligned manifest into what training reads: splits without leaks, a tokenizer, shards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from polyweft.config import RuntimeParams, Section
from polyweft.data.media import MediaStore
from polyweft.data.records import SPLITS
from polyweft.data.shards import DATASET_FILE, Sample, write_split
from polyweft.data.splits import Row, SplitPlan, find_leaks, plan_splits
from polyweft.data.tokenizer_training import (
    ALPHABET,
    TokenizerChoice,
    TokenizerKind,
    load_tokenizer,
    write_tokenizer,
)
from polyweft.data.usable_rows import DROPPED, UsableRows, class_names, unseen_labels, usable_rows
from polyweft.errors import DataError
from polyweft.io import read_table, write_json, write_table
from polyweft.modalities import MEDIA, MODALITIES, medium_or
from polyweft.report import Report
from polyweft.workspace import workspace
from stages.entry import enter

if TYPE_CHECKING:
    import pyarrow as pa

MIN_TRAIN = 2

Medium = Annotated[str, AfterValidator(medium_or())]


class PrepareParams(Section):
    """Section `prepare`."""

    tokenizer: TokenizerKind = Field(description="auto: CLIP's vocabulary where clip_vocabulary holds it")
    vocabulary_size: int = Field(ge=ALPHABET, le=1_000_000, description="at most; CLIP's is fixed")
    max_tokens: int = Field(ge=4, le=77, description="start and end included")
    lowercase: bool
    clip_vocabulary: str | None = Field(description="folder with CLIP's vocab.json and merges.txt")
    tokenizer_folder: str | None = Field(default=None, description="for folder: a pretrained text model's")
    test_fraction: float = Field(gt=0, lt=1, description="where the source has no test split")
    validation_fraction: float = Field(gt=0, lt=1, description="where the source has no validation split")
    link_media: list[Medium] = Field(description="equal media of these kinds bind rows and make leaks")
    link_checks: list[str] = Field(
        description="names of checks of `align` whose pairs of rows bind them and make leaks"
    )
    difficulty: Literal["column", "alignment"] = Field(
        default="column", description="for a curriculum: the source's, or the score of mismatched pairs"
    )
    leaks: Literal["mark", "drop"] = Field(description="rows of validation and test that stand in train")
    unseen_labels: Literal["fail", "report"] = Field(
        default="fail", description="labels of validation and test that no row of train bears"
    )
    languages: list[str] | None = Field(description="keep captions of these and of unknown language")
    shard_samples: int = Field(ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _leaves_train(self) -> PrepareParams:
        if self.test_fraction + self.validation_fraction >= 1:
            raise ValueError("test_fraction + validation_fraction must be below 1, so that train has rows")
        return self


def run(params: PrepareParams, runtime: RuntimeParams, *, ingested: Path, aligned: Path, out: Path) -> Report:
    """Split, clean, tokenize and shard what `align` let through."""
    out.mkdir(parents=True, exist_ok=True)
    data = usable_rows(read_table(aligned / "manifest.parquet"), params.languages)
    if params.difficulty == "alignment":
        scores = read_table(aligned / "scores.parquet").to_pydict()
        score = dict(zip(scores["id"], scores["score"], strict=True))
        data = replace(data, rows=[row | {"difficulty": score.get(row["id"])} for row in data.rows])
    classes = class_names(data.rows)
    split_rows = [_split_row(row, params.link_media) for row in data.rows]
    links = _links(aligned / "findings.parquet", params.link_checks)
    plan = plan_splits(
        split_rows,
        [pair for pairs in links.values() for pair in pairs],
        test_fraction=params.test_fraction,
        validation_fraction=params.validation_fraction,
        seed=runtime.seed,
    )
    order = _order(plan, params.leaks, runtime.seed)
    unseen = unseen_labels(data.rows, order)
    if unseen and params.unseen_labels == "fail":
        raise DataError(
            f"no row of train bears {len(unseen)} of the labels of validation and test: "
            f"{', '.join(map(repr, unseen[:10]))}. Nothing can learn them: give train rows of each, leave "
            "those rows out, or set prepare.unseen_labels to report."
        )
    tokenizer = _tokenizer(params, out, data, order) if any(data.captions) else None
    store, shards = MediaStore(ingested), {}
    for split in SPLITS:
        samples = _samples(data, plan, classes, order[split], store)
        shards[split] = write_split(out, split, samples, shard_samples=params.shard_samples)
    write_table(out / "manifest.parquet", _manifest(data.table, plan, order))
    dataset = _dataset(data, classes, order, shards)
    write_json(out / DATASET_FILE, dataset)
    facts: dict[str, Any] = {name: len(dataset[name]) for name in ("classes", "labels")}
    facts |= {"languages": dataset["languages"], "labels_absent_from_train": len(unseen)}
    facts |= {f"pairs_{check}": len(pairs) for check, pairs in links.items()}
    facts |= _split_facts(data, split_rows, plan, order, params.leaks)
    return Report(facts | _text_facts(out, data, tokenizer, order))


def _tokenizer(
    params: PrepareParams, out: Path, data: UsableRows, order: dict[str, list[int]]
) -> TokenizerChoice:
    return write_tokenizer(
        out,
        [str(caption["text"]) for n in order["train"] for caption in data.captions[n]],
        kind=params.tokenizer,
        vocabulary_size=params.vocabulary_size,
        max_tokens=params.max_tokens,
        lowercase=params.lowercase,
        clip_vocabulary=None if params.clip_vocabulary is None else workspace() / params.clip_vocabulary,
        tokenizer_folder=None if params.tokenizer_folder is None else workspace() / params.tokenizer_folder,
    )


def _split_row(row: dict[str, Any], media: list[Medium]) -> Row:
    keys = tuple(row[name] for name in media if row[name] is not None)
    return Row(row["id"], row["group"], keys, row["label"], row["split"] or None)


def _links(findings: Path, checks: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of row ids by the check that found them."""
    links: dict[str, list[tuple[str, str]]] = {check: [] for check in checks}
    for found in read_table(findings).select(["id", "other_id", "check"]).to_pylist() if checks else []:
        if found["check"] in links and found["other_id"] is not None:
            links[found["check"]].append((found["id"], found["other_id"]))
    return links


def _order(plan: SplitPlan, leaks: str, seed: int) -> dict[str, list[int]]:
    """Row numbers by split, as they are written: train in a seeded shuffle, the others as they came."""
    order: dict[str, list[int]] = {split: [] for split in SPLITS}
    for number, (split, leak) in enumerate(zip(plan.splits, plan.leaks, strict=True)):
        if not leak or leaks == "mark":
            order[split].append(number)
    for split in SPLITS:
        if not order[split]:
            raise DataError(
                f"the split {split!r} has no rows once its leaks are dropped: all of its content stands in "
                "train. Set prepare.leaks to mark, or leave the split column out."
            )
    if len(order["train"]) < MIN_TRAIN:
        raise DataError(
            f"the split 'train' has {len(order['train'])} rows; learning compares {MIN_TRAIN} at least. "
            "Give more rows."
        )
    order["train"] = np.random.default_rng(seed).permutation(order["train"]).tolist()
    return order


def _samples(
    data: UsableRows, plan: SplitPlan, classes: list[str], numbers: list[int], store: MediaStore
) -> Iterator[Sample]:
    index = {name: place for place, name in enumerate(classes)}
    for number in numbers:
        row = data.rows[number]
        keys = {name: row[name] for name in MEDIA if row[name] is not None}
        yield Sample(
            id=row["id"],
            captions=data.captions[number],
            label=row["label"],
            class_index=index.get(row["label"], -1),
            labels=sorted(set(row["labels"])),
            target=row["target"],
            difficulty=row["difficulty"],
            group=row["group"],
            leak=plan.leaks[number],
            media={name: store.read(key) for name, key in keys.items()},
            extensions={name: key.rpartition(".")[2] for name, key in keys.items()},
        )


def _manifest(table: pa.Table, plan: SplitPlan, order: dict[str, list[int]]) -> pa.Table:
    import pyarrow as pa

    place = table.schema.get_field_index("split")
    table = table.set_column(place, table.schema.field(place), pa.array(plan.splits, pa.string()))
    return table.take(sorted(number for numbers in order.values() for number in numbers))


def _dataset(
    data: UsableRows, classes: list[str], order: dict[str, list[int]], shards: dict[str, list[str]]
) -> dict[str, Any]:
    used = [number for numbers in order.values() for number in numbers]
    languages = {caption["language"] for n in used for caption in data.captions[n]}
    return {
        "classes": classes,
        "labels": sorted({name for n in used for name in data.rows[n]["labels"]}),
        "splits": {split: len(numbers) for split, numbers in order.items()},
        "shards": shards,
        "modalities": {
            name: sum(bool(data.captions[n] if name == "text" else data.rows[n][name]) for n in used)
            for name in MODALITIES
        },
        "languages": sorted(language for language in languages if language),
    }


def _split_facts(
    data: UsableRows, rows: list[Row], plan: SplitPlan, order: dict[str, list[int]], leaks: str
) -> dict[str, Any]:
    facts: dict[str, Any] = {"leaks_handled": leaks, "groups_across_splits": plan.groups_across}
    for split in SPLITS:
        facts[f"samples_{split}"] = len(order[split])
        facts[f"split_{split}"] = plan.origin[split]
    for split in SPLITS[1:]:
        held = [leak for leak, name in zip(plan.leaks, plan.splits, strict=True) if name == split]
        facts[f"leaks_{split}"] = sum(held)
    for medium in MEDIA:
        alone = [Row(row["id"], content=(row[medium],) if row[medium] else ()) for row in data.rows]
        facts[f"leaks_by_{medium}"] = sum(find_leaks(alone, plan.splits, ()))
    return facts


def _text_facts(
    out: Path, data: UsableRows, choice: TokenizerChoice | None, order: dict[str, list[int]]
) -> dict[str, Any]:
    if choice is None:
        return {"captions": 0, "tokenizer": "none", "tokenizer_reason": "no row has a caption"}
    tokenizer = load_tokenizer(out)
    texts = [str(c["text"]) for numbers in order.values() for n in numbers for c in data.captions[n]]
    lengths = np.array([len(ids) + 2 for ids in tokenizer.tokens(texts)])
    return {
        "captions": len(texts),
        **{name: data.dropped[name] for name in DROPPED},
        "tokenizer": choice.kind,
        "tokenizer_reason": choice.reason,
        "vocabulary_size": choice.vocabulary_size,
        "tokens_mean": round(float(lengths.mean()), 4),
        "tokens_p95": float(np.percentile(lengths, 95)),
        "captions_truncated": int((lengths > tokenizer.max_tokens).sum()),
    }


if __name__ == "__main__":
    enter(run)
