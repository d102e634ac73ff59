"""Files appear whole or not at all, and paths stay in their folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyweft.errors import DataError
from polyweft.io import atomic_file, inside, read_json, read_table, write_json, write_table, write_text

FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from polyweft.errors import DataError
from polyweft.io import write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_bytes(Path(sys.argv[1]), b"n" * 100_000)
except DataError as error:
    print(error)
    sys.exit(1)
"""


def test_a_disk_that_fills_in_the_middle_of_a_write_leaves_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "kept.bin"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(target)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "could not write" in done.stdout
    assert "the old content is untouched" in done.stdout
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.bin"]


def test_an_error_inside_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_file(tmp_path / "new.bin") as handle:
            handle.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_json_has_sorted_keys_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "中"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "中",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert read_json(tmp_path / "a.json") == {"b": 1, "a": "中"}


def test_a_missing_or_malformed_file_is_named_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.json is missing.*dvc repro"):
        read_json(tmp_path / "a.json")
    write_text(tmp_path / "a.json", "{")
    with pytest.raises(DataError, match=r"a\.json is not valid JSON"):
        read_json(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"t\.parquet is missing"):
        read_table(tmp_path / "t.parquet")
    write_text(tmp_path / "t.parquet", "no table")
    with pytest.raises(DataError, match=r"t\.parquet is not a readable Parquet file"):
        read_table(tmp_path / "t.parquet")


def test_the_same_table_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_table(tmp_path / name, pa.table({"x": [1, 2, None], "y": ["a", "b", "c"]}))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_table(tmp_path / "one").to_pydict() == {"x": [1, 2, None], "y": ["a", "b", "c"]}


@pytest.mark.parametrize("path", ["/etc/passwd", "../other/file", "a/../../b", "link/file"])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(DataError, match="leaves its folder"):
        inside(root, path)


@given(parts=st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=8))
def test_what_inside_returns_is_inside(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.getbasetemp()
    try:
        found = inside(root, "/".join(parts))
    except DataError:
        return
    assert found.is_relative_to(root.resolve())
