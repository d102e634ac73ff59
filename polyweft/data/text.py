"""Text as models see it: cleaning, and token ids in CLIP's format (start, tokens, end, padding).

Serving copies this file verbatim into an environment without the library: it imports the standard
library, numpy and tokenizers only, and runs on numpy 1.26 and 2.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders

SPEC_FILE = "text.json"
VOCABULARY_FILE = "tokenizer.json"
KINDS = ("bpe", "clip", "folder", "hash")
HASH_RESERVED = 3
"""The first ids of a `hash` vocabulary: padding, start, end."""

# ASCII only, so that Chinese written right behind an address stays.
_URL = re.compile(r"(?:https?|ftp)://[!-~]*|(?<!\w)www\.[!-~]+", re.IGNORECASE)
# Signs that show nothing but are no control characters: variation selectors, joiners of Hangul and the like.
_INVISIBLE = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
_CJK = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_BETWEEN_CJK = re.compile(rf"(?<={_CJK}) (?={_CJK})")
_PIECE = re.compile(rf"{_CJK}|\w+?(?={_CJK}|\b)|[^\w\s]")


class TokenizerError(ValueError):
    """The tokenizer's files are missing or malformed."""


class TextDecodeError(ValueError):
    """Bytes that are not UTF-8."""


class _Drop(dict[int, int | None]):
    """A table for `str.translate`, filled as characters are met: None drops a character."""

    def __missing__(self, code: int) -> int | None:
        character = chr(code)
        drop = code in _INVISIBLE or unicodedata.category(character) in ("Cc", "Cf", "Cs")
        self[code] = None if drop and not character.isspace() else code
        return self[code]


_DROP = _Drop()


def clean(text: str) -> str:
    """Remove what carries no meaning for a model; `clean(clean(x)) == clean(x)`.

    Web addresses, control characters, zero-width characters and lone surrogates go; full-width and other
    compatibility forms become their plain ones (Unicode NFKC); runs of white space become one space, none
    at the ends. The answer can be empty.
    """
    while True:
        # One step can make room for another (an accent whose zero-width neighbour went composes): repeat
        # until nothing changes. Every step but the first pass of NFKC only shortens, so this ends.
        plain = unicodedata.normalize("NFKC", text.translate(_DROP))
        plain = " ".join(_URL.sub(" ", plain).split())
        if plain == text:
            return plain
        text = plain


class TextTokenizer:
    """Texts to token ids, the same in training, evaluation and serving. Load it with `load`.

    Attributes
    ----------
    kind
        `bpe` (trained on the captions), `clip` (OpenAI's vocabulary), `folder` (a pretrained model's own) or
        `hash`.
    max_tokens
        The longest sequence, start and end included.
    pad_id, start_id, end_id
        The ids around a text. For `clip` the pad id is 0, as in OpenAI's code.
    vocabulary_size
        Ids are below it.
    lowercase
        Whether case is dropped.
    """

    def __init__(self, spec: dict[str, Any], vocabulary: Tokenizer | None) -> None:
        self.kind: str = spec["kind"]
        self.max_tokens: int = spec["max_tokens"]
        self.pad_id: int = spec["pad_id"]
        self.start_id: int = spec["start_id"]
        self.end_id: int = spec["end_id"]
        self.vocabulary_size: int = spec["vocabulary_size"]
        self.lowercase: bool = spec["lowercase"]
        self._vocabulary = vocabulary
        if vocabulary is not None:
            # A caption that spells "<|endoftext|>" is text, not the end of the text.
            vocabulary.encode_special_tokens = True
            vocabulary.no_padding()
            vocabulary.no_truncation()

    @classmethod
    def load(cls, folder: Path) -> TextTokenizer:
        """Read `text.json` and, except for kind `hash`, `tokenizer.json` from `folder`.

        Raises
        ------
        TokenizerError
            A file is missing or is not what it should be; the message names it.
        """
        path = Path(folder) / SPEC_FILE
        try:
            spec = json.loads(path.read_text(encoding="utf-8"))
            if spec["kind"] not in KINDS:
                raise TokenizerError(
                    f"{path}: kind {spec['kind']!r} is not one of {KINDS}; prepare the data anew"
                )
            vocabulary = None
            if spec["kind"] != "hash":
                path = Path(folder) / VOCABULARY_FILE
                vocabulary = Tokenizer.from_str(path.read_text(encoding="utf-8"))
            return cls(spec, vocabulary)
        except TokenizerError:
            raise
        except OSError as error:
            raise TokenizerError(
                f"{path} cannot be read ({error.strerror}); run the prepare stage"
            ) from error
        except Exception as error:  # tokenizers raises bare Exception for a malformed file
            raise TokenizerError(f"{path} is malformed ({error!r}); run the prepare stage again") from error

    def encode(self, texts: Sequence[str], *, length: int | None = None) -> npt.NDArray[np.int64]:
        """Clean `texts` and turn them into ids.

        Parameters
        ----------
        texts
            B texts of any length and content; an empty one gives start and end alone.
        length
            T, from 2 to `max_tokens`; None pads to the longest of the batch.

        Returns
        -------
        int64 array [B, T]: start, tokens, end, padding. A text that is too long is cut before its end
        token, which stays.
        """
        if length is not None and not 2 <= length <= self.max_tokens:
            raise ValueError(f"length is {length}; expected 2 to max_tokens = {self.max_tokens}")
        limit = (length or self.max_tokens) - 2
        rows = [ids[:limit] for ids in self.tokens([clean(text) for text in texts])]
        width = length or max((len(ids) for ids in rows), default=0) + 2
        encoded = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        encoded[:, 0] = self.start_id
        for row, ids in zip(encoded, rows, strict=True):
            row[1 : len(ids) + 1] = ids
            row[len(ids) + 1] = self.end_id
        return encoded

    def tokens(self, cleaned: Sequence[str]) -> list[list[int]]:
        """The ids of each text that `clean` gave, without start and end, and not cut."""
        if self._vocabulary is None:
            return [self._hashed(text) for text in cleaned]
        encodings = self._vocabulary.encode_batch_fast(list(cleaned), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without start, end and padding; raises `TokenizerError` for kind `hash`."""
        if self._vocabulary is None:
            raise TokenizerError("a hash vocabulary cannot be read back; prepare the data with bpe or clip")
        if self.kind == "folder":
            return str(self._vocabulary.decode([int(token) for token in ids], skip_special_tokens=True))
        pieces = [self._vocabulary.id_to_token(int(token)) or "" for token in ids]
        # CLIP's vocabulary marks the ends of words, a byte-level BPE their beginnings.
        text = decoders.ByteLevel().decode(pieces).replace("</w>", " ")
        return _BETWEEN_CJK.sub("", " ".join(text.split()))

    def _hashed(self, text: str) -> list[int]:
        pieces = _PIECE.findall(text.lower() if self.lowercase else text)
        return [_bucket(piece, self.vocabulary_size) for piece in pieces]


class Reader:
    """Modality `text`: UTF-8 to token ids; `folder` holds the tokenizer's files."""

    tensor = "input_ids"
    dtype = raw_dtype = "int64"

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.tokenizer = TextTokenizer.load(folder)
        self.pad = self.tokenizer.pad_id
        self.shape = self.raw_shape = [-1]

    def raw(self, content: bytes) -> npt.NDArray[np.int64]:
        """Token ids [T] of one text, start and end included; raises `TextDecodeError`."""
        ids: npt.NDArray[np.int64] = self.read([content])[0]
        return ids

    def finish(self, raw: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Padded token ids are what the model takes."""
        return raw

    def read(self, contents: Sequence[bytes], *, length: int | None = None) -> npt.NDArray[np.int64]:
        """Texts to token ids [B, T], padded to the longest, or to `length`."""
        return self.tokenizer.encode([_decoded(content) for content in contents], length=length)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextDecodeError(f"text is not UTF-8: {error}; send UTF-8 bytes") from None


def _bucket(piece: str, vocabulary_size: int) -> int:
    digest = hashlib.blake2b(piece.encode("utf-8"), digest_size=8).digest()
    return HASH_RESERVED + int.from_bytes(digest, "big") % (vocabulary_size - HASH_RESERVED)
