"""What goes into the media store comes out, once, from plain tar files."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.media import MediaStore, MediaWriter
from polyweft.errors import DataError


@settings(max_examples=25, deadline=None)
@given(contents=st.lists(st.binary(max_size=1500), min_size=1, max_size=12))
def test_every_medium_comes_back_and_equal_ones_are_stored_once(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("store")
    with MediaWriter(folder, shard_bytes=2000) as writer:
        keys = [writer.add("image", content, "PNG") for content in contents]
    store = MediaStore(folder)
    assert [store.read(key) for key in keys] == contents
    assert [store.size(key) for key in keys] == [len(content) for content in contents]
    assert len(store) == len(set(contents))
    assert all(key in store for key in keys)


def test_the_shards_are_tar_files_that_any_tool_reads(tmp_path: Path) -> None:
    with MediaWriter(tmp_path) as writer:
        key = writer.add("audio", b"RIFF", "wav")
    with tarfile.open(tmp_path / "media-00000.tar") as archive:
        member = archive.getmember(key)
        assert (member.mtime, member.uid, member.uname) == (0, 0, "")
        content = archive.extractfile(member)
        assert content is not None
        assert content.read() == b"RIFF"


def test_a_writer_that_fails_leaves_no_index(tmp_path: Path) -> None:
    def failing() -> None:
        with MediaWriter(tmp_path) as writer:
            writer.add("image", b"x", "png")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    with pytest.raises(DataError, match=r"media\.parquet is missing"):
        MediaStore(tmp_path)


def test_an_unknown_key_and_a_cut_shard_are_named(tmp_path: Path) -> None:
    with MediaWriter(tmp_path) as writer:
        key = writer.add("image", b"x" * 4000, "png")
    store = MediaStore(tmp_path)
    with pytest.raises(DataError, match=r"media key 'image/none.png' is not in"):
        store.read("image/none.png")
    shard = tmp_path / "media-00000.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"media-00000\.tar ends early"):
        MediaStore(tmp_path).read(key)
