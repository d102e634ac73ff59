"""Start from weights that exist (`train.init_from`): a trained folder, safetensors, a transformers folder.

What fits by name and shape is taken, what does not is said; no format that can run code is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from polyweft.data.text import VOCABULARY_FILE
from polyweft.errors import DataError
from polyweft.io import read_json
from polyweft.training import checkpoint

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
SHOWN = 4
FEWEST = 4
"""Tensors that a part of foreign weights must share with a part of the model to be taken for the same part:
`weight` and `bias` alone stand in every layer."""


@dataclass(frozen=True)
class Loaded:
    """What came of loading: names of the model's tensors, `unexpected` of the source's.

    Attributes
    ----------
    loaded, missing
        Taken from the source, and not found there.
    mismatched
        Found with another shape and left as they were: name, the model's shape, the source's.
    unexpected
        The source's tensors that the model has no place for.
    """

    source: str
    loaded: list[str]
    missing: list[str]
    mismatched: list[tuple[str, list[int], list[int]]]
    unexpected: list[str]

    def __str__(self) -> str:
        """A line for the whole, and one for each kind of difference with its first names."""
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        lines = [f"init_from {self.source}: took {len(self.loaded)} of the model's {total} tensors"]
        shapes = [f"{name} {theirs}, here {ours}" for name, ours, theirs in self.mismatched]
        for title, names in (
            ("of another shape, left as they were", shapes),
            ("missing there, left as they were", self.missing),
            ("not used", self.unexpected),
        ):
            if names:
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"  {len(names)} {title}: {', '.join(names[:SHOWN])}{more}")
        return "\n".join(lines)


def load_into(module: nn.Module, source: Path) -> Loaded:
    """Copy into `module`, of any family, the tensors of `source` that fit by name and shape.

    Parameters
    ----------
    source
        A folder that `train` left (`model.safetensors`, `config.json`), a checkpoint's folder, a safetensors
        file with this project's names, or a folder of transformers, whose parts are matched with those of
        the model.

    Raises
    ------
    DataError
        `source` is missing, damaged, holds pickles alone, or nothing in it fits.
    """
    tensors, foreign = _read(source)
    ours = module.state_dict()
    places = _places(list(tensors), list(ours)) if foreign else {name: name for name in tensors}
    loaded, mismatched, unexpected = [], [], []
    for name, tensor in sorted(tensors.items()):
        place = places.get(name, "")
        if place not in ours:
            unexpected.append(name)
        elif ours[place].shape != tensor.shape:
            mismatched.append((place, list(ours[place].shape), list(tensor.shape)))
        else:
            with torch.no_grad():
                ours[place].copy_(tensor)
            loaded.append(place)
    if not loaded:
        raise DataError(
            f"train.init_from: of the {len(tensors)} tensors in {source} none fits the model; it has e.g. "
            f"{', '.join(list(tensors)[:SHOWN])}, the model {', '.join(list(ours)[:SHOWN])}. Name weights of "
            "the same family or encoder, or set it to null."
        )
    met = {*loaded, *(name for name, _, _ in mismatched)}
    return Loaded(str(source), loaded, [name for name in ours if name not in met], mismatched, unexpected)


def other_tokens(source: Path, prepared: Path) -> str | None:
    """A warning where the weights know a token's number as another word than the data; None where not."""
    theirs, ours = source / VOCABULARY_FILE, prepared / VOCABULARY_FILE
    if not (theirs.exists() and ours.exists()) or theirs.read_bytes() == ours.read_bytes():
        return None
    return (
        f"warning: {theirs} is not the tokenizer of the data, so what the weights know of words belongs to "
        "others now. To keep it: prepare.tokenizer: folder, prepare.tokenizer_folder: the folder of the "
        "weights."
    )


def _read(source: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of `source` by name, and whether the names are another project's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if source.suffix in PICKLES:
        raise DataError(_pickled(source))
    if (source / checkpoint.STATE).exists():
        return checkpoint.at(source).part("model."), False
    file = source / "model.safetensors" if source.is_dir() else source
    if source.is_dir() and (source / "config.json").exists():
        config = read_json(source / "config.json")
        if isinstance(config, dict) and "model_type" in config:
            from polyweft.models.huggingface_weights import read_folder

            return read_folder(source), True
    if not file.exists():
        if source.is_dir() and any(path.suffix in PICKLES for path in source.iterdir()):
            raise DataError(_pickled(source))
        raise DataError(
            f"train.init_from: {file} is missing. Name a folder that `train` left, a safetensors file, or a "
            "transformers folder."
        )
    try:
        return load_file(file), False
    except (OSError, SafetensorError) as error:
        raise DataError(f"train.init_from: {file} is not a readable safetensors file: {error}.") from error


def _pickled(source: Path) -> str:
    return (
        f"train.init_from: {source} holds pickled weights, which can run any code when they are read. "
        "Convert them to safetensors where they come from, or take a version that has them."
    )


def _places(theirs: Sequence[str], ours: Sequence[str]) -> dict[str, str]:
    """Where foreign tensors belong: the largest parts of both whose names agree within them, first.

    A part is what begins with a prefix such as `vision_model.` or `towers.image.encoder.model.`.
    """
    found: dict[str, str] = {}
    free_theirs, free_ours = set(theirs), set(ours)
    while True:
        best: dict[str, str] = {}
        for prefix, inner in _parts(free_theirs, depth=2).items():
            for other, here in _parts(free_ours, depth=8).items():
                common = inner & here
                if len(common) > max(len(best), FEWEST - 1, len(inner) // 2 - 1):
                    best = {prefix + name: other + name for name in common}
        if not best:
            return found
        found |= best
        free_theirs -= best.keys()
        free_ours -= set(best.values())


def _parts(names: set[str], *, depth: int) -> Mapping[str, set[str]]:
    """By prefix of up to `depth` words, the rest of the names that begin with it."""
    parts: dict[str, set[str]] = {}
    for name in sorted(names):
        words = name.split(".")
        for count in range(min(depth, len(words) - 1) + 1):
            prefix = "".join(f"{word}." for word in words[:count])
            parts.setdefault(prefix, set()).add(name.removeprefix(prefix))
    return parts
