"""Every layout gives the rows it holds, and a malformed one gives a message that names the place."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from polyweft.data.sources import IngestParams, SourceRow, read_source
from polyweft.data.sources.repair import Finder
from polyweft.data.sources.rows import split_name
from polyweft.errors import DataError


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, format="PNG")
    return out.getvalue()


def put(root: Path, name: str, content: bytes | str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def rows(source: str, path: Path, **given: Any) -> list[SourceRow]:
    params = IngestParams.model_validate({"source": source, "path": str(path), **given})
    return list(read_source(params, path, seed=0))


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_metadata_lines_become_rows(tmp_path: Path) -> None:
    record = {
        "file_name": "a/1.png",
        "text": ["one", "一"],
        "label": 3,
        "split": "val",
        "concept": "c",
        "target": 0.5,
    }
    put(tmp_path, "metadata.jsonl", lines(record, {"audio": "b.wav", "text": None}))
    one, two = rows("metadata", tmp_path, columns={"group": "concept"})
    assert one.media["image"].name == "a/1.png"
    assert one.captions == [("one", None), ("一", None)]
    assert (one.label, one.split, one.group, one.target) == ("3", "validation", "c", 0.5)
    assert (list(two.media), two.captions, two.label, two.place) == (["audio"], [], None, "metadata.jsonl:2")


def test_csv_and_parquet_give_the_rows_of_json_lines(tmp_path: Path) -> None:
    records = [
        {"file_name": "1.png", "text": 'a "red", one', "label": "x"},
        {"file_name": "2.png", "text": "b"},
    ]
    put(tmp_path / "jsonl", "metadata.jsonl", lines(*records))
    put(tmp_path / "csv", "metadata.csv", '\ufefffile_name,text,label\n1.png,"a ""red"", one",x\n2.png,b,\n')
    put(tmp_path / "table", "t.parquet", b"")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "table" / "t.parquet")

    def told(found: list[SourceRow]) -> list[Any]:
        return [(row.media["image"].name, row.captions, row.label) for row in found]

    expected = told(rows("metadata", tmp_path / "jsonl"))
    assert told(rows("metadata", tmp_path / "csv")) == expected
    assert told(rows("table", tmp_path / "table")) == expected
    assert told(rows("table", tmp_path / "csv" / "metadata.csv")) == expected


def test_a_parquet_table_may_hold_the_bytes_themselves(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([{"image": {"bytes": png(), "path": "x.png"}, "raw": png("blue")}])
    pq.write_table(table, tmp_path / "t.parquet")
    (row,) = rows("table", tmp_path, columns={"image": "image", "audio": "raw"})
    assert (row.media["image"].content, row.media["audio"].content) == (png(), png("blue"))


def test_captions_may_stand_in_several_columns_and_name_their_language(tmp_path: Path) -> None:
    record = {"file_name": "1.png", "en": "cat", "more": [{"text": "猫", "language": "ja"}, None, "chat"]}
    put(tmp_path, "metadata.jsonl", lines(record))
    (row,) = rows("metadata", tmp_path, columns={"text": ["en", "more"]})
    assert row.captions == [("cat", None), ("猫", "ja"), ("chat", None)]


def test_coco_joins_captions_by_image_id(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 5, "file_name": "a.jpg"}],
        "annotations": [
            {"image_id": 5, "caption": "first of a"},
            {"image_id": 7, "caption": "of b"},
            {"image_id": 5, "caption": "second of a"},
        ],
    }
    put(tmp_path, "annotations/captions.json", json.dumps(content))
    (tmp_path / "val").mkdir()
    b, a = rows("coco", tmp_path, media_root="val")
    assert (b.id, b.captions, b.label) == ("7", [("of b", None)], None)
    assert [text for text, _ in a.captions] == ["first of a", "second of a"]
    assert a.media["image"].root == tmp_path / "val"


def archive(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def test_webdataset_groups_members_by_key(tmp_path: Path) -> None:
    record = json.dumps({"text": "red", "split": "test", "file_name": {"odd": 1}}).encode()
    archive(tmp_path / "b.tar", [("x/1.jpg", png()), ("x/1.txt", "红".encode()), ("x/1.json", record)])
    archive(tmp_path / "a.tar", [("1.wav", b"w"), ("1.cls", b"dog\n"), ("1.seg.png", png()), ("2.txt", b"t")])
    one, two, three = rows("webdataset", tmp_path)
    assert (one.id, one.label, list(one.media)) == ("a/1", "dog", ["audio"])
    assert (two.id, two.captions, two.media) == ("a/2", [("t", None)], {})
    assert (three.id, three.captions, three.split) == ("b/x/1", [("红", None), ("red", None)], "test")
    assert three.media["image"].content == png()


def test_a_member_over_the_limit_is_not_read(tmp_path: Path) -> None:
    archive(tmp_path / "a.tar", [("1.png", b"\0" * 3000), ("1.txt", b"t")])
    (row,) = rows("webdataset", tmp_path, max_media_mib=0.001)
    assert row.media["image"].content is None
    assert "3000 bytes are over ingest.max_media_mib" in str(row.media["image"].fault)


def test_class_folders_join_by_class_and_stem_never_by_position(tmp_path: Path) -> None:
    for name in ("images/cat/1.png", "images/cat/3.png", "images/dog/1.PNG"):
        put(tmp_path, name, png())
    put(tmp_path, "audio/cat/3.wav", b"w")
    put(tmp_path, "text/cat/2.txt", "ein\n\n zwei \n")
    found = {row.id: row for row in rows("class_folders", tmp_path)}
    assert {name: sorted(row.media) for name, row in found.items()} == {
        "cat/1": ["image"],
        "cat/2": [],
        "cat/3": ["audio", "image"],
        "dog/1": ["image"],
    }
    assert found["cat/2"].captions == [("ein", None), ("zwei", None)]
    assert found["dog/1"].label == "dog"


Setup = Callable[[Path], object]
BAD: list[tuple[str, str, Setup, str]] = [
    ("metadata", "missing", lambda p: p.rmdir(), "is missing"),
    ("metadata", "empty", lambda p: None, "is empty"),
    ("metadata", "no manifest", lambda p: put(p, "x.txt", ""), "exactly one of metadata.jsonl, metadata.csv"),
    (
        "metadata",
        "two manifests",
        lambda p: (put(p, "metadata.csv", "a\n"), put(p, "metadata.jsonl", "{}\n")),
        "holds metadata.csv, metadata.jsonl",
    ),
    (
        "metadata",
        "bad line",
        lambda p: put(p, "metadata.jsonl", '{}\n{"a": \n'),
        r"metadata\.jsonl:2: malformed",
    ),
    (
        "metadata",
        "not an object",
        lambda p: put(p, "metadata.jsonl", "[1]\n"),
        "metadata.jsonl:1: .* not a JSON object",
    ),
    ("metadata", "deep", lambda p: put(p, "metadata.jsonl", "[" * 100_000), "metadata.jsonl:1: malformed"),
    (
        "metadata",
        "utf-8",
        lambda p: put(p, "metadata.jsonl", b'{}\n{"text": "\xff"}\n'),
        "metadata.jsonl:2: invalid UTF-8 at byte 13 of the file .0xff.",
    ),
    (
        "metadata",
        "surrogate",
        lambda p: put(p, "metadata.jsonl", '{"text": "a\\ud800"}\n'),
        "metadata.jsonl:1: .*surrogate pair at character 1",
    ),
    (
        "metadata",
        "split",
        lambda p: put(p, "metadata.jsonl", lines({"split": "holdout"})),
        ":1: split is 'holdout'",
    ),
    ("metadata", "text", lambda p: put(p, "metadata.jsonl", lines({"text": [3]})), ":1: text holds 3"),
    ("metadata", "label", lambda p: put(p, "metadata.jsonl", lines({"label": {"a": 1}})), ":1: label is"),
    ("metadata", "labels", lambda p: put(p, "metadata.jsonl", lines({"labels": 3})), ":1: labels is 3"),
    ("metadata", "several", lambda p: put(p, "metadata.jsonl", lines({"label": [["a"]]})), ":1: label is"),
    ("metadata", "path", lambda p: put(p, "metadata.jsonl", lines({"file_name": 3})), ":1: file_name is 3"),
    (
        "metadata",
        "target",
        lambda p: put(p, "metadata.jsonl", lines({"target": "1e999"})),
        ":1: target is '1e999'",
    ),
    ("table", "cells", lambda p: put(p, "t.csv", "a,b\n1,2\n1,2,3\n"), "t.csv:3: 3 cells"),
    ("table", "quote", lambda p: put(p, "t.csv", 'a,b\n1,"2\n'), "malformed CSV"),
    ("table", "header", lambda p: put(p, "t.csv", "a,a\n1,2\n"), "names a column twice"),
    ("table", "parquet", lambda p: put(p, "t.parquet", "no"), "t.parquet is not a readable Parquet"),
    ("coco", "json", lambda p: put(p, "c.json", "{"), "c.json: malformed JSON"),
    ("coco", "no list", lambda p: put(p, "c.json", '{"images": 1}'), "`images` is missing or not a list"),
    (
        "coco",
        "twice",
        lambda p: put(
            p, "c.json", json.dumps({"images": [{"id": 1, "file_name": "a"}] * 2, "annotations": []})
        ),
        "duplicate image id 1",
    ),
    (
        "coco",
        "unknown image",
        lambda p: put(
            p, "c.json", json.dumps({"images": [], "annotations": [{"image_id": 4, "caption": "x"}]})
        ),
        r"annotations\[0\]: image_id 4 is not among",
    ),
    ("webdataset", "no tar", lambda p: put(p, "a.txt", ""), "holds no .tar"),
    ("webdataset", "not a tar", lambda p: put(p, "a.tar", b"x" * 2000), "a.tar is not a whole tar"),
    (
        "webdataset",
        "apart",
        lambda p: archive(p / "a.tar", [("1.txt", b"a"), ("2.txt", b"b"), ("1.cls", b"c")]),
        "key '1' comes twice",
    ),
    (
        "webdataset",
        "two images",
        lambda p: archive(p / "a.tar", [("1.png", b"a"), ("1.jpg", b"b")]),
        "two members are an image: 1.png, 1.jpg",
    ),
    (
        "webdataset",
        "json",
        lambda p: archive(p / "a.tar", [("1.json", b"{")]),
        "a.tar:1: 1.json is malformed",
    ),
    ("class_folders", "nothing", lambda p: put(p, "x/y.png", ""), "holds no media in any of images/<class>/"),
    (
        "class_folders",
        "one stem twice",
        lambda p: (put(p, "images/c/1.png", ""), put(p, "images/c/1.jpg", "")),
        "images/c/1.png and images/c/1.jpg have one class and stem",
    ),
    (
        "class_folders",
        "utf-8",
        lambda p: put(p, "text/c/1.txt", b"\xff"),
        "text/c/1.txt: invalid UTF-8 at byte 0",
    ),
]


@pytest.mark.parametrize(("source", "name", "setup", "message"), BAD, ids=[f"{s}-{n}" for s, n, _, _ in BAD])
def test_bad_input_is_named(tmp_path: Path, source: str, name: str, setup: Setup, message: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    setup(folder)
    with pytest.raises(DataError, match=message):
        rows(source, folder)


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    archive(tmp_path / "a.tar", [("1.png", b"\0" * 3000)])
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:2000])
    with pytest.raises(DataError, match=r"a\.tar is not a whole tar"):
        rows("webdataset", tmp_path)


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        header = tarfile.TarInfo("1.png")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(header)
    with pytest.raises(DataError, match="link or device"):
        rows("webdataset", tmp_path)


def test_a_column_that_params_name_must_be_there(tmp_path: Path) -> None:
    put(tmp_path, "metadata.jsonl", lines({"file_name": "a.png", "text": "t"}))
    with pytest.raises(
        DataError, match=r"no column 'categroy', which ingest\.columns names; it has file_name, text"
    ):
        rows("metadata", tmp_path, columns={"label": "categroy"})
    assert len(rows("metadata", tmp_path, columns={"label": None})) == 1


def test_split_names_of_others_are_understood() -> None:
    assert [split_name(name, "x") for name in ("Train", "dev", "val", "TEST ")] == [
        "train",
        "validation",
        "validation",
        "test",
    ]


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    for name in ("images/Cat.PNG", "images/dog.jpeg", "images/two.png", "images/two.gif", "images/note.txt"):
        put(tmp_path / "source", name, name)
    put(tmp_path / "other", "bird.png", "bird")
    put(tmp_path / "other", "old/fish.png", "fish")
    put(tmp_path / "other", "fish.png", "another fish")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "used", "rule"),
    [
        ("images/dog.jpeg", "images/dog.jpeg", ""),
        ("Images/cat.png", "images/Cat.PNG", "case"),
        ("images/dog.png", "images/dog.jpeg", "extension"),
        ("images/DOG.png", "images/dog.jpeg", "extension+case"),
        ("images/dog", "images/dog.jpeg", "extension"),
        ("bird.png", "other/bird.png", "root"),
        ("stale/folder/bird.jpg", "other/bird.png", "root+extension"),
    ],
)
def test_a_lost_path_is_repaired_where_one_file_fits(lost: Path, given: str, used: str, rule: str) -> None:
    found = Finder(lost / "source", [lost / "other"]).find("image", given, "m:1")
    assert found
    assert (found.used, found.rule) == (used, rule)
    assert found.path.is_file()


@pytest.mark.parametrize(
    "given", ["images/two.jpg", "old/fish.jpg", "images/none.png", "images/note.png", "images"]
)
def test_with_several_answers_or_none_a_path_stays_lost(lost: Path, given: str) -> None:
    assert Finder(lost / "source", [lost / "other"]).find("image", given, "m:1") is None


@pytest.mark.parametrize(
    "given", ["../other/bird.png", "/etc/passwd", "images/../../other/bird.png", "link/bird.png"]
)
def test_a_path_that_leaves_the_folder_is_refused_with_its_line(lost: Path, given: str) -> None:
    (lost / "source" / "link").symlink_to(lost / "other")
    with pytest.raises(DataError, match=r"metadata.jsonl:9: path .* leaves its folder"):
        Finder(lost / "source").find("image", given, "metadata.jsonl:9")


@pytest.mark.parametrize(
    ("record", "label", "labels"),
    [
        ({"label": "a"}, "a", []),
        ({"label": ["b", "a", "b"]}, None, ["a", "b"]),
        ({"labels": "b | a"}, None, ["a", "b"]),
        ({"label": 3, "labels": [1, 2.0]}, "3", ["1", "2"]),
        ({"label": None, "labels": None}, None, []),
        ({"labels": []}, None, []),
    ],
)
def test_one_label_or_several(
    tmp_path: Path, record: dict[str, Any], label: str | None, labels: list[str]
) -> None:
    put(tmp_path, "metadata.jsonl", lines({"file_name": "1.png", "difficulty": "0.5", **record}))
    (row,) = rows("metadata", tmp_path)
    assert (row.label, row.labels, row.difficulty) == (label, labels, 0.5)


def test_clips_and_graphs_of_an_archive_belong_to_its_samples(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("1.mp4", "1.graph.json", "1.json", "2.graph"):
            content = b"{}"
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    one, two = rows("webdataset", tmp_path)
    assert {kind: medium.name for kind, medium in one.media.items()} == {
        "video": "1.mp4",
        "graph": "1.graph.json",
    }
    assert list(two.media) == ["graph"]


@given(st.text(max_size=30))
def test_no_path_leads_outside(tmp_path_factory: pytest.TempPathFactory, given_path: str) -> None:
    root = tmp_path_factory.getbasetemp() / "confined"
    root.mkdir(exist_ok=True)
    try:
        found = Finder(root).find("image", given_path, "m:1")
    except DataError:
        return
    assert found is None


def test_every_reader_is_deterministic(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in rng.permutation(20):
        put(tmp_path, f"images/c{number % 3}/{number}.png", png())
    assert rows("class_folders", tmp_path) == rows("class_folders", tmp_path)
    assert [row.id for row in rows("class_folders", tmp_path)] == sorted(
        f"c{number % 3}/{number}" for number in range(20)
    )


def test_real_data_is_read(shared_data: Path) -> None:
    emoji = rows("metadata", shared_data / "emoji", columns={"group": "concept"})
    assert len(emoji) == 5661
    assert len({row.group for row in emoji}) == 1887
    digits = rows("metadata", shared_data / "digits")
    assert sum("audio" in row.media for row in digits) == 1426
