"""The tokenizer of a pretrained text model: `tokenizer.json` of a transformers folder, in the project's form.

Its texts get the model's own start, end and padding tokens: of a BERT `[CLS]`, `[SEP]` and `[PAD]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyweft.errors import DataError
from polyweft.io import read_json

ROLES = {
    "start_id": (("cls_token", "bos_token"), ("[CLS]", "<s>", "<|startoftext|>")),
    "end_id": (("sep_token", "eos_token"), ("[SEP]", "</s>", "<|endoftext|>")),
    "pad_id": (("pad_token",), ("[PAD]", "<pad>", "<|pad|>")),
}
"""By role, the keys of `tokenizer_config.json` that name its token, and usual names where none does."""


@dataclass(frozen=True)
class FolderTokenizer:
    """What `text.json` says of it, but for `max_tokens`, and the vocabulary (a `tokenizers.Tokenizer`)."""

    vocabulary: Any
    start_id: int
    end_id: int
    pad_id: int
    vocabulary_size: int
    lowercase: bool


def load_folder(folder: Path) -> FolderTokenizer:
    """Read the tokenizer of a transformers folder.

    Raises
    ------
    DataError
        `tokenizer.json` is missing or malformed, or has no start, end or padding token.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        vocabulary = Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}). Name the folder of the text model, with the "
            "tokenizer.json that transformers' fast tokenizers write."
        ) from error
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise DataError(f"{path} is malformed ({error}). Fetch it anew.") from error
    named = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    ids: dict[str, int] = {}
    for role, (keys, usual) in ROLES.items():
        tokens = [_text(named[key]) for key in keys if named.get(key)]
        found = [vocabulary.token_to_id(token) for token in tokens or usual]
        known = [token_id for token_id in found if token_id is not None]
        if not known:
            raise DataError(
                f"{folder}: the vocabulary has none of {', '.join(tokens or usual)} for {role}. Name it as "
                f"{keys[0]} in tokenizer_config.json."
            )
        ids[role] = int(known[0])
    probe = vocabulary.normalizer.normalize_str("A") if vocabulary.normalizer is not None else "A"
    return FolderTokenizer(
        vocabulary, **ids, vocabulary_size=_size(folder, vocabulary), lowercase=probe == "a"
    )


def _size(folder: Path, vocabulary: Any) -> int:
    """Rows of the model's token table, which may be more than there are tokens."""
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return max(int(config.get("vocab_size") or 0), int(vocabulary.get_vocab_size()))


def _text(token: Any) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)
