"""The score that early stopping and the choice of the best weights go by.

Shape suffixes: N rows of the validation split, B rows of a batch, D embedding size, C classes, K labels.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyweft.data.batches import Arrays, Positives, choose_contents, take
from polyweft.losses.gather import gather_rows
from polyweft.models.family import Family
from polyweft.training.distributed import World
from polyweft.training.feed import Feed

ROWS_AT_ONCE = 256
ANSWERS = ("probabilities", "label_probabilities", "value")

Floats = npt.NDArray[np.float32]


def validate(
    model: Family,
    arrays: Arrays,
    feed: Feed,
    world: World,
    *,
    removing: bool = False,
    positives: Positives = "content",
    rows_at_once: int = ROWS_AT_ONCE,
) -> dict[str, float]:
    """What the split tells of the model, each row with its first content; and the mean of it, `score`.

    Recall@1 between each two modalities both ways, right being what `positives` calls so, `accuracy` of
    exclusive classes, `label_f1` (micro, at 0.5), `regression_fit` (1 / (1 + mean absolute error)),
    `caption_likelihood` (the inverse of the captions' perplexity). With `removing`, also the head's scores
    without each modality that it sees, over the rows that have another: `accuracy_without_<modality>`. The
    rows are divided over the processes; each returns the same numbers. What the split cannot tell is left
    out; `score` is absent when nothing is left.
    """
    if not len(arrays):
        return {}
    chosen = choose_contents(arrays, seed=0, epoch=None)
    share = -(-len(arrays) // world.size)
    mine = np.minimum(np.arange(world.rank * share, (world.rank + 1) * share), len(arrays) - 1)
    parts: list[dict[str, Tensor]] = []
    sees = [] if model.head is None or not removing else list(model.head.sees)  # type: ignore[arg-type]
    without = sees if len(sees) > 1 else []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for begin in range(0, share, rows_at_once):
            batch = take(arrays, mine[begin : begin + rows_at_once], chosen)
            present_BM = torch.from_numpy(batch.present_BM).to(world.device)
            inputs = feed.inputs(batch)
            parts.append(_told(model, model(inputs, present_BM)))
            for name in without:
                left_BM = present_BM.clone()
                left_BM[:, list(batch.raw).index(name)] = 0.0
                said = _answers(model, model(inputs, left_BM))
                parts[-1] |= {f"{output}_without_{name}": value for output, value in said.items()}
    model.train(was_training)
    found = {
        name: gather_rows(torch.cat([part[name] for part in parts]).float()).cpu().numpy()[: len(arrays)]
        for name in sorted(parts[0])
    }
    everything_N = np.ones(len(arrays), bool)
    scores = _retrieval(arrays, chosen, found, positives) | _tasks(arrays, found, everything_N)
    for name in without:
        left_N = np.any([chosen[other] >= 0 for other in without if other != name], axis=0)
        said_N = {key: found[f"{key}_without_{name}"] for key in ANSWERS if f"{key}_without_{name}" in found}
        scores |= {f"{key}_without_{name}": score for key, score in _tasks(arrays, said_N, left_N).items()}
    if "caption_loss" in found:
        counted_N = found["caption_tokens"] > 0
        if counted_N.any():
            mean = found["caption_loss"][counted_N].sum() / found["caption_tokens"][counted_N].sum()
            scores["caption_likelihood"] = float(np.exp(-mean))
    if scores:
        scores["score"] = sum(scores.values()) / len(scores)
    return scores


def _told(model: Family, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Embeddings, what the head serves, and the captions' losses."""
    told = {n: value for n, value in outputs.items() if n.endswith("_embedding") or n.startswith("caption_")}
    return told | _answers(model, outputs)


def _answers(model: Family, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    if model.head is None:
        return {}
    raw = {name.removeprefix("head."): v for name, v in outputs.items() if name.startswith("head.")}
    answers: dict[str, Tensor] = model.head.answers(raw)  # type: ignore[operator]
    return answers


def _retrieval(
    arrays: Arrays, chosen: dict[str, npt.NDArray[np.int64]], found: dict[str, Floats], positives: Positives
) -> dict[str, float]:
    scores: dict[str, float] = {}
    shared_N = {"group": arrays.group_N, "label": arrays.class_N}.get(positives)
    if shared_N is not None:
        shared_N = np.where(shared_N >= 0, shared_N, -1 - np.arange(len(arrays)))
    for one, other in itertools.combinations(arrays.contents, 2):
        paired_N = (chosen[one] >= 0) & (chosen[other] >= 0)
        if f"{one}_embedding" not in found or f"{other}_embedding" not in found or not paired_N.any():
            continue
        first, second = (found[f"{name}_embedding"][paired_N] for name in (one, other))
        keys = [(chosen[name] if shared_N is None else shared_N)[paired_N] for name in (one, other)]
        right = (keys[0][:, None] == keys[0][None]) | (keys[1][:, None] == keys[1][None])
        cosine = first @ second.T
        scores[f"{one}_to_{other}_recall_at_1"] = _recall_at_1(cosine, right)
        scores[f"{other}_to_{one}_recall_at_1"] = _recall_at_1(cosine.T, right.T)
    return scores


def _tasks(arrays: Arrays, found: dict[str, Floats], counted_N: npt.NDArray[np.bool_]) -> dict[str, float]:
    scores: dict[str, float] = {}
    labelled_N = (arrays.class_N >= 0) & counted_N
    if "probabilities" in found and labelled_N.any():
        right_N = found["probabilities"].argmax(axis=1) == arrays.class_N
        scores["accuracy"] = float(right_N[labelled_N].mean())
    borne_NK = arrays.labels_NK
    if "label_probabilities" in found and not np.isnan(borne_NK).all():
        known_N = ~np.isnan(borne_NK).any(axis=1) & counted_N
        said, true = found["label_probabilities"][known_N] > 0.5, borne_NK[known_N] > 0.5
        scores["label_f1"] = float(2 * (said & true).sum() / max(1, said.sum() + true.sum()))
    known_N = ~np.isnan(arrays.value_N) & counted_N
    if "value" in found and known_N.any():
        error = np.abs(found["value"][known_N, 0] - arrays.value_N[known_N]).mean()
        scores["regression_fit"] = float(1 / (1 + error))
    return scores


def _recall_at_1(cosine: Floats, right: npt.NDArray[np.bool_]) -> float:
    """Share of rows whose best right column beats every wrong one; a tie counts against the model."""
    best_right = np.where(right, cosine, -np.inf).max(axis=1)
    best_wrong = np.where(right, -np.inf, cosine).max(axis=1)
    return float((best_right > best_wrong).mean())
