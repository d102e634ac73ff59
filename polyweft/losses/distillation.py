"""What a student learns from a larger teacher: its similarities over the global batch, its class logits.

Shape suffixes: B rows of this process, G rows of all processes, D embedding size, C classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from polyweft.losses.contrastive import EXCLUDED
from polyweft.losses.gather import Rows, cosines, mean_of_rows


def distil_similarities(
    student: tuple[Rows, Rows], teacher: tuple[Rows, Rows], scale: Tensor, teacher_scale: Tensor
) -> Tensor:
    """KL divergence from the teacher's to the student's similarity rows, in both directions.

    TinyCLIP's affinity mimicking (Wu et al., 2023), which CLIP-KD (Yang et al., 2024) calls contrastive
    relational distillation. The embeddings' sizes may differ.

    Parameters
    ----------
    student, teacher
        Two modalities each, over the same rows; nothing flows back to the teacher.
    scale, teacher_scale
        The factors on cosines, scalars.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    a, b = student
    there_B, there_G = a.there_B & b.there_B, a.there_G & b.there_G
    terms_B = a.x_BD.new_zeros(len(there_B))
    for (mine, other), (its, others) in ((student, teacher), (student[::-1], teacher[::-1])):
        logits_BG = (scale * cosines(mine.x_BD, other.x_GD)).masked_fill(~there_G[None], EXCLUDED)
        wanted_BG = (teacher_scale * cosines(its.x_BD, others.x_GD)).masked_fill(~there_G[None], EXCLUDED)
        terms_B = terms_B + _divergence(logits_BG, wanted_BG) / 2
    return mean_of_rows(terms_B, there_B)


def distil_logits(
    logits_BC: Tensor, teacher_BC: Tensor, there_B: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL divergence of softened class probabilities, times temperature squared (Hinton et al., 2015).

    Parameters
    ----------
    there_B
        Weight of each row, or a boolean: rows that are False do not count.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    terms_B = _divergence(logits_BC.float() / temperature, teacher_BC.float() / temperature)
    return mean_of_rows(terms_B * temperature**2, there_B)


def _divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    log_target = wanted.detach().log_softmax(dim=1)
    divergence = functional.kl_div(logits.log_softmax(dim=1), log_target, reduction="none", log_target=True)
    return divergence.sum(dim=1)
