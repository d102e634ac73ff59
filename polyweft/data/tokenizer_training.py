"""The tokenizer that a data set is prepared with: a BPE trained on it, OpenAI's CLIP vocabulary, or hashing.

The reading side is `polyweft.data.text`; the files written here are all that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polyweft.data.text import HASH_RESERVED, SPEC_FILE, VOCABULARY_FILE, TextTokenizer, TokenizerError
from polyweft.data.tokenizer_folder import load_folder
from polyweft.errors import DataError
from polyweft.io import write_json, write_text

TokenizerKind = Literal["auto", "bpe", "clip", "folder", "hash"]

PAD, START, END = "<|pad|>", "<|startoftext|>", "<|endoftext|>"
ALPHABET = 256 + 3
"""The smallest BPE vocabulary: every byte, so that no text is unknown, and the three special tokens."""

# OpenAI's simple_tokenizer.py: words, single digits, runs of signs; contractions split off.
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_FILES = ("vocab.json", "merges.txt")


@dataclass(frozen=True)
class TokenizerChoice:
    """What was chosen: its kind, why, and the size of its vocabulary."""

    kind: str
    reason: str
    vocabulary_size: int


def write_tokenizer(
    folder: Path,
    captions: Sequence[str],
    *,
    kind: TokenizerKind,
    vocabulary_size: int,
    max_tokens: int,
    lowercase: bool,
    clip_vocabulary: Path | None,
    tokenizer_folder: Path | None = None,
) -> TokenizerChoice:
    """Write `tokenizer.json` (not for `hash`) and `text.json` to `folder`, and say what was chosen.

    Parameters
    ----------
    captions
        Cleaned captions of the training split alone: a vocabulary must not know the test split.
    kind
        `auto` takes OpenAI's CLIP vocabulary where `clip_vocabulary` holds it, and trains a BPE otherwise.
    vocabulary_size
        The most entries of a BPE, or the buckets of a hash; CLIP's is given by its files.
    clip_vocabulary
        A folder with CLIP's `vocab.json` and `merges.txt`.

    tokenizer_folder
        For `folder`: the folder of a pretrained text model.

    Raises
    ------
    DataError
        CLIP's vocabulary is asked for and missing or malformed, or there is no caption to train a BPE on.
    """
    chosen, reason = _choose(kind, clip_vocabulary)
    ids = {"pad_id": 0, "start_id": 1, "end_id": 2}
    if chosen == "folder":
        if tokenizer_folder is None:
            raise DataError("prepare.tokenizer is folder, but prepare.tokenizer_folder names none. Name it.")
        own = load_folder(tokenizer_folder)
        ids = {"pad_id": own.pad_id, "start_id": own.start_id, "end_id": own.end_id}
        vocabulary_size, lowercase = own.vocabulary_size, own.lowercase
        write_text(folder / VOCABULARY_FILE, own.vocabulary.to_str(pretty=False))
    elif chosen == "hash":
        vocabulary_size = max(vocabulary_size, HASH_RESERVED + 1)
    else:
        if chosen == "clip":
            assert clip_vocabulary is not None
            vocabulary, lowercase = load_clip(clip_vocabulary), True
            # OpenAI's code pads with 0; it has no padding token of its own.
            ids |= {"start_id": vocabulary.token_to_id(START), "end_id": vocabulary.token_to_id(END)}
        else:
            vocabulary = train_bpe(captions, vocabulary_size=vocabulary_size, lowercase=lowercase)
        vocabulary_size = vocabulary.get_vocab_size()
        write_text(folder / VOCABULARY_FILE, vocabulary.to_str(pretty=False))
    spec = {
        "kind": chosen,
        "max_tokens": max_tokens,
        "vocabulary_size": vocabulary_size,
        "lowercase": lowercase,
    }
    write_json(folder / SPEC_FILE, spec | ids)
    return TokenizerChoice(chosen, reason, vocabulary_size)


def train_bpe(captions: Sequence[str], *, vocabulary_size: int, lowercase: bool) -> Any:
    """Train a byte-level BPE (Sennrich et al. 2016, as in GPT-2); return a `tokenizers.Tokenizer`.

    The same captions in any order give the same vocabulary, in every process. Han characters are words of
    their own, as in BERT's Chinese vocabulary: nothing parts a run of them, and a small data set would
    otherwise make tokens of whole phrases, each seen too seldom to learn.

    Raises
    ------
    DataError
        There is no caption, or `vocabulary_size` is below `ALPHABET`.
    """
    if not captions:
        raise DataError(
            "no caption is left to train a BPE tokenizer on. Give captions, or set prepare.tokenizer to hash."
        )
    if vocabulary_size < ALPHABET:
        raise DataError(
            f"prepare.vocabulary_size is {vocabulary_size}; a byte-level BPE needs {ALPHABET} at least."
        )
    # Threads make the order of equal pairs a matter of chance; tokenizers reads this at each use.
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return _train(sorted(captions), vocabulary_size, lowercase)
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _train(captions: list[str], vocabulary_size: int, lowercase: bool) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    vocabulary = Tokenizer(models.BPE())
    if lowercase:
        vocabulary.normalizer = normalizers.Lowercase()
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{Han}"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True),
        ]
    )
    vocabulary.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=[PAD, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    vocabulary.train_from_iterator(captions, trainer)
    return vocabulary


def load_clip(folder: Path) -> Any:
    """CLIP's tokenizer from `vocab.json` and `merges.txt` in `folder`, as a `tokenizers.Tokenizer`.

    The rules are those of OpenAI's `simple_tokenizer.py`: lower case, a byte-level BPE within words, and
    `</w>` at a word's end.

    Raises
    ------
    DataError
        A file is missing or malformed, or lacks CLIP's start and end tokens.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    paths = [folder / name for name in _CLIP_FILES]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {' and '.join(missing)} of CLIP's vocabulary. Put both files there, "
            "or set prepare.tokenizer to bpe."
        )
    try:
        model = models.BPE.from_file(
            *map(str, paths), unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix=""
        )
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        raise DataError(
            f"CLIP's vocabulary in {folder} is malformed ({error}). Fetch both files anew."
        ) from error
    vocabulary = Tokenizer(model)
    if vocabulary.token_to_id(START) is None or vocabulary.token_to_id(END) is None:
        raise DataError(f"{folder}/vocab.json lacks {START} or {END}; this is not CLIP's vocabulary.")
    vocabulary.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    vocabulary.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    vocabulary.add_special_tokens([START, END])
    return vocabulary


def _choose(kind: TokenizerKind, clip_vocabulary: Path | None) -> tuple[str, str]:
    if kind == "clip" and clip_vocabulary is None:
        raise DataError(
            "prepare.tokenizer is clip, but prepare.clip_vocabulary names no folder. Name the folder that "
            "holds CLIP's vocab.json and merges.txt, or set prepare.tokenizer to bpe."
        )
    if kind != "auto":
        return kind, f"prepare.tokenizer asks for {kind}"
    if clip_vocabulary is None:
        return "bpe", "auto: prepare.clip_vocabulary names no folder, so a BPE was trained on the captions"
    if any((clip_vocabulary / name).is_file() for name in _CLIP_FILES):
        return "clip", "auto: prepare.clip_vocabulary holds CLIP's vocabulary"
    return (
        "bpe",
        "auto: prepare.clip_vocabulary holds no CLIP vocabulary, so a BPE was trained on the captions",
    )


def load_tokenizer(folder: Path) -> TextTokenizer:
    """`TextTokenizer.load` for stages: what is wrong with the files is a `DataError`."""
    try:
        return TextTokenizer.load(folder)
    except TokenizerError as error:
        raise DataError(str(error)) from error
