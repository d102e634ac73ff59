"""The score that early stopping and the choice of the best weights go by.

Shape suffixes: N rows of the validation split, D embedding size, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from polyweft.data.batches import Arrays, take
from polyweft.training.distributed import World
from polyweft.training.losses import gather_rows

ROWS_AT_ONCE = 256


def validate(module: nn.Module, arrays: Arrays, pixels: Pixels, world: World) -> dict[str, float]:
    """Accuracy and Recall@1 both ways on a split, each row with its first caption; and their mean, `score`.

    The rows are divided over the processes, and every process returns the same numbers. What the split
    cannot tell (no labels, no pairs) is left out; `score` is absent when nothing is left.
    """
    caption_N = np.where(arrays.has_text_N, arrays.first_caption_N1[:-1], -1)
    share = -(-len(arrays) // world.size)
    mine = np.arange(world.rank * share, (world.rank + 1) * share)
    mine_clipped = np.minimum(mine, len(arrays) - 1)
    parts: list[tuple[Tensor, ...]] = []
    was_training = module.training
    module.eval()
    with torch.no_grad():
        for begin in range(0, share, ROWS_AT_ONCE):
            batch = take(arrays, mine_clipped[begin : begin + ROWS_AT_ONCE], caption_N)
            image_BD, text_BD, logits_BC = module(
                pixels.plain(batch.pixels_BSS3),
                torch.from_numpy(batch.ids_BT).to(world.device),
                torch.from_numpy(batch.present_B2).to(world.device),
            )
            guess_B = image_BD.new_zeros(len(batch.rows_B)) if logits_BC is None else logits_BC.argmax(1)
            parts.append((image_BD, text_BD, guess_B.to(torch.int64)))
    module.train(was_training)
    image_ND, text_ND, guess_N = (
        gather_rows(torch.cat(column)).cpu()[: len(arrays)] for column in zip(*parts, strict=True)
    )
    return _score(arrays, caption_N, image_ND, text_ND, guess_N, module.head is not None)


def _score(
    arrays: Arrays, caption_N: np.ndarray, image_ND: Tensor, text_ND: Tensor, guess_N: Tensor, head: bool
) -> dict[str, float]:
    scores: dict[str, float] = {}
    labelled_N = arrays.class_N >= 0
    if head and labelled_N.any():
        right_N = guess_N.numpy() == arrays.class_N
        scores["accuracy"] = float(right_N[labelled_N].mean())
    paired_N = arrays.has_image_N & (caption_N >= 0)
    if paired_N.any():
        text_key = arrays.text_key_M[caption_N[paired_N]]
        image_key = arrays.image_key_N[paired_N]
        right = (text_key[:, None] == text_key[None]) | (image_key[:, None] == image_key[None])
        cosine = (image_ND[paired_N] @ text_ND[paired_N].T).numpy()
        scores["image_to_text_recall_at_1"] = _recall_at_1(cosine, right)
        scores["text_to_image_recall_at_1"] = _recall_at_1(cosine.T, right.T)
    if scores:
        scores["score"] = sum(scores.values()) / len(scores)
    return scores


def _recall_at_1(cosine: np.ndarray, right: np.ndarray) -> float:
    """Share of rows whose best right column beats every wrong one; a tie counts against the model."""
    best_right = np.where(right, cosine, -np.inf).max(axis=1)
    best_wrong = np.where(right, -np.inf, cosine).max(axis=1)
    return float((best_right > best_wrong).mean())


class Pixels:
    """uint8 images to the model's input on a device."""

    def __init__(self, mean: list[float], std: list[float], device: torch.device) -> None:
        self.mean_131 = torch.tensor(mean, device=device)[None, :, None, None]
        self.std_131 = torch.tensor(std, device=device)[None, :, None, None]
        self.device = device

    def unit(self, pixels_BSS3: np.ndarray) -> Tensor:
        """uint8 (B, S, S, 3) to float32 (B, 3, S, S) in [0, 1]."""
        pixels = torch.from_numpy(pixels_BSS3).to(self.device)
        return pixels.permute(0, 3, 1, 2).float().div(255.0)

    def normalise(self, unit_B3SS: Tensor) -> Tensor:
        """Pixels in [0, 1] to the model's input."""
        return (unit_B3SS - self.mean_131) / self.std_131

    def plain(self, pixels_BSS3: np.ndarray) -> Tensor:
        """uint8 images to the model's input, unchanged otherwise."""
        return self.normalise(self.unit(pixels_BSS3))
