"""Hard negatives for matching: for each row, a row of the global batch that is near and yet wrong.

BLIP (Li et al., 2022; after ALBEF, Li et al., 2021) asks of an image and a text whether they belong
together, and takes as the wrong partners those that the contrast finds nearest.
Shape suffixes: B rows of this process, G rows of all processes, D embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polyweft.losses.gather import Rows, cosines


def hard_negatives(
    a: Rows, b: Rows, scale: Tensor, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """For each row of this process the wrong `b` for its `a`, and the wrong `a` for its `b`.

    A row that shares content with it in either modality is not wrong, and one that lacks a modality takes
    no part.

    Parameters
    ----------
    scale
        The factor on cosines, a scalar.
    generator
        Draws a partner with the probabilities of a softmax over the wrong ones, as BLIP does; None takes the
        nearest, which does not depend on how the batch is divided among processes.

    Returns
    -------
    Two int64 (B,): indices among the rows of all processes, -1 where no row is wrong.
    """
    there_B, there_G = a.there_B & b.there_B, a.there_G & b.there_G
    wrong_BG = there_B[:, None] & there_G[None] & ~(a.same() | b.same())
    with torch.no_grad():
        return (
            _choose(scale * cosines(a.x_BD, b.x_GD), wrong_BG, generator),
            _choose(scale * cosines(b.x_BD, a.x_GD), wrong_BG, generator),
        )


def _choose(logits_BG: Tensor, allowed_BG: Tensor, generator: torch.Generator | None) -> Tensor:
    logits_BG = logits_BG.masked_fill(~allowed_BG, -torch.inf)
    none_B = ~allowed_BG.any(dim=1)
    if generator is None:
        chosen_B = logits_BG.argmax(dim=1)
    else:
        weights_BG = logits_BG.masked_fill(none_B[:, None], 0.0).softmax(dim=1)
        chosen_B = torch.multinomial(weights_BG, 1, generator=generator)[:, 0]
    return chosen_B.masked_fill(none_B, -1)
