"""A score for every pair of picture and captions that says how little they belong together.

A small network learns, from one part of the rows, which words the captions of a picture hold; it then
judges the other part (cross-fitting), so no row is judged by a network that saw it. The picture's
embedding times a word's is the log-odds of the word, and a caption fits as well as its words' log-odds
say, compared with how the same picture takes to other captions and the same captions to other pictures.
How alike a row is to random pairs, of which there are as many as one likes, makes the score.

Shape suffixes: N rows, S pixels a side, V words, F features, M reference rows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from polyweft.config import Section
from polyweft.data.grams import grams, presence

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


class MismatchParams(Section):
    """How pairs that do not belong together are looked for, and which of them are named."""

    epochs: int = Field(default=8, ge=1, le=1000, description="a fold's passes over the other folds' rows")
    folds: int = Field(default=2, ge=2, le=20)
    max_rows: int = Field(
        default=6000, ge=16, description="rows a fold learns from at most; all rows are scored"
    )
    batch: int = Field(default=64, ge=4, le=4096)
    learning_rate: float = Field(default=0.01, gt=0, le=1)
    width: int = Field(default=32, ge=8, le=512, description="channels of the first stage; a multiple of 8")
    precision: Literal["bf16", "fp32"] = "bf16"
    word_rows: int = Field(default=5, ge=1, description="a word counts when as many rows hold it")
    max_words: int = Field(default=2048, ge=2, le=65_536)
    expected_fraction: float = Field(
        default=0.02, gt=0, lt=0.5, description="share of wrong pairs to reckon with, before looking"
    )
    threshold: float = Field(default=0.3, gt=0, lt=1, description="rows with a higher score are named")
    max_fraction: float = Field(
        default=0.1, gt=0, le=1, description="at most this share is named, worst first"
    )
    min_separation: float = Field(
        default=0.8,
        ge=0.5,
        le=1,
        description="below this area under the ROC curve of own against random pairs, none is named",
    )


@dataclass(frozen=True)
class PairScores:
    """What `score_pairs` answers.

    Attributes
    ----------
    scores
        float64 [N] in [0, 1], higher is more suspicious: the probability that the row is a random pair,
        if `expected_fraction` of the rows are. NaN for a row none of whose words is in the vocabulary.
    separation
        Area under the ROC curve of the rows' own pairs against random ones. Near 0.5 the pictures do not
        tell the captions, or too little was learned, and the scores say nothing.
    words
        V, the size of the vocabulary.
    """

    scores: Floats
    separation: float
    words: int

    def named(self, params: MismatchParams) -> list[int]:
        """The places to name, worst first: none at all where own and random pairs are not separated."""
        if not self.separation >= params.min_separation:
            return []
        known = np.nan_to_num(self.scores, nan=0.0)
        order = np.argsort(-known, kind="stable")[: int(params.max_fraction * len(known))]
        return [int(place) for place in order if known[place] > params.threshold]


def score_pairs(
    pixels_NSS3: Pixels, captions: Sequence[Sequence[str]], params: MismatchParams, *, seed: int, threads: int
) -> PairScores:
    """Score every row by networks that did not see it; the same input and seed give the same scores.

    Parameters
    ----------
    pixels_NSS3
        uint8, S a multiple of 16.
    captions
        All captions of each row.
    """
    words_NV = presence([grams(row) for row in captions], at_least=params.word_rows, at_most=params.max_words)
    usable = np.flatnonzero(words_NV.any(axis=1))
    scores = np.full(len(captions), np.nan)
    if len(usable) < 4 * params.folds:
        return PairScores(scores, 0.5, words_NV.shape[1])
    pixels_NSS3, words_NV = pixels_NSS3[usable], words_NV[usable]
    fold_of = np.random.default_rng([seed, 31]).permutation(len(usable)) % params.folds
    own_F, random_F = [np.empty((len(usable), 3)) for _ in range(2)]
    judged = _judge_folds(pixels_NSS3, words_NV, fold_of, params, seed, threads)
    for fold, odds_NV in enumerate(judged):
        places, rng = np.flatnonzero(fold_of == fold), np.random.default_rng([seed, 33, fold])
        own_F[places], random_F[places] = _features(odds_NV, words_NV[places], rng)
    odds = _discriminate(own_F, random_F)
    if not np.isfinite(odds).all():  # learning diverged: better no score than a wrong one
        return PairScores(scores, 0.5, words_NV.shape[1])
    prior = np.log(params.expected_fraction / (1 - params.expected_fraction))
    scores[usable] = 1 / (1 + np.exp(-np.clip(odds[: len(usable)] + prior, -500, 500)))
    return PairScores(scores, _separation(odds[: len(usable)], odds[len(usable) :]), words_NV.shape[1])


def _judge_folds(
    pixels_NSS3: Pixels,
    words_NV: Words,
    fold_of: npt.NDArray[np.int64],
    params: MismatchParams,
    seed: int,
    threads: int,
) -> list[npt.NDArray[np.float32]]:
    """The log-odds of every word for each fold's rows, by a network that learned from the other folds.

    Folds run side by side, each on one thread: with small layers that is faster than all threads on one
    fold, it does not suffer when the machine is busy, and the number of threads does not change a bit.
    """
    import torch

    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    before = torch.get_num_threads()
    models = []
    for fold in range(params.folds):
        torch.manual_seed(int(np.random.default_rng([seed, 34, fold]).integers(2**31)))
        models.append(network(pixels_NSS3.shape[1], params.width, words_NV.shape[1]))

    def judge(fold: int) -> npt.NDArray[np.float32]:
        torch.set_num_threads(1)  # holds for the calling thread
        rng = np.random.default_rng([seed, 35, fold])
        learn = rng.permutation(np.flatnonzero(fold_of != fold))[: params.max_rows]
        _fit(models[fold], pixels_NSS3[learn], words_NV[learn], params, rng)
        return _log_odds(models[fold], pixels_NSS3[fold_of == fold], params.precision)

    try:
        with ThreadPoolExecutor(min(threads, params.folds)) as pool:
            return list(pool.map(judge, range(params.folds)))
    finally:
        torch.set_num_threads(before)


def network(side: int, width: int, words: int) -> nn.Sequential:
    """Pixels [B, 3, side, side] to the log-odds of words [B, words]: three residual stages and two layers."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
            )
            last = self.body[4]
            assert isinstance(last, nn.BatchNorm2d)
            nn.init.zeros_(last.weight)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.body(x))

    def stage(before: int, after: int, size: int, step: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, size, step, (size - step + 1) // 2, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(
        *stage(3, width, 8, 4),
        Residual(width),
        *stage(width, 2 * width, 3, 2),
        Residual(2 * width),
        *stage(2 * width, 4 * width, 3, 2),
        nn.Flatten(),  # places count: "left of" is about them
        nn.Linear(4 * width * (side // 16) ** 2, 256),
        nn.BatchNorm1d(256),
        nn.ReLU(),
        nn.Linear(256, words),
    )


def _fit(
    model: nn.Sequential, pixels: Pixels, words: Words, params: MismatchParams, rng: np.random.Generator
) -> None:
    """Learn words from pixels by the binary cross-entropy, AdamW, and one cycle of the learning rate."""
    import torch
    from torch import nn

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    share = torch.from_numpy(np.clip(words.mean(axis=0), 1e-4, 1 - 1e-4).astype(np.float32))
    last = model[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    last.bias.data.copy_(torch.logit(share))
    size = min(params.batch, len(pixels))
    steps = params.epochs * (len(pixels) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params.learning_rate, total_steps=steps + 1, pct_start=0.15
    )
    for _ in range(params.epochs):
        order = rng.permutation(len(pixels))
        for begin in range(0, len(order) - size + 1, size):
            rows = order[begin : begin + size]
            logits = _forward(model, pixels[rows], params.precision)
            target = torch.from_numpy(words[rows].astype(np.float32))
            loss = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / size
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
    model.eval()


def _log_odds(model: nn.Sequential, pixels: Pixels, precision: str) -> npt.NDArray[np.float32]:
    import torch

    with torch.no_grad():
        parts = [_forward(model, pixels[at : at + 256], precision) for at in range(0, len(pixels), 256)]
    found: npt.NDArray[np.float32] = torch.cat(parts).numpy()
    return found


def _forward(model: nn.Sequential, pixels: Pixels, precision: str) -> torch.Tensor:
    import torch

    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits: torch.Tensor = model(x.contiguous(memory_format=torch.channels_last))
    return logits.float()


def _features(
    odds_NV: npt.NDArray[np.float32], words_NV: Words, rng: np.random.Generator
) -> tuple[Floats, Floats]:
    """Three features a pair [N, 3], of the rows' own captions and of another row's, drawn at random.

    How many standard deviations the fit lies above that of the same picture with other captions; above
    that of the same captions with other pictures; and the fit a word.
    """
    count = len(odds_NV)
    odds_NV = odds_NV - odds_NV.mean(axis=0)  # a word that is common anyhow says nothing
    held_NV = words_NV.astype(np.float32)
    reference = np.sort(rng.permutation(count)[:1024])
    by_picture = odds_NV @ held_NV[reference].T
    by_caption = held_NV @ odds_NV[reference].T
    picture = by_picture.mean(axis=1), by_picture.std(axis=1) + 1e-6
    caption = by_caption.mean(axis=1), by_caption.std(axis=1) + 1e-6
    number = held_NV.sum(axis=1)
    other = (np.arange(count) + rng.integers(1, max(2, count), count)) % count

    def features(speaks: npt.NDArray[np.int64]) -> Floats:
        fit = (odds_NV * held_NV[speaks]).sum(axis=1)
        a = (fit - picture[0]) / picture[1]
        b = (fit - caption[0][speaks]) / caption[1][speaks]
        return np.stack([a, b, fit / number[speaks]], axis=1).astype(np.float64)

    return features(np.arange(count)), features(other)


def _discriminate(own_F: Floats, random_F: Floats) -> Floats:
    """Log-odds [2N] that a pair is a random one: logistic regression (Newton's method), own rows first."""
    x = np.concatenate([own_F, random_F])
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    y = np.repeat([0.0, 1.0], [len(own_F), len(random_F)])
    weights = np.zeros(x.shape[1])
    ridge = 1e-2 * np.eye(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + ridge @ weights
        weights -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, gradient)
    odds: Floats = x @ weights
    return odds


def _separation(own: Floats, other: Floats) -> float:
    """Area under the ROC curve; ties count half (Mann and Whitney's U)."""
    values = np.concatenate([own, other])
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = middle[place][len(own) :].sum()
    return float((rank_sum - len(other) * (len(other) + 1) / 2) / (len(own) * len(other)))
