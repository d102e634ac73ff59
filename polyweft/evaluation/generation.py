"""Captions against references: BLEU-4, ROUGE-L and CIDEr, by the libraries that papers use.

Chinese is compared by character, other languages by word; case and, but for BLEU, punctuation do not count.
Shape suffixes: N samples, X statistics of BLEU, B sums of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from polyweft.errors import DataError

FloatArray = npt.NDArray[np.float64]

ORDER = 4
_CJK = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_TOKEN = re.compile(rf"{_CJK}|\w+?(?={_CJK}|\b)")


@dataclass(frozen=True)
class CaptionScores:
    """How good captions are.

    Attributes
    ----------
    rouge_l_N
        ROUGE-L of each sample (Lin, 2004), F1, 0 to 1, of the reference that fits best.
    cider_N
        CIDEr-D of each sample (Vedantam et al., 2015), 0 to 10. How rare an n-gram is comes from all
        samples' references, so that a single sample scores 0.
    bleu_statistics_NX
        Of each sample what sums up to the corpus's BLEU; see `bleu`. BLEU of one short sentence means little.
    """

    rouge_l_N: FloatArray
    cider_N: FloatArray
    bleu_statistics_NX: FloatArray

    def means(self) -> dict[str, float]:
        """`bleu_4` of the corpus (0 to 1), and the means `rouge_l` and `cider`."""
        return {
            "bleu_4": float(bleu(self.bleu_statistics_NX.sum(axis=0)[None])[0]),
            "rouge_l": float(self.rouge_l_N.mean()),
            "cider": float(self.cider_N.mean()),
        }


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """`CaptionScores.means` of `score_captions`."""
    return score_captions(candidates, references).means()


def score_captions(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption a sample against that sample's references, of which there may be several.

    Raises
    ------
    DataError
        There is no sample, the two are not equally long, or a sample has no reference.
    """
    if not candidates or len(candidates) != len(references) or not all(references):
        raise DataError(
            f"{len(candidates)} captions came for {len(references)} samples, of which "
            f"{sum(not texts for texts in references)} have no reference. Give one caption and at least one "
            "reference a sample; leave samples without captions out."
        )
    return CaptionScores(
        rouge_l_N=_rouge_l(candidates, references),
        cider_N=_cider(candidates, references),
        bleu_statistics_NX=_bleu_statistics(candidates, references),
    )


def tokens(text: str) -> list[str]:
    """Lower-case words, and each Chinese or Japanese character on its own; punctuation is left out."""
    return _TOKEN.findall(text.lower())


def bleu(statistics_BX: FloatArray) -> FloatArray:
    """Corpus BLEU-4 (Papineni et al., 2002) of summed statistics, 0 to 1, as sacrebleu's default has it.

    A precision without a hit is smoothed exponentially (Chen and Cherry, 2014, method 3); a corpus without
    any n-gram of length 4 has 0.

    Parameters
    ----------
    statistics_BX
        (B, 2 + 2 x 4): length of the captions, closest length of the references, hits of n-grams of length 1
        to 4, and their number. Weighted sums are allowed.

    Returns
    -------
    float64 (B,)
    """
    length_B, closest_B = statistics_BX[:, 0], statistics_BX[:, 1]
    hits_B4, counts_B4 = statistics_BX[:, 2 : 2 + ORDER], statistics_BX[:, 2 + ORDER :]
    missed_B4 = (hits_B4 == 0).cumsum(axis=1)
    smooth_B4 = np.where(hits_B4 == 0, 0.5**missed_B4, hits_B4)
    defined_B = (counts_B4 > 0).all(axis=1) & (hits_B4 > 0).any(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision_B = np.exp(np.log(smooth_B4 / counts_B4).mean(axis=1))
        brevity_B = np.exp(np.minimum(0.0, 1.0 - closest_B / length_B))
        return np.where(defined_B, brevity_B * precision_B, 0.0)


def _bleu_statistics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> FloatArray:
    from sacrebleu.metrics.bleu import BLEU

    chinese = any(re.search(_CJK, text) for texts in references for text in texts)
    metric = BLEU(lowercase=True, tokenize="zh" if chinese else "13a", effective_order=True)
    rows = []
    for candidate, texts in zip(candidates, references, strict=True):
        score = metric.sentence_score(candidate, list(texts))
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
    return np.array(rows, np.float64)


class _Tokenizer:
    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


def _rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> FloatArray:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=_Tokenizer())
    return np.array(
        [
            scorer.score_multi(list(texts), candidate)["rougeL"].fmeasure
            for candidate, texts in zip(candidates, references, strict=True)
        ],
        np.float64,
    )


def _cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> FloatArray:
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    if not any(tokens(text) for texts in references for text in texts):
        return np.zeros(len(candidates))
    scorer = CiderScorer(n=ORDER, sigma=6.0)
    for candidate, texts in zip(candidates, references, strict=True):
        scorer += (" ".join(tokens(candidate)), [" ".join(tokens(text)) for text in texts])
    return np.asarray(scorer.compute_score()[1], np.float64)
