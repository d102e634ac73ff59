"""COCO's captions JSON: `images`, and `annotations` with a caption each (Chen et al. 2015)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyweft.data.sources.metadata import locate
from polyweft.data.sources.rows import IngestParams, Medium, SourceRow, checked_text
from polyweft.errors import DataError


def read_coco(params: IngestParams, path: Path) -> Iterator[SourceRow]:
    """One row an image, with its captions in the order of the file; COCO's captions carry no label."""
    file, root = locate(params, path, ("*.json", "annotations/*.json"))
    content = _read(file)
    captions: dict[Any, list[tuple[str, str | None]]] = {}
    images = _entries(content, "images", file.name)
    for number, image in enumerate(images):
        place = f"{file.name}:images[{number}]"
        identity = _field(image, "id", (int, str), place)
        if identity in captions:
            raise DataError(f"{place}: duplicate image id {identity!r}. Give every image an id of its own.")
        captions[identity] = []
    for number, annotation in enumerate(_entries(content, "annotations", file.name)):
        place = f"{file.name}:annotations[{number}]"
        identity = _field(annotation, "image_id", (int, str), place)
        if identity not in captions:
            raise DataError(
                f"{place}: image_id {identity!r} is not among the file's images. Remove one or add one."
            )
        captions[identity].append((checked_text(_field(annotation, "caption", (str,), place), place), None))
    for number, image in enumerate(images):
        place = f"{file.name}:images[{number}]"
        name = checked_text(_field(image, "file_name", (str,), place), place)
        yield SourceRow(
            place=place,
            id=checked_text(str(image["id"]), place),
            media={"image": Medium(name, root=root)},
            captions=captions[image["id"]],
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file.name}: invalid UTF-8 at byte {error.start}. Save the file as UTF-8."
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file.name}: malformed JSON ({error}).") from None
    if not isinstance(content, dict):
        raise DataError(f"{file.name}: expected an object with `images` and `annotations`.")
    return content


def _entries(content: dict[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{name}: `{key}` is missing or not a list of objects; COCO's captions files have one."
        )
    return entries


def _field(entry: dict[str, Any], key: str, kinds: tuple[type, ...], place: str) -> Any:
    value = entry.get(key)
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{place}: {key} is {value!r}; expected {wanted}.")
    return value
