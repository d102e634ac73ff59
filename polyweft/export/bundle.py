"""The exported folder as one thing: `model.json` says what it is, and one hash names it.

Layout: `<modality>.onnx` and `<modality>.int8.onnx`, `head.onnx` where the model has a head, `decoder.onnx`
where it writes captions (see `signature`), the tokenizer's files, `model.json`, and beside what the hash
covers `golden/` and `parity.csv`. Whoever serves or registers the model reads this module and `signature`
only: they import no model library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from polyweft.errors import DataError, ExportError
from polyweft.export.signature import DECODER, HEAD, graphs
from polyweft.io import inside, read_json, write_json

SPEC_FILE = "model.json"
TOKENIZER_FILES = ("text.json", "tokenizer.json")
SPEC_KEYS = (
    *("classes", "embedding_size", "export_hash", "family", "features", "files", "generates", "generation"),
    *("inputs", "labels", "modalities", "opset", "outputs", "sees"),
)
"""`inputs` has for each modality `tensor`, `dtype`, `shape`, `largest` (the shape with its free axes at their
greatest length), `module` (the file with its `Reader`) and `spec` (what the reader is made from)."""

Variant = Literal["fp32", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")

RESTORE = "Bring it back: `dvc checkout` or `dvc repro export`."


def graph_file(name: str, variant: Variant) -> str:
    """File of graph `name`; the head and the decoder are float32 in every variant."""
    return f"{name}.int8.onnx" if variant == "int8" and name not in (HEAD, DECODER) else f"{name}.onnx"


def graph_files(model: Mapping[str, Any]) -> list[str]:
    """All files of graphs that the export that `model` describes may hold."""
    return sorted({graph_file(name, variant) for name in graphs(model) for variant in VARIANTS})


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex. A file that is missing is an `ExportError` that names it."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ExportError(f"{path} cannot be read ({error.strerror or error}). {RESTORE}") from error
    return digest.hexdigest()


def write_spec(folder: Path, content: dict[str, Any]) -> str:
    """Write `model.json` for the files that stand in `folder`, and give the export's hash.

    Parameters
    ----------
    content
        The keys of `SPEC_KEYS` without `files` and `export_hash`, which are filled in here.
    """
    names = [name for name in (*graph_files(content), *TOKENIZER_FILES) if (folder / name).exists()]
    spec = {**content, "files": {name: file_hash(folder / name) for name in names}}
    spec["export_hash"] = _hash(spec, spec["files"])
    missing = sorted(set(SPEC_KEYS) ^ set(spec))
    assert not missing, f"model.json's keys differ from SPEC_KEYS in {missing}"
    write_json(folder / SPEC_FILE, spec)
    return str(spec["export_hash"])


def read_spec(folder: Path) -> dict[str, Any]:
    """Read `folder`'s `model.json`.

    Raises
    ------
    ExportError
        There is no exported model, or its description is malformed.
    """
    if not (folder / SPEC_FILE).exists():
        raise ExportError(
            f"there is no exported model in {folder}: {SPEC_FILE} is missing. Run `make run`, or name "
            "another folder."
        )
    try:
        spec = read_json(folder / SPEC_FILE)
    except DataError as error:
        raise ExportError(f"{error} The exported model cannot be used.") from error
    missing = sorted(set(SPEC_KEYS) - set(spec)) if isinstance(spec, dict) else list(SPEC_KEYS)
    if missing:
        raise ExportError(f"{folder / SPEC_FILE} lacks {', '.join(missing)}. Run `dvc repro export`.")
    return dict(spec)


def export_hash(folder: Path) -> str:
    """Recompute the export's hash from the bytes that stand in `folder`.

    SHA-256 over a line `<name> <sha256>` for each file that `model.json` names, sorted by name, and then
    over `model.json` itself (canonical JSON, without `export_hash`). Raises `ExportError` for a file that
    is missing.
    """
    spec = read_spec(folder)
    return _hash(spec, _files(folder, spec))


def verify(folder: Path) -> str:
    """Hold every byte of the export against `model.json`, and give its hash.

    Raises
    ------
    ExportError
        A file is missing or differs (the message names it), or `model.json` is not the one that was written.
    """
    spec = read_spec(folder)
    files = _files(folder, spec)
    for name, found in files.items():
        if found != spec["files"][name]:
            raise ExportError(
                f"{folder / name} is not the file that {SPEC_FILE} describes: its SHA-256 is {found}, "
                f"expected {spec['files'][name]}. {RESTORE}"
            )
    if _hash(spec, files) != spec["export_hash"]:
        raise ExportError(
            f"{folder / SPEC_FILE} was changed after the export: its hash is {_hash(spec, files)}, it states "
            f"{spec['export_hash']}. {RESTORE}"
        )
    return str(spec["export_hash"])


def _files(folder: Path, spec: dict[str, Any]) -> dict[str, str]:
    try:
        return {name: file_hash(inside(folder, name)) for name in sorted(spec["files"])}
    except DataError as error:
        raise ExportError(f"{folder / SPEC_FILE}: {error}") from error


def _hash(spec: dict[str, Any], files: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {files[name]}\n".encode())
    body = {key: value for key, value in spec.items() if key != "export_hash"}
    digest.update(json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))
    return digest.hexdigest()
