"""The ingest stage leaves the same manifest for the same source, and nothing half-written for a bad one."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from polyweft.config import RuntimeParams
from polyweft.data.media import MediaStore
from polyweft.data.records import QUARANTINE, SCHEMA
from polyweft.data.scene_faults import FAULTS
from polyweft.data.sources import IngestParams
from polyweft.data.sources.collect import language_of
from polyweft.errors import DataError
from polyweft.io import read_table
from polyweft.report import Report
from stages import ingest

FAULTY = {"samples": 60, "broken_images": 0.05, "broken_audio": 0.05, "missing_files": 0.05}


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(out, format="PNG")
    return out.getvalue()


def run(out: Path, *, threads: int = 1, **given: Any) -> Report:
    return ingest.run(IngestParams.model_validate(given), RuntimeParams(seed=5, threads=threads), out=out)


def folder(root: Path, *records: dict[str, Any], **files: bytes) -> Path:
    root.mkdir()
    (root / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name, content in files.items():
        (root / name.replace("_", ".")).write_bytes(content)
    return root


def manifest(out: Path) -> list[dict[str, Any]]:
    return read_table(out / "manifest.parquet").to_pylist()


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def test_clips_and_graphs_are_stored_and_broken_ones_set_aside(tmp_path: Path) -> None:
    scenes = {"samples": 16, "media": ["image", "video", "graph"], "tasks": True, "without_video": 0.0}
    facts = run(tmp_path / "scenes", source="scenes", path="x", scenes=scenes).facts
    assert (facts["rows_with_audio"], facts["rows_with_video"]) == (0, facts["rows"])
    assert facts["labels_at_once"] > 2
    rows = manifest(tmp_path / "scenes")
    assert all(
        row["video"].endswith(".mp4") and len(row["labels"]) in (1, 2) and row["target"] for row in rows
    )
    assert {row["graph"].rpartition(".")[2] for row in rows if row["graph"]} == {"graph"}
    whole = MediaStore(tmp_path / "scenes").read(rows[0]["video"])
    records = [{"video": "a.mp4"}, {"video": "b.mp4"}, {"graph": "c.json"}, {"graph": "d.json"}]
    contents = {"a_mp4": whole, "b_mp4": whole[:300], "c_json": b'{"nodes": [{}]}', "d_json": b"{}"}
    source = folder(tmp_path / "source", *records, **contents)
    facts = run(tmp_path / "out", source="metadata", path=str(source)).facts
    assert (facts["rows"], facts["quarantined_video_broken"], facts["quarantined_graph_broken"]) == (2, 1, 1)


def test_scenes_give_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    one = run(tmp_path / "one", source="scenes", path="x", scenes=FAULTY)
    two = run(tmp_path / "two", source="scenes", path="x", scenes=FAULTY, threads=3)
    assert one.facts == two.facts
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_scenes_leave_the_contract(tmp_path: Path) -> None:
    facts = run(tmp_path, source="scenes", path="x", scenes=FAULTY).facts
    table = read_table(tmp_path / "manifest.parquet")
    assert table.schema.equals(SCHEMA)
    assert read_table(tmp_path / "quarantine.parquet").schema.equals(QUARANTINE)
    assert facts["rows"] + facts["quarantined"] == 60
    truth = {row["id"]: row for row in read_table(tmp_path / "truth" / "faults.parquet").to_pylist()}
    aside = {row["id"]: row for row in read_table(tmp_path / "quarantine.parquet").to_pylist()}
    assert {truth[name]["fault"] for name in aside} == {"broken_image", "broken_audio", "missing_file"}
    assert {row["check"] for row in aside.values()} == {"image_missing", "image_broken", "audio_broken"}
    assert set(truth) <= set(aside) | set(table["id"].to_pylist())
    store = MediaStore(tmp_path)
    for row in table.to_pylist():
        assert store.read(row["image"])
        assert row["audio"] is None or store.size(row["audio"])


def test_the_truth_stands_apart_from_what_the_checks_read(tmp_path: Path) -> None:
    run(tmp_path, source="scenes", path="x", scenes=FAULTY)
    told = str(manifest(tmp_path)) + str(read_table(tmp_path / "quarantine.parquet").to_pylist())
    for fault in set(FAULTS) - {"broken_image", "broken_audio"}:
        assert fault not in told
    assert [name for name in files(tmp_path) if name.startswith("truth/")] == ["truth/faults.parquet"]


def test_broken_media_are_set_aside_or_masked(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "source",
        {"file_name": "good.png", "text": "a"},
        {"file_name": "bad.png", "text": "b"},
        {"file_name": "empty.png", "text": "c"},
        {"file_name": "gone.png", "text": "d"},
        {"file_name": "gone.png", "audio": "also_gone.wav"},
        good_png=png(),
        bad_png=b"not a picture",
        empty_png=b"",
    )
    facts = run(tmp_path / "aside", source="metadata", path=str(source)).facts
    assert (facts["rows"], facts["quarantined_image_broken"], facts["quarantined_image_missing"]) == (1, 2, 2)
    reasons = {
        row["id"]: row["reason"] for row in read_table(tmp_path / "aside/quarantine.parquet").to_pylist()
    }
    assert "bad.png" in reasons["bad"]
    assert "0 bytes" in reasons["empty"]
    assert "gone.png" in reasons["gone"]
    facts = run(tmp_path / "masked", source="metadata", path=str(source), broken_media="mask").facts
    assert (facts["rows"], facts["rows_masked"], facts["quarantined_row_empty"]) == (4, 3, 1)
    assert [(row["image"] is None, row["masked"]) for row in manifest(tmp_path / "masked")] == [
        (False, []),
        (True, ["image"]),
        (True, ["image"]),
        (True, ["image"]),
    ]


def test_repairs_are_listed_and_counted(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "source", {"file_name": "A.png"}, {"file_name": "b.jpg"}, {"file_name": "x/c.png"}
    )
    (source / "a.png").write_bytes(png())
    (source / "b.png").write_bytes(png("blue"))
    (tmp_path / "spare").mkdir()
    (tmp_path / "spare" / "c.png").write_bytes(png("green"))
    spare = str(tmp_path / "spare")
    facts = run(tmp_path / "out", source="metadata", path=str(source), repair_roots=[spare]).facts
    assert (facts["repairs"], facts["repairs_case"], facts["repairs_extension"], facts["repairs_root"]) == (
        3,
        1,
        1,
        1,
    )
    repairs = read_table(tmp_path / "out" / "repairs.parquet").to_pylist()
    assert repairs[2] == {
        "id": "x/c",
        "column": "image",
        "given": "x/c.png",
        "used": "spare/c.png",
        "rule": "root",
    }
    assert str(tmp_path) not in str(repairs)


def test_ids_are_made_from_paths_and_kept_apart(tmp_path: Path) -> None:
    source = folder(
        tmp_path / "source",
        {"file_name": "a.png", "text": "one"},
        {"file_name": "a.png", "text": "two"},
        {"text": "words alone"},
        {"text": "words alone"},
        a_png=png(),
    )
    run(tmp_path / "out", source="metadata", path=str(source))
    names = [row["id"] for row in manifest(tmp_path / "out")]
    assert names[:2] == ["a", "a#2"]
    assert names[2].startswith("row-")
    assert names[3] == names[2] + "#2"


def test_duplicate_ids_of_the_source_are_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", *({"n": n, "text": "t"} for n in ("a", "b", "a", "c", "b")))
    with pytest.raises(DataError, match=r"2 ids .*'a' at metadata.jsonl:1, metadata.jsonl:3; 'b' at"):
        run(tmp_path / "out", source="metadata", path=str(source), columns={"id": "n"})
    assert not (tmp_path / "out").exists()


def test_an_empty_id_is_named(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {"n": 1, "text": "t"}, {"n": None, "text": "t"})
    with pytest.raises(DataError, match=r"metadata\.jsonl:2: n is empty"):
        run(tmp_path / "out", source="metadata", path=str(source), columns={"id": "n"})


def test_the_extension_is_that_of_the_content(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {"file_name": "a.jpg"}, a_jpg=png())
    run(tmp_path / "out", source="metadata", path=str(source))
    assert manifest(tmp_path / "out")[0]["image"].endswith(".png")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "no rows"),
        ([{"file_name": "gone.png"}], "none of the 1 rows can be used; the first, 'gone'"),
        ([{"text": "t"}, {"file_name": "../x.png"}], "metadata.jsonl:2: path '../x.png' leaves"),
    ],
)
def test_a_source_that_cannot_be_used_leaves_nothing(
    tmp_path: Path, records: list[dict[str, Any]], message: str
) -> None:
    source = folder(tmp_path / "source", *records)
    with pytest.raises(DataError, match=message):
        run(tmp_path / "out", source="metadata", path=str(source))
    assert not (tmp_path / "out").exists()


def test_a_repair_root_must_be_a_folder(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {"text": "t"})
    with pytest.raises(DataError, match="repair_roots names 'nowhere'"):
        run(tmp_path / "out", source="metadata", path=str(source), repair_roots=["nowhere"])


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ingest.MediaWriter, "add", full)
    with pytest.raises(DataError, match="No space left on device"):
        run(tmp_path / "out", source="scenes", path="x", scenes={"samples": 16})
    assert not (tmp_path / "out").exists()


def test_a_relative_source_is_found_from_the_main_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder(tmp_path / "source", {"text": "t"})
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    assert run(tmp_path / "out", source="metadata", path="source").facts["rows"] == 1


@pytest.mark.parametrize(
    ("text", "setting", "language"),
    [
        ("a cat", "auto", "en"),
        ("一只 cat", "auto", "zh"),
        (" 12!", "auto", None),
        ("chat", "fr", "fr"),
        ("chat", "none", None),
    ],
)
def test_languages(text: str, setting: str, language: str | None) -> None:
    assert language_of(text, setting) == language


def test_real_data_goes_through(shared_data: Path, tmp_path: Path) -> None:
    facts = run(tmp_path, source="metadata", path=str(shared_data / "digits"), threads=2).facts
    assert (facts["rows"], facts["labels"], facts["rows_with_audio"], facts["captions"]) == (
        1500,
        10,
        1426,
        1426,
    )
    assert facts["media_files"] < 2926  # recordings that several rows use are stored once
