"""What a published version holds: files from the export, verbatim code from the library, and their hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polyweft.data
from polyweft.errors import DataError, ServingError
from polyweft.export import bundle
from polyweft.export.bundle import file_hash
from polyweft.io import read_json

BACKENDS = Path(__file__).parent / "backends"
GOLDEN = "golden"
LIBRARY = Path(polyweft.data.__file__).parent
GOLDEN_FILES = ("golden.json", "golden.safetensors")
HASHES = "files.json"
"""Beside a version's files: the SHA-256 of each, so that damage is found without the export."""

_ONNX = {"image_encoder": "image.onnx", "text_encoder": "text.onnx", "classifier": "classifier.onnx"}
_CODE = {"image_preprocess": "decode.py", "text_preprocess": "text.py"}


def check_export(export: Path) -> dict[str, Any]:
    """Hold every byte of the export against its `model.json`, and give that.

    Raises
    ------
    ExportError
        A file is missing or has other bytes.
    ServingError
        There are no golden queries.
    """
    bundle.verify(export)
    for name in GOLDEN_FILES:
        if not (export / GOLDEN / name).is_file():
            raise ServingError(
                f"{export / GOLDEN / name} is missing: there is nothing to check the server by. "
                "Run `dvc repro export`."
            )
    return bundle.read_spec(export)


def write_version(export: Path, model: Mapping[str, Any], staging: Path, kinds: Sequence[str]) -> None:
    """Write a folder per component of one version below `staging`, which is made anew; raises `OSError`."""
    shutil.rmtree(staging, ignore_errors=True)
    for kind in kinds:
        folder = staging / kind
        folder.mkdir(parents=True)
        if kind in _ONNX:
            shutil.copyfile(export / _ONNX[kind], folder / "model.onnx")
        else:
            shutil.copyfile(BACKENDS / kind / "model.py", folder / "model.py")
            shutil.copyfile(export / "model.json", folder / "model.json")
            # A file of this name keeps Python from writing here: Triton reloads a version whose folder
            # changed.
            (folder / "__pycache__").touch()
        if kind in _CODE:
            shutil.copyfile(LIBRARY / _CODE[kind], folder / _CODE[kind])
        if kind == "text_preprocess":
            for name in bundle.TOKENIZER_FILES:
                if (export / name).exists():
                    shutil.copyfile(export / name, folder / name)
        if kind == "join":
            shutil.copytree(export / GOLDEN, folder / GOLDEN, copy_function=shutil.copyfile)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
        (folder / HASHES).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def find_damage(folders: Mapping[str, Path]) -> str | None:
    """Name the first file, of one version's component folders, that is missing or has other bytes."""
    for folder in folders.values():
        try:
            hashes: dict[str, str] = read_json(folder / HASHES)
        except DataError as error:
            return str(error)
        for name, expected in sorted(hashes.items()):
            path = folder / name
            if not path.is_file():
                return f"{path} is missing"
            if file_hash(path) != expected:
                return f"{path} has other bytes than were published"
    return None
