"""What `prepare` leaves for training, on small manifests made here and on the real data sets."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from polyweft.config import RuntimeParams, parse_section
from polyweft.data.media import MediaWriter
from polyweft.data.records import manifest
from polyweft.data.shards import Sample, open_dataset, read_split
from polyweft.data.text import TextTokenizer
from polyweft.errors import ConfigError, DataError
from polyweft.io import read_table, write_table
from stages import prepare
from stages.prepare import PrepareParams

RUNTIME = RuntimeParams(seed=7, threads=1)
FINDINGS = pa.schema(
    [("id", pa.string()), ("other_id", pa.string()), ("check", pa.string()), ("score", pa.float64())]
)
PARAMS: dict[str, Any] = {
    "tokenizer": "auto",
    "vocabulary_size": 400,
    "max_tokens": 16,
    "lowercase": True,
    "clip_vocabulary": None,
    "test_fraction": 0.2,
    "validation_fraction": 0.2,
    "link_media": ["image"],
    "link_checks": ["exact_duplicates", "near_duplicates"],
    "leaks": "mark",
    "languages": None,
    "shard_samples": 16,
}


EXTENSIONS = {"audio": "wav", "video": "mp4", "graph": "graph"}


def parameters(**changes: Any) -> PrepareParams:
    return parse_section(PrepareParams, "prepare", PARAMS | changes, where="test")


def row(number: int, **fields: Any) -> dict[str, Any]:
    """A row with a picture of its own, a caption of its own and one of two labels."""
    return {
        "id": f"row-{number:03d}",
        "image": f"picture {number}".encode(),
        "captions": [{"text": f"a thing with the number {number}", "language": "en"}],
        "label": ("odd", "even")[number % 2],
        "source": f"test:{number}",
        **fields,
    }


class Inputs:
    """The folders that `prepare` reads, filled from rows whose media are bytes."""

    def __init__(self, root: Path) -> None:
        self.ingested, self.aligned, self.out = root / "ingest", root / "align", root / "prepare"

    def fill(self, rows: list[dict[str, Any]], pairs: list[tuple[str, str]] | None = None) -> Inputs:
        with MediaWriter(self.ingested) as media:
            stored = [
                row
                | {
                    kind: media.add(kind, row[kind], extension)
                    for kind, extension in (EXTENSIONS | {"image": row.get("extension", "png")}).items()
                    if row.get(kind) is not None
                }
                for row in rows
            ]
        write_table(self.aligned / "manifest.parquet", manifest(stored))
        found = [{"id": a, "other_id": b, "check": "near_duplicates", "score": 1.0} for a, b in pairs or []]
        write_table(self.aligned / "findings.parquet", pa.Table.from_pylist(found, schema=FINDINGS))
        return self

    def run(self, out: Path | None = None, **changes: Any) -> dict[str, Any]:
        folders = {"ingested": self.ingested, "aligned": self.aligned, "out": out or self.out}
        return prepare.run(parameters(**changes), RUNTIME, **folders).facts

    def samples(self) -> dict[str, Sample]:
        return {s.id: s for split in open_dataset(self.out).counts for s in read_split(self.out, split)}


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.fixture
def inputs(tmp_path: Path) -> Inputs:
    return Inputs(tmp_path)


def test_every_row_stands_in_one_shard_with_its_media_and_cleaned_captions(inputs: Inputs) -> None:
    rows = [row(n) for n in range(40)]
    rows[3]["audio"] = b"a clip"
    rows[5]["captions"] = [
        {"text": "Ｓｅｅ  https://example.com/x?y=1", "language": "en"},
        {"text": "See", "language": "en"},
        {"text": "\u200b", "language": None},
        {"text": "看　这里", "language": "zh"},
    ]
    facts = inputs.fill(rows).run()
    samples = inputs.samples()
    assert sorted(samples) == [r["id"] for r in rows]
    assert all(samples[r["id"]].image == r["image"] for r in rows)
    assert samples["row-003"].contents("audio") == b"a clip"
    assert samples["row-004"].contents("audio") is None
    assert [c["text"] for c in samples["row-005"].captions] == ["See", "看 这里"]
    assert (facts["captions_empty"], facts["captions_repeated"]) == (1, 1)
    assert facts["samples_train"] + facts["samples_validation"] + facts["samples_test"] == 40
    assert facts["languages"] == ["en", "zh"]
    assert open_dataset(inputs.out).modalities == {
        **{"image": 40, "text": 40, "audio": 1},
        **{"video": 0, "graph": 0},
    }


def test_dataset_and_manifest_agree_with_the_shards(inputs: Inputs) -> None:
    inputs.fill([row(n) for n in range(40)]).run()
    dataset = open_dataset(inputs.out)
    splits = dict(
        zip(
            *(read_table(inputs.out / "manifest.parquet")[c].to_pylist() for c in ("id", "split")),
            strict=True,
        )
    )
    for split, count in dataset.counts.items():
        samples = list(read_split(inputs.out, split))
        assert len(samples) == count == Counter(splits.values())[split]
        assert {splits[s.id] for s in samples} == {split}
        assert all(dataset.classes[s.class_index] == s.label for s in samples)
    assert dataset.classes == ["even", "odd"]
    assert len(dataset.shards["train"]) == -(-dataset.counts["train"] // 16)


def test_the_same_input_gives_the_same_bytes(inputs: Inputs, tmp_path: Path) -> None:
    inputs.fill([row(n) for n in range(40)])
    inputs.run()
    inputs.run(out=tmp_path / "again")
    assert digests(inputs.out) == digests(tmp_path / "again")


def test_train_is_shuffled_and_the_others_keep_their_order(inputs: Inputs) -> None:
    inputs.fill([row(n) for n in range(60)]).run()
    train, test = ([s.id for s in read_split(inputs.out, split)] for split in ("train", "test"))
    assert train != sorted(train)
    assert test == sorted(test)


def test_a_test_row_whose_picture_stands_in_train_is_marked(inputs: Inputs) -> None:
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
    rows[2]["image"] = rows[0]["image"]  # test, train
    rows[1]["image"] = rows[8]["image"]  # validation, test
    facts = inputs.fill(rows, [("row-005", "row-003")]).run()  # test, train
    samples = inputs.samples()
    assert [name for name in sorted(samples) if samples[name].leak] == ["row-002", "row-005"]
    assert (facts["leaks_test"], facts["leaks_validation"], facts["leaks_by_image"]) == (2, 0, 1)
    assert facts["split_test"] == "column"


def test_leaks_are_left_out_on_demand(inputs: Inputs) -> None:
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
    rows[2]["image"] = rows[0]["image"]
    facts = inputs.fill(rows).run(leaks="drop")
    assert "row-002" not in inputs.samples()
    assert "row-002" not in read_table(inputs.out / "manifest.parquet")["id"].to_pylist()
    assert (facts["samples_test"], facts["leaks_test"]) == (9, 1)


def test_a_missing_test_split_is_carved_and_said_so(inputs: Inputs) -> None:
    facts = inputs.fill([row(n, split=("train", "dev")[n % 5 == 0]) for n in range(100)]).run()
    assert facts["split_test"] == "carved"
    assert facts["split_validation"] == "column"
    assert facts["samples_validation"] == 20
    assert 4 <= facts["samples_test"] <= 32


def test_the_vocabulary_is_trained_on_train_alone(inputs: Inputs) -> None:
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
    for test_row in rows[2::3]:
        test_row["captions"] = [{"text": "xylophone", "language": "en"}]
    inputs.fill(rows).run()
    tokenizer = TextTokenizer.load(inputs.out)
    assert len(tokenizer.tokens(["xylophone"])[0]) == len(" xylophone")
    assert len(tokenizer.tokens(["thing"])[0]) == 1


def test_only_the_languages_asked_for_stay_and_unknown_ones(inputs: Inputs) -> None:
    rows = [row(n) for n in range(30)]
    rows[0]["captions"] += [{"text": "零", "language": "zh"}, {"text": "null", "language": None}]
    facts = inputs.fill(rows).run(languages=["en"])
    assert [c["language"] for c in inputs.samples()["row-000"].captions] == ["en", None]
    assert facts["captions_other_language"] == 1


def test_a_row_with_nothing_in_it_is_left_out_and_counted(inputs: Inputs) -> None:
    rows = [row(n) for n in range(30)]
    rows[4] |= {"image": None, "captions": [{"text": "http://a.b", "language": None}]}
    rows[5]["captions"] = []
    facts = inputs.fill(rows).run()
    assert facts["rows_without_content"] == 1
    assert "row-004" not in inputs.samples()
    assert inputs.samples()["row-005"].captions == []


def test_long_captions_are_counted(inputs: Inputs) -> None:
    rows = [row(n) for n in range(30)]
    rows[0]["captions"] = [{"text": "word " * 2000, "language": "en"}]
    facts = inputs.fill(rows).run()
    assert facts["captions_truncated"] == 1
    assert facts["tokens_p95"] <= 16


def test_findings_bind_rows_only_where_params_say_so(inputs: Inputs) -> None:
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
    facts = inputs.fill(rows, [("row-005", "row-003")]).run(link_checks=["exact_duplicates"])
    assert (facts["leaks_test"], facts["pairs_exact_duplicates"]) == (0, 0)
    assert inputs.run()["pairs_near_duplicates"] == 1
    (inputs.aligned / "findings.parquet").unlink()
    assert inputs.run(link_checks=[])["leaks_test"] == 0
    with pytest.raises(DataError, match=r"findings\.parquet is missing"):
        inputs.run()


def test_rows_without_labels_have_no_classes(inputs: Inputs) -> None:
    facts = inputs.fill([row(n, label=None) for n in range(30)]).run()
    assert facts["classes"] == 0
    assert open_dataset(inputs.out).classes == []
    assert {s.class_index for s in inputs.samples().values()} == {-1}


EMPTY = [{"text": "\u200b", "language": None}, {"text": "https://example.com", "language": "en"}]
UNSEEN = [row(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
UNSEEN[4] |= {"labels": ["spot"]}
UNSEEN[5] |= {"label": "novel"}


def test_data_without_captions_have_neither_text_nor_a_tokenizer(inputs: Inputs) -> None:
    facts = inputs.fill([row(n, captions=[], video=b"clip", graph=b"{}") for n in range(30)]).run()
    assert (facts["captions"], facts["tokenizer"], facts["languages"]) == (0, "none", [])
    assert not list(inputs.out.glob("t*t*.json"))
    dataset = open_dataset(inputs.out)
    assert dataset.modalities == {"image": 30, "text": 0, "audio": 0, "video": 30, "graph": 30}
    assert inputs.samples()["row-001"].extensions == {"image": "png", "video": "mp4", "graph": "graph"}


def test_labels_targets_and_difficulty_come_through(inputs: Inputs) -> None:
    rows = [row(n, labels=["b", "a"] if n % 2 else [], target=n / 2, difficulty=n / 30) for n in range(30)]
    facts = inputs.fill(rows).run()
    assert open_dataset(inputs.out).labels == ["a", "b"]
    assert facts["labels"] == 2
    samples = inputs.samples()
    assert [samples[f"row-{n:03d}"].labels for n in (2, 3)] == [[], ["a", "b"]]
    assert (samples["row-003"].target, samples["row-003"].difficulty) == (1.5, 0.1)


def test_difficulty_may_be_the_score_of_the_pair(inputs: Inputs) -> None:
    inputs.fill([row(n, difficulty=0.5) for n in range(30)])
    scores = pa.table({"id": [f"row-{n:03d}" for n in range(29)], "score": [n / 29 for n in range(29)]})
    write_table(inputs.aligned / "scores.parquet", scores)
    inputs.run(difficulty="alignment")
    found = inputs.samples()
    assert [found[f"row-{n:03d}"].difficulty for n in (0, 1, 29)] == [0.0, 1 / 29, None]


def test_labels_that_train_lacks_may_be_reported_alone(inputs: Inputs) -> None:
    facts = inputs.fill(UNSEEN).run(unseen_labels="report")
    assert facts["labels_absent_from_train"] == 2
    assert open_dataset(inputs.out).classes == ["even", "novel", "odd"]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([row(n, label="only") for n in range(30)], {}, "'only'.*label column"),
        ([row(n, captions=EMPTY) for n in range(30)], {}, "all 60 captions are empty.*text column"),
        ([row(n, image=None, captions=[]) for n in range(30)], {}, "none of the 30 rows holds"),
        (UNSEEN, {}, "bears 2 of the labels of validation and test: 'novel', 'spot'"),
        ([row(n) for n in range(30)], {"languages": ["fr"]}, "widen prepare.languages"),
        ([row(n, split="test") for n in range(30)], {}, "'train' has no rows"),
        ([row(n, split="tset") for n in range(30)], {}, "'tset'.*expected one of"),
        ([row(n, group="all") for n in range(30)], {}, "'validation' has no rows.*smaller groups"),
        ([row(n, split=("train", "val", "test")[n]) for n in range(3)], {}, "'train' has 1 rows.*more rows"),
        ([row(n) for n in range(30)], {"tokenizer": "clip"}, "clip_vocabulary names no folder"),
    ],
)
def test_bad_input_is_named_with_its_remedy(
    inputs: Inputs, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        inputs.fill(rows).run(**changes)


def test_a_test_split_that_is_all_leaks_cannot_be_dropped(inputs: Inputs) -> None:
    rows = [row(n, split=("train", "val", "test")[n % 3]) for n in range(30)]
    for test_row in rows[2::3]:
        test_row["image"] = rows[0]["image"]
    with pytest.raises(DataError, match=r"'test' has no rows once its leaks are dropped.*prepare\.leaks"):
        inputs.fill(rows).run(leaks="drop")


def test_fractions_that_leave_no_train_are_refused() -> None:
    with pytest.raises(ConfigError, match="below 1"):
        parameters(test_fraction=0.6, validation_fraction=0.4)


def load_folder(folder: Path, rows: slice = slice(None)) -> list[dict[str, Any]]:
    """Rows of a real data set, as `ingest` would read them."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[rows]
    loaded = []
    for number, line in enumerate(lines):
        given = json.loads(line)
        texts = given.get("text") or []
        audio = given.get("audio")
        loaded.append(
            {
                "id": f"{number:05d}",
                "image": (folder / given["file_name"]).read_bytes(),
                "extension": given["file_name"].rpartition(".")[2],
                "audio": None if audio is None else (folder / audio).read_bytes(),
                "captions": [
                    {"text": text, "language": "en" if text.isascii() else "zh"}
                    for text in ([texts] if isinstance(texts, str) else texts)
                ],
                "label": given["label"],
                "group": given.get("concept"),
                "split": given["split"],
                "source": f"test:{number}",
            }
        )
    return loaded


def test_emoji_marks_the_136_test_pictures_that_stand_in_train(shared_data: Path, inputs: Inputs) -> None:
    rows = load_folder(shared_data / "emoji")
    facts = inputs.fill(rows).run(vocabulary_size=4096, max_tokens=77, shard_samples=1000)
    assert facts["samples_test"] == 944
    assert facts["leaks_test"] == facts["leaks_by_image"] - facts["leaks_validation"] == 136
    assert sum(s.leak for s in read_split(inputs.out, "test")) == 136
    assert (facts["split_validation"], facts["split_test"]) == ("column", "column")


def test_grocery_gets_a_test_split_with_no_picture_of_train(shared_data: Path, inputs: Inputs) -> None:
    rows = load_folder(shared_data / "grocery")
    facts = inputs.fill(rows).run(max_tokens=77, test_fraction=0.15, shard_samples=1000)
    assert facts["split_test"] == "carved"
    assert facts["labels_absent_from_train"] == facts["leaks_test"] == 0
    train, test = ({s.image for s in read_split(inputs.out, name)} for name in ("train", "test"))
    assert not train & test


def test_digits_keep_rows_without_text_and_report_shared_recordings(
    shared_data: Path, inputs: Inputs
) -> None:
    rows = load_folder(shared_data / "digits")
    facts = inputs.fill(rows).run()
    assert facts["leaks_by_audio"] >= 62
    assert facts["classes"] == 10
    assert any(not s.captions for s in inputs.samples().values())
