"""Hashes of files and folders as DVC states them, so that a run's record can be held against `dvc.lock`.

A file's hash is the MD5 of its bytes. A folder's is the MD5 of the JSON list of its files (hash and relative
path, sorted by path) followed by `.dir`: the object that DVC 3 keeps in its cache for the folder
(`dvc_data.hashfile.tree.Tree.as_bytes`). A test holds both against the real DVC.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from polyweft.errors import DataError

# What DVC passes over by itself (`dvc.ignore`), and what this project's `.dvcignore` adds inside folders.
IGNORED_NAMES = frozenset({".dvc", ".git", ".hg", "__pycache__"})

_CHUNK_BYTES = 1 << 20


def md5_file(path: Path) -> str:
    """MD5 of a file's bytes, in hex.

    Raises
    ------
    DataError
        The file is missing or cannot be read.
    """
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(
            f"cannot hash {path}: {error.strerror or error}. Bring it back: `dvc checkout` or `dvc repro`."
        ) from error
    return digest.hexdigest()


def list_folder(folder: Path) -> list[dict[str, str]]:
    """Every file below `folder` as `{"md5", "relpath"}`, sorted by path: the content of DVC's `.dir` object.

    Empty folders and the names in `IGNORED_NAMES` leave no trace, as in DVC. Raises `DataError`.
    """
    entries: list[dict[str, str]] = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in IGNORED_NAMES]
        for name in files:
            if name not in IGNORED_NAMES:
                path = Path(root) / name
                entries.append({"md5": md5_file(path), "relpath": path.relative_to(folder).as_posix()})
    return sorted(entries, key=lambda entry: entry["relpath"])


def md5_listing(entries: list[dict[str, str]]) -> str:
    """Hash of a folder's listing (see `list_folder`), with DVC's `.dir` suffix."""
    content = json.dumps(entries, sort_keys=True).encode("utf-8")
    return hashlib.md5(content, usedforsecurity=False).hexdigest() + ".dir"


def md5_path(path: Path) -> str:
    """Hash of a file or folder as `dvc.lock` states it: hex, with `.dir` behind a folder's.

    Raises
    ------
    DataError
        The path is missing or a file cannot be read.
    """
    if path.is_dir():
        return md5_listing(list_folder(path))
    return md5_file(path)
