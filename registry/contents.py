"""What a published version holds: files from the export, verbatim code from the library, and their hashes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyweft.errors import DataError, ServingError
from polyweft.export import bundle, golden
from polyweft.export.bundle import file_hash
from polyweft.export.signature import DECODER, HEAD
from polyweft.io import read_json
from polyweft.modalities import MODALITIES
from registry.configs import GENERATE, JOIN

BACKENDS = Path(__file__).parent / "backends"
HASHES = "files.json"
"""Beside a version's files: the SHA-256 of each, so that damage is found without the export."""

GENERATION = "polyweft.data.generation"


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
    for name in golden.FILES:
        if not (export / golden.FOLDER / name).is_file():
            raise ServingError(
                f"{export / golden.FOLDER / name} is missing: there is nothing to check the server by. "
                "Run `dvc repro export`."
            )
    return bundle.read_spec(export)


def source_file(module: str) -> Path:
    """The file of a module by its dotted name; it is not imported."""
    found = importlib.util.find_spec(module)
    assert found is not None, module
    assert found.origin is not None, module
    return Path(found.origin)


def reader_file(modality: str) -> Path:
    """The file that holds a modality's reader."""
    if modality not in MODALITIES:
        raise ServingError(
            f"the export takes the modality {modality!r}, which this Polyweft does not have; it has "
            f"{', '.join(MODALITIES)}. Deploy with the version that exported it."
        )
    return source_file(MODALITIES[modality].reader)


def write_version(export: Path, model: Mapping[str, Any], staging: Path, kinds: Sequence[str]) -> None:
    """Write a folder per component of one version below `staging`, which is made anew; raises `OSError`."""
    shutil.rmtree(staging, ignore_errors=True)
    for kind in kinds:
        folder = staging / kind
        folder.mkdir(parents=True)
        for name, source in _files(kind, export, model):
            shutil.copyfile(source, folder / name)
        if (folder / "model.py").exists():
            # A file of this name keeps Python from writing here: Triton reloads a version whose folder
            # changed.
            (folder / "__pycache__").touch()
        if kind == JOIN:
            shutil.copytree(export / golden.FOLDER, folder / golden.FOLDER, copy_function=shutil.copyfile)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        hashes = {path.relative_to(folder).as_posix(): file_hash(path) for path in files}
        (folder / HASHES).write_text(json.dumps(hashes, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _files(kind: str, export: Path, model: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Name and source of each file of one component."""
    if kind == HEAD or kind.endswith("_encoder"):
        yield "model.onnx", export / bundle.graph_file(kind.removesuffix("_encoder"), "fp32")
        return
    backend = "preprocess" if kind.endswith("_preprocess") else kind
    yield "model.py", BACKENDS / backend / "model.py"
    yield bundle.SPEC_FILE, export / bundle.SPEC_FILE
    if kind == JOIN:
        return
    modality = "text" if kind == GENERATE else kind.removesuffix("_preprocess")
    yield model["inputs"][modality]["module"], reader_file(modality)
    for name in bundle.TOKENIZER_FILES:
        if (export / name).exists():
            yield name, export / name
    if kind == GENERATE:
        yield "decoder.onnx", export / bundle.graph_file(DECODER, "fp32")
        yield "generation.py", source_file(GENERATION)


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
