"""Making tokenizers: a BPE that is the same everywhere, and CLIP's vocabulary by CLIP's rules."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.text import TextTokenizer, clean
from polyweft.data.tokenizer_training import (
    ALPHABET,
    TokenizerKind,
    load_tokenizer,
    train_bpe,
    write_tokenizer,
)
from polyweft.errors import DataError

CAPTIONS = ["a red circle above a blue square", "红色的圆在蓝色方块上方", "a red circle", "红色的圆"] * 3


def write(
    folder: Path, kind: TokenizerKind = "bpe", *, clip: Path | None = None, captions: list[str] | None = None
) -> tuple[str, str]:
    choice = write_tokenizer(
        folder,
        CAPTIONS if captions is None else captions,
        kind=kind,
        vocabulary_size=400,
        max_tokens=77,
        lowercase=True,
        clip_vocabulary=clip,
    )
    return choice.kind, choice.reason


def test_training_is_the_same_bytes_in_any_order_process_and_hash_seed(tmp_path: Path) -> None:
    shuffled = CAPTIONS.copy()
    random.Random(3).shuffle(shuffled)
    here = train_bpe(CAPTIONS, vocabulary_size=400, lowercase=True).to_str()
    assert train_bpe(shuffled, vocabulary_size=400, lowercase=True).to_str() == here
    program = (
        "import hashlib, json, sys; from polyweft.data.tokenizer_training import train_bpe; "
        "text = train_bpe(json.loads(sys.argv[1]), vocabulary_size=400, lowercase=True).to_str(); "
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program, json.dumps(CAPTIONS)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == hashlib.sha256(here.encode()).hexdigest()


def test_training_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    train_bpe(CAPTIONS, vocabulary_size=400, lowercase=True)
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    train_bpe(CAPTIONS, vocabulary_size=400, lowercase=True)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_nothing_is_unknown_to_a_bpe(text: str) -> None:
    cleaned = clean(text).lower()
    vocabulary = bpe()
    ids = vocabulary.encode(cleaned, add_special_tokens=False).ids
    assert vocabulary.decode(ids).replace(" ", "") == cleaned.replace(" ", "")


@functools.cache
def bpe():  # type: ignore[no-untyped-def]
    return train_bpe(CAPTIONS, vocabulary_size=400, lowercase=True)


def test_frequent_words_and_han_characters_are_one_token_wherever_they_stand(tmp_path: Path) -> None:
    write(tmp_path)
    encoder = TextTokenizer.load(tmp_path)
    [red], [circle], mixed = encoder.tokens(["红", "CIRCLE", "a circle红色的圆"])
    assert mixed[1:3] == [circle, red]
    assert len(mixed) == 6


def test_auto_takes_clip_where_the_folder_has_it_and_says_why(tmp_path: Path) -> None:
    clip_vocabulary(tmp_path / "clip")
    assert write(tmp_path / "a", "auto")[0] == "bpe"
    kind, reason = write(tmp_path / "b", "auto", clip=tmp_path / "empty")
    assert (kind, "holds no CLIP vocabulary" in reason) == ("bpe", True)
    assert write(tmp_path / "c", "auto", clip=tmp_path / "clip")[0] == "clip"
    assert write(tmp_path / "d", "hash", clip=tmp_path / "clip") == (
        "hash",
        "prepare.tokenizer asks for hash",
    )
    assert not (tmp_path / "d" / "tokenizer.json").exists()


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("kind", ["auto", "clip"])
def test_half_a_clip_vocabulary_is_an_error(tmp_path: Path, missing: str, kind: TokenizerKind) -> None:
    clip_vocabulary(tmp_path / "clip")
    (tmp_path / "clip" / missing).unlink()
    with pytest.raises(DataError, match=f"lacks {missing}"):
        write(tmp_path, kind, clip=tmp_path / "clip")


def test_a_malformed_clip_vocabulary_is_an_error(tmp_path: Path) -> None:
    clip_vocabulary(tmp_path / "clip")
    for content, message in (("{", "is malformed"), ('{"a": 0}', "this is not CLIP's|is malformed")):
        (tmp_path / "clip" / "vocab.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            write(tmp_path, "clip", clip=tmp_path / "clip")


def test_clip_has_its_own_ids_and_pads_with_zero(tmp_path: Path) -> None:
    size = clip_vocabulary(tmp_path / "clip")
    write(tmp_path, "clip", clip=tmp_path / "clip")
    encoder = TextTokenizer.load(tmp_path)
    assert (encoder.vocabulary_size, encoder.start_id, encoder.end_id, encoder.pad_id) == (
        size,
        size - 2,
        size - 1,
        0,
    )


@pytest.mark.parametrize(
    "text",
    [
        "A red circle, above the circles!",
        "it's 2024 and they're here :-) ...",
        "don't   stop",
        "红色的圆 and a circle",
        "naïve café",
        "<|endoftext|>",
        "!?",
    ],
)
def test_clip_tokens_equal_those_of_openais_algorithm(tmp_path: Path, text: str) -> None:
    clip_vocabulary(tmp_path / "clip")
    write(tmp_path, "clip", clip=tmp_path / "clip")
    assert TextTokenizer.load(tmp_path).tokens([clean(text)])[0] == openai_encode(text, tmp_path / "clip")


def test_a_bpe_needs_captions_and_room_for_every_byte() -> None:
    with pytest.raises(DataError, match="no caption is left"):
        train_bpe([], vocabulary_size=400, lowercase=True)
    with pytest.raises(DataError, match=f"needs {ALPHABET} at least"):
        train_bpe(CAPTIONS, vocabulary_size=100, lowercase=True)


def test_a_missing_tokenizer_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text\.json"):
        load_tokenizer(tmp_path)
    write(tmp_path)
    assert load_tokenizer(tmp_path).kind == "bpe"


# OpenAI's simple_tokenizer.py in small: its byte table, the layout of its vocabulary, and its merging loop.


@functools.cache
def byte_table() -> dict[int, str]:
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        table.setdefault(byte, chr(256 + len(table) - len(plain)))
    return table


MERGES = (
    "c i|r e|ci r|c l|cir cl|circl e</w>|re d</w>|' s</w>|a n|an d</w>|. .|.. .</w>|d o|do n</w>|t h|th e</w>"
)


def clip_vocabulary(folder: Path) -> int:
    folder.mkdir()
    letters = list(byte_table().values())
    merges = [tuple(merge.split()) for merge in MERGES.split("|")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(tokens)


def openai_encode(text: str, folder: Path) -> list[int]:
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    ranks = {tuple(merge.split()): rank for rank, merge in enumerate(MERGES.split("|"))}
    text = re.sub(r"\s+", " ", text).strip().lower()
    found = []
    for word in re.findall(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", text):
        letters = [byte_table()[byte] for byte in word.encode()]
        parts = [*letters[:-1], letters[-1] + "</w>"]
        while len(parts) > 1:
            best = min(itertools.pairwise(parts), key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            merged, place = [], 0
            while place < len(parts):
                joined = tuple(parts[place : place + 2]) == best
                merged.append("".join(best) if joined else parts[place])
                place += 2 if joined else 1
            parts = merged
        found += [ids[part] for part in parts]
    return found
