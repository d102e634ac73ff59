"""Texts as sets of words and neighbouring words: a small vocabulary for checks, made from the data itself.

Latin words count whole, Chinese characters each; it needs no tokenizer, so that checks run before one is
trained.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from polyweft.data.text import clean

_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]"
_WORD = re.compile(rf"{_HAN}|(?:(?!{_HAN})\w)+")


def has_han(text: str) -> bool:
    """Whether a Chinese character stands in `text`."""
    return re.search(_HAN, text) is not None


def canonical(text: str) -> str:
    """The text as it is compared with others: cleaned, without case."""
    return clean(text).casefold()


def grams(texts: Sequence[str]) -> set[str]:
    """Every word and every two neighbouring words of the texts."""
    found: set[str] = set()
    for text in texts:
        words = _WORD.findall(canonical(text))
        found.update(words)
        found.update(f"{one} {two}" for one, two in itertools.pairwise(words))
    return found


def presence(rows: Sequence[set[str]], *, at_least: int, at_most: int) -> npt.NDArray[np.bool_]:
    """Which gram stands in which row: bool [rows, grams], the grams in the order of their spelling.

    A gram is kept if `at_least` rows hold it and some row does not; of too many, the `at_most` that most
    rows hold, ties by spelling.
    """
    counts = Counter(gram for row in rows for gram in row)
    kept = [gram for gram, number in counts.items() if at_least <= number < len(rows)]
    kept = sorted(sorted(kept, key=lambda gram: (-counts[gram], gram))[:at_most])
    column = {gram: place for place, gram in enumerate(kept)}
    out = np.zeros((len(rows), len(kept)), dtype=np.bool_)
    for place, row in enumerate(rows):
        out[place, [column[gram] for gram in row if gram in column]] = True
    return out
