"""Cleaning and encoding: laws that training and serving both lean on."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.data.text import HASH_RESERVED, TextTokenizer, TokenizerError, clean
from polyweft.data.tokenizer_training import TokenizerKind, write_tokenizer

CAPTIONS = ["a red circle above a blue square", "红色的圆在蓝色方块上方", "a red circle", "红色的圆"] * 3
# Every code point, lone surrogates too, and the pieces that cleaning looks for.
ANY_TEXT = st.lists(
    st.text(st.characters(), max_size=8)
    | st.characters(categories=["Cs", "Cc", "Cf", "Mn", "Zs"])
    | st.sampled_from(
        ["http://", "https://a.b/c", "www.", "ｈｔｔｐ：／／ｘ", "\u200d", "ﷺ", "é", "e\u0301"]
    ),
    max_size=8,
).map("".join)


def tokenizer(folder: Path, kind: TokenizerKind = "bpe", max_tokens: int = 77) -> TextTokenizer:
    write_tokenizer(
        folder,
        CAPTIONS,
        kind=kind,
        vocabulary_size=400,
        max_tokens=max_tokens,
        lowercase=True,
        clip_vocabulary=None,
    )
    return TextTokenizer.load(folder)


@pytest.fixture(scope="module", params=["bpe", "hash"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return tokenizer(tmp_path_factory.mktemp("tokenizer"), request.param, max_tokens=12)


@settings(deadline=None)
@given(ANY_TEXT)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert clean(clean(text)) == clean(text)


@settings(deadline=None)
@given(ANY_TEXT)
def test_cleaned_text_holds_nothing_invisible_and_single_spaces(text: str) -> None:
    cleaned = clean(text)
    assert not {unicodedata.category(c) for c in cleaned} & {"Cc", "Cf", "Cs"}
    assert cleaned == " ".join(cleaned.split())
    assert unicodedata.is_normalized("NFKC", cleaned)


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("  two\t\nlines ", "two lines"),
        ("Ｆｕｌｌ　ｗｉｄｔｈ", "Full width"),
        ("look: https://a.example/x?y=1#z and WWW.b.example/c", "look: and"),
        ("看http://a.b/c这里", "看 这里"),
        ("ｈｔｔｐ：／／a.b now", "now"),
        ("zero\u200bwidth\ufeff and\u00ad soft", "zerowidth and soft"),
        ("half \ud83d a pair", "half a pair"),
        ("bell\x07 and null\x00", "bell and null"),
        ("❤\ufe0f", "❤"),
        ("e\u200d\u0301", "é"),
        ("awww.cute", "awww.cute"),
        ("", ""),
    ],
)
def test_what_cleaning_removes(given_text: str, expected: str) -> None:
    assert clean(given_text) == expected


@given(
    texts=st.lists(ANY_TEXT | st.sampled_from(["word " * 3000, "字" * 10_000, "<|endoftext|>"]), max_size=4)
)
def test_any_text_becomes_start_tokens_end_padding(encoder: TextTokenizer, texts: list[str]) -> None:
    encoded = encoder.encode(texts)
    assert encoded.dtype == np.int64
    assert encoded.shape[0] == len(texts)
    assert encoded.shape[1] <= encoder.max_tokens
    for row in encoded:
        assert row[0] == encoder.start_id
        assert np.count_nonzero(row == encoder.end_id) == 1
        end = int(np.argmax(row == encoder.end_id))
        assert np.all(row[end + 1 :] == encoder.pad_id)
        assert np.all((row[1:end] >= HASH_RESERVED) & (row[1:end] < encoder.vocabulary_size))


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_a_text_is_encoded_the_same_alone_and_in_a_batch(encoder: TextTokenizer, texts: list[str]) -> None:
    together = encoder.encode(texts, length=encoder.max_tokens)
    alone = [encoder.encode([text], length=encoder.max_tokens)[0] for text in texts]
    np.testing.assert_array_equal(together, np.stack(alone))


def test_an_empty_text_is_start_and_end(encoder: TextTokenizer) -> None:
    assert encoder.encode([""]).tolist() == [[encoder.start_id, encoder.end_id]]
    assert encoder.encode([]).shape == (0, 2)


def test_a_shorter_length_cuts_before_the_end_token(encoder: TextTokenizer) -> None:
    whole, cut = (
        encoder.encode(["a red circle above"])[0],
        encoder.encode(["a red circle above"], length=4)[0],
    )
    assert cut.tolist() == [*whole[:3].tolist(), encoder.end_id]


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_length_that_no_text_fits_is_refused(encoder: TextTokenizer, length: int) -> None:
    with pytest.raises(ValueError, match="2 to max_tokens = 12"):
        encoder.encode(["a"], length=length)


def test_case_and_width_make_no_difference(encoder: TextTokenizer) -> None:
    np.testing.assert_array_equal(encoder.encode(["A RED circle"]), encoder.encode(["a ｒｅｄ  circle"]))


def test_hashing_separates_han_characters_words_and_signs(tmp_path: Path) -> None:
    encoder = tokenizer(tmp_path, "hash")
    mixed, apart = encoder.encode(["red圆, 红色"])[0], encoder.encode(["red 圆 , 红 色"])[0]
    np.testing.assert_array_equal(mixed, apart)
    assert len(mixed) == 7


@pytest.mark.parametrize("kind", ["bpe", "hash"])
def test_another_process_gives_the_same_ids(tmp_path: Path, kind: TokenizerKind) -> None:
    here = tokenizer(tmp_path, kind).encode(["Red 圆 xyz!"]).tolist()
    program = (
        "import sys; from pathlib import Path; from polyweft.data.text import TextTokenizer; "
        "print(TextTokenizer.load(Path(sys.argv[1])).encode(['Red 圆 xyz!']).tolist())"
    )
    for seed in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        )
        assert json.loads(there.stdout) == here


def test_a_missing_or_malformed_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"text\.json cannot be read"):
        TextTokenizer.load(tmp_path)
    tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is malformed"):
        TextTokenizer.load(tmp_path)
    spec = json.loads((tmp_path / "text.json").read_text(encoding="utf-8"))
    (tmp_path / "text.json").write_text(json.dumps(spec | {"kind": "word"}), encoding="utf-8")
    with pytest.raises(TokenizerError, match="'word' is not one of"):
        TextTokenizer.load(tmp_path)


def test_the_module_imports_nothing_that_serving_lacks() -> None:
    program = (
        "import sys; import polyweft.data.text; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & set(sys.argv[1:])))"
    )
    heavy = ["torch", "pydantic", "pyarrow", "pandas", "PIL", "mlflow"]
    done = subprocess.run(
        [sys.executable, "-c", program, *heavy],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": "."},
    )
    assert done.stdout.strip() == "[]"
