"""The modalities: one line each. What a line names does the work; parameters that name media are held to it.

To add one, write a file with a `Reader` (bytes to the model's input; serving runs that file verbatim) and an
encoder (`Params`, `reader_spec`, `build`), and name it here and, as a dependency, in `dvc.yaml`. One file may
hold both where torch and Polyweft are imported inside its functions. docs/guide/extending.md walks through an
example. Limits and measures of the built-in media stand in polyweft/data/checks.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

IMAGE_EXTENSIONS = frozenset({"png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm"})
AUDIO_EXTENSIONS = frozenset({"wav", "flac", "ogg", "oga", "opus", "mp3", "aif", "aiff", "au", "w64"})
VIDEO_EXTENSIONS = frozenset({"mp4", "mkv", "webm", "mov", "avi", "m4v", "mpg", "mpeg"})


@dataclass(frozen=True)
class Modality:
    """Where a modality's code stands.

    Attributes
    ----------
    reader
        Module with the class `Reader`, and with `check(content)` where polyweft/data/checks.py has none of
        its own: a ValueError says why no model can read the content. Serving runs its file verbatim: it
        imports the standard library, numpy, Pillow, soundfile, tokenizers and PyAV only, and nothing of
        Polyweft.
    encoder
        Module with `Params` (the section `model.encoders.<name>`), `reader_spec(params)` and
        `build(params, reader)`.
    extensions
        Of its files in shards, without the dot; empty for text, whose captions stand in the sample's JSON.
    """

    reader: str
    encoder: str
    extensions: frozenset[str]


MODALITIES: dict[str, Modality] = {
    "image": Modality("polyweft.data.decode", "polyweft.models.image", IMAGE_EXTENSIONS),
    "text": Modality("polyweft.data.text", "polyweft.models.text", frozenset()),
    "audio": Modality("polyweft.data.audio", "polyweft.models.audio", AUDIO_EXTENSIONS),
    "video": Modality("polyweft.data.video", "polyweft.models.video", VIDEO_EXTENSIONS),
    "graph": Modality("polyweft.data.graph", "polyweft.models.graph", frozenset({"graph"})),
}
"""In this order they stand in `present`, in manifests and in reports."""

MEDIA = tuple(name for name, modality in MODALITIES.items() if modality.extensions)
"""The modalities whose content is a file."""


def medium_or(*others: str, but: str | None = None) -> Callable[[str], str]:
    """A check of parameters that name a medium (but not `but`) or one of `others`; raises `ValueError`."""

    def checked(name: str) -> str:
        media = [medium for medium, modality in MODALITIES.items() if modality.extensions and medium != but]
        if name not in (*media, *others):
            raise ValueError(f"there are {', '.join((*media, *others))}")
        return name

    return checked


def reader_module(name: str) -> Any:
    """The module with the class `Reader` of modality `name`."""
    return importlib.import_module(MODALITIES[name].reader)


def encoder_module(name: str) -> Any:
    """The module with `Params`, `reader_spec` and `build` of modality `name`; it may import torch."""
    return importlib.import_module(MODALITIES[name].encoder)
