"""A pretrained model's tokenizer gives the ids that transformers gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyweft.data.text import TextTokenizer
from polyweft.data.tokenizer_folder import load_folder
from polyweft.errors import DataError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "circle", "##s", "a", "bright", "!"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.normalizer = normalizers.BertNormalizer(lowercase=True)
    vocabulary.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    vocabulary.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    vocabulary.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    vocabulary.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_ids_are_those_of_the_models_own_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer

    found = load_folder(folder)
    assert (found.pad_id, found.start_id, found.end_id) == (0, 2, 3)
    assert (found.vocabulary_size, found.lowercase) == (len(WORDS), True)
    spec = {
        "kind": "bpe", "max_tokens": 8, "pad_id": found.pad_id, "start_id": found.start_id,
        "end_id": found.end_id, "vocabulary_size": found.vocabulary_size, "lowercase": found.lowercase,
    }  # fmt: skip
    ours = TextTokenizer(spec, found.vocabulary)
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("A bright red circle!", "Circles", "unknown words", ""):
        ids = ours.encode([text])[0].tolist()
        assert ids == theirs.encode(text).ids


def test_a_table_with_more_rows_than_tokens_and_named_tokens_are_respected(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 16}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"cls_token": {"content": "bright"}, "sep_token": "!", "pad_token": None})
    )
    found = load_folder(folder)
    assert (found.start_id, found.end_id, found.pad_id, found.vocabulary_size) == (8, 9, 0, 16)


def test_a_folder_without_a_usable_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"sep_token": "<nowhere>"}))
    with pytest.raises(DataError, match="<nowhere> for end_id"):
        load_folder(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="malformed"):
        load_folder(folder)
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read"):
        load_folder(tmp_path / "nowhere")
