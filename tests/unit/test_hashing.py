"""Hashes equal DVC's own, for files and folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyweft.errors import DataError
from polyweft.hashing import md5_path


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the real DVC has tracked a file, nested folders and names beyond ASCII."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "file.bin").write_bytes(b"a\r\nb\x00" * 100_000)
    folder = root / "folder"
    for name in ("b.txt", "a/z.txt", "a.txt", "a-b.txt", "图/猫.txt", "A/upper.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")
    (folder / "empty").mkdir()
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "m.pyc").write_bytes(b"x")
    (root / ".dvcignore").write_text("__pycache__/\n")
    environment = os.environ | {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1"}
    for arguments in (["init", "--no-scm", "-q"], ["add", "-q", "file.bin", "folder"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, env=environment, check=True)
    return root


@pytest.mark.parametrize("name", ["file.bin", "folder"])
def test_hash_equals_dvc(tracked: Path, name: str) -> None:
    assert f"md5: {md5_path(tracked / name)}\n" in (tracked / f"{name}.dvc").read_text()


def test_one_flipped_byte_changes_a_folders_hash(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    target = tmp_path / "deep" / "x"
    target.write_bytes(b"\x00\x01")
    before = md5_path(tmp_path)
    target.write_bytes(b"\x00\x00")
    assert md5_path(tmp_path) != before


def test_moved_file_changes_a_folders_hash(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"1")
    before = md5_path(tmp_path)
    (tmp_path / "x").rename(tmp_path / "y")
    assert md5_path(tmp_path) != before


def test_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.bin"):
        md5_path(tmp_path / "absent.bin")
