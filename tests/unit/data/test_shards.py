"""Shards: what is written is read back, byte for byte the same each time, and damage is named."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.shards import Sample, open_dataset, read_shard, read_split, write_split
from polyweft.errors import DataError
from polyweft.io import write_json
from polyweft.modalities import MEDIA, MODALITIES


def sample(number: int, **changes: Any) -> Sample:
    fields: dict[str, Any] = {
        "id": f"id-{number}",
        "captions": [{"text": f"caption {number} 圆", "language": "en"}],
        "label": "round",
        "class_index": 0,
        "target": number / 3,
        "group": None,
        "leak": False,
        "media": {"image": bytes([number % 256]) * (number * 37 % 1500)},
        "extensions": {"image": "png"},
    }
    return Sample(**fields | changes)


BOTH = {"media": {"image": b"picture", "audio": b"clip"}, "extensions": {"image": "png", "audio": "wav"}}


def write(folder: Path, samples: list[Sample], shard_samples: int = 4) -> list[str]:
    names = write_split(folder, "train", samples, shard_samples=shard_samples)
    content = {"classes": [], "splits": {"train": len(samples)}, "shards": {"train": names}}
    write_json(folder / "dataset.json", content | {"modalities": {}, "languages": [], "labels": []})
    return names


def read_until_error(path: Path) -> tuple[list[Sample], str]:
    good = []
    try:
        for one in read_shard(path):
            good.append(one)  # noqa: PERF402 - what came before the error is kept
    except DataError as error:
        return good, str(error)
    return good, ""


SAMPLES = st.builds(
    Sample,
    id=st.text(min_size=1),
    captions=st.lists(st.fixed_dictionaries({"text": st.text(), "language": st.none() | st.just("zh")})),
    label=st.none() | st.text(),
    class_index=st.integers(-1, 9),
    target=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    group=st.none() | st.text(),
    leak=st.booleans(),
    labels=st.lists(st.text(), max_size=2),
    difficulty=st.none() | st.floats(0, 1),
    media=st.just({}),
    extensions=st.just({}),
)
FILES = st.fixed_dictionaries(
    {},
    optional={
        name: st.tuples(st.sampled_from(sorted(MODALITIES[name].extensions)), st.binary(max_size=1100))
        for name in MEDIA
    },
)


def with_files(sample: Sample, files: dict[str, tuple[str, bytes]]) -> Sample:
    media = {name: content for name, (_, content) in files.items()}
    return replace(sample, media=media, extensions={name: end for name, (end, _) in files.items()})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.builds(with_files, SAMPLES, FILES), max_size=7), st.integers(1, 4))
def test_samples_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, samples: list[Sample], shard_samples: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    names = write(folder, samples, shard_samples)
    assert list(read_split(folder, "train")) == samples
    assert len(names) == -(-len(samples) // shard_samples)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    samples = [sample(n, **BOTH) for n in range(6)]
    names = write(tmp_path / "a", samples)
    assert names == write(tmp_path / "b", samples) == ["train-00000.tar", "train-00001.tar"]
    assert all((tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names)


def test_a_shard_is_a_plain_tar_in_the_order_that_webdataset_expects(tmp_path: Path) -> None:
    both = {"media": {"audio": b"clip", "image": b"x"}, "extensions": {"audio": "wav", "image": "JPG"}}
    write(tmp_path, [sample(3, **both), sample(4, media={})])
    with tarfile.open(tmp_path / "train-00000.tar") as archive:
        members = archive.getmembers()
    assert [m.name for m in members] == ["00000000.json", "00000000.jpg", "00000000.wav", "00000001.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}


def test_webdataset_reads_the_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    written = [sample(n) for n in range(1, 4)]
    write(tmp_path, written)
    source = webdataset.WebDataset(str(tmp_path / "train-00000.tar"), shardshuffle=False)
    assert [(json.loads(s["json"])["id"], s["png"]) for s in source] == [(s.id, s.image) for s in written]


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1, exclude_max=True))
def test_a_shard_cut_anywhere_is_an_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, place: float
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    samples = [sample(n) for n in range(4)]
    write(folder, samples)
    path = folder / "train-00000.tar"
    content = path.read_bytes()
    # The archive ends with two empty blocks; the first already says that nothing is missing.
    path.write_bytes(content[: int(place * (len(content) - tarfile.BLOCKSIZE))])
    good, message = read_until_error(path)
    assert "train-00000.tar is damaged or ends early" in message
    assert good == samples[: len(good)]
    assert (f"last good sample is 'id-{len(good) - 1}'" in message) == bool(good)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:20] + b"\xff" + b[21:], "damaged"),
        (lambda b: b.replace(b'"id"', b'"ie"', 1), "damaged.*no sample in it is good"),
        (lambda b: b.replace(b'{"captions"', b'["captions"', 1), "damaged"),
    ],
)
def test_a_damaged_member_is_an_error(tmp_path: Path, damage: Callable[[bytes], bytes], message: str) -> None:
    write(tmp_path, [sample(1), sample(2)])
    path = tmp_path / "train-00000.tar"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        list(read_split(tmp_path, "train"))


def test_a_shard_that_lacks_samples_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, [sample(n) for n in range(4)])
    write_split(tmp_path, "train", [sample(n) for n in range(3)], shard_samples=4)
    with pytest.raises(DataError, match=r"holds 3 samples; dataset\.json says 4"):
        list(read_split(tmp_path, "train"))


def test_a_missing_shard_split_or_dataset_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        open_dataset(tmp_path)
    [name] = write(tmp_path, [sample(1)])
    with pytest.raises(DataError, match=r"no split 'test'; it has \['train'\]"):
        list(read_split(tmp_path, "test"))
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=r"train-00000\.tar is missing"):
        list(read_split(tmp_path, "train"))
    write_json(tmp_path / "dataset.json", {"classes": []})
    with pytest.raises(DataError, match="lacks 'splits'"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"media": {"audio": b"x"}, "extensions": {"audio": "m4a"}},
        {"media": {"graph": b"x"}, "extensions": {"graph": "json"}},
        {"extensions": {"image": "wav"}},
        {"extensions": {"image": "../x"}},
        {"extensions": {}},
    ],
)
def test_an_extension_that_would_be_read_back_wrong_is_refused(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"'id-1'.*cannot stand in a shard"):
        write(tmp_path, [sample(1, **fields)])
    assert list(tmp_path.glob("*.tar")) == []


def test_a_failing_source_leaves_no_half_written_shard(tmp_path: Path) -> None:
    def failing() -> Any:
        yield sample(1)
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        write_split(tmp_path, "train", failing(), shard_samples=4)
    assert list(tmp_path.iterdir()) == []


def test_the_contents_of_a_modality_are_its_bytes() -> None:
    one = sample(1, **BOTH)
    assert [one.contents(name) for name in MODALITIES] == [
        b"picture",
        "caption 1 圆".encode(),
        b"clip",
        None,
        None,
    ]
    assert sample(1, captions=[], media={}).contents("text") is sample(1, media={}).image is None


def test_no_two_modalities_share_an_extension() -> None:
    every = [end for modality in MODALITIES.values() for end in modality.extensions]
    assert len(every) == len(set(every))
    assert not {"json", "txt", "cls"} & set(every)
