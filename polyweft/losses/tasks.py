"""Losses of a head's tasks: each over the labelled rows of all processes, weighed against each other.

A row without a target for a task does not count in it. Shape suffixes: B rows of this process, C classes,
K labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from polyweft.losses.gather import mean_of_rows
from polyweft.losses.targets import Targets

Task = Literal["single_label", "binary", "multi_label", "regression"]


def single_label(
    logits_BC: Tensor, class_B: Tensor, *, weights_C: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy, with label smoothing (Szegedy et al., 2016); as `torch.nn.CrossEntropyLoss` means.

    Parameters
    ----------
    class_B
        int64; -1 where the row has no class.
    weights_C
        How much each class's rows weigh; the mean is taken over these weights.

    Returns
    -------
    Tensor
        A scalar whose mean over the processes is the loss of the joined batch.
    """
    labelled_B, class_B = class_B >= 0, class_B.clamp(min=0)
    terms_B = functional.cross_entropy(
        logits_BC.float(), class_B, weight=weights_C, reduction="none", label_smoothing=smoothing
    )
    if weights_C is None:
        return mean_of_rows(terms_B, labelled_B)
    # The terms are weighted already: the weights only divide.
    weight_B = weights_C[class_B]
    return mean_of_rows(terms_B / weight_B, labelled_B * weight_B)


def binary(
    logit_B1: Tensor, class_B: Tensor, *, weights_C: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy; class 1 of the two is what the logit speaks for. As `single_label` otherwise."""
    labelled_B, class_B = class_B >= 0, class_B.clamp(min=0)
    target_B = class_B.float() * (1 - smoothing) + smoothing / 2
    terms_B = functional.binary_cross_entropy_with_logits(logit_B1[:, 0].float(), target_B, reduction="none")
    weight_B = labelled_B.float() if weights_C is None else labelled_B * weights_C[class_B]
    return mean_of_rows(terms_B, weight_B)


def multi_label(
    logits_BK: Tensor, labels_BK: Tensor, *, weights_K: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Binary cross-entropy of each label, over the entries that are known.

    Parameters
    ----------
    labels_BK
        float32, 1 where the row bears the label, 0 where it does not, NaN where nobody knows.
    weights_K
        How much a label's presence weighs against its absence.
    """
    known_BK = ~labels_BK.isnan()
    target_BK = labels_BK.nan_to_num() * (1 - smoothing) + smoothing / 2
    terms_BK = functional.binary_cross_entropy_with_logits(
        logits_BK.float(), target_BK, pos_weight=weights_K, reduction="none"
    )
    return mean_of_rows(terms_BK, known_BK)


def regression(
    value_B1: Tensor, target_B: Tensor, *, mean: Tensor, deviation: Tensor, huber: float | None = 1.0
) -> Tensor:
    """Huber's loss (1964), or the squared error where `huber` is None, of standardised values.

    Parameters
    ----------
    value_B1
        The prediction in deviations from the mean.
    target_B
        In its own unit; NaN where the row has none.
    mean, deviation
        Of the training targets, scalars.
    huber
        Beyond this many deviations an error counts linearly.
    """
    known_B = ~target_B.isnan()
    standard_B = ((target_B - mean) / deviation).nan_to_num()
    if huber is None:
        terms_B = (value_B1[:, 0].float() - standard_B) ** 2
    else:
        terms_B = functional.huber_loss(value_B1[:, 0].float(), standard_B, reduction="none", delta=huber)
    return mean_of_rows(terms_B, known_B)


def balance_by_uncertainty(
    losses: Mapping[str, Tensor], log_variances: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Weigh each task by the noise it is found to have (Kendall, Gal and Cipolla, 2018).

    `exp(-s) L + s / 2` for classification and `exp(-s) L / 2 + s / 2` for regression, s the learnt logarithm
    of the task's variance. The sum may be negative.
    """
    return {
        name: (-log_variances[name]).exp() * loss * (0.5 if name == "regression" else 1.0)
        + log_variances[name] / 2
        for name, loss in losses.items()
    }


def task_loss(
    task: str,
    output: Tensor,
    targets: Targets,
    *,
    smoothing: float,
    huber: float | None,
    class_weights_C: Tensor | None,
    label_weights_K: Tensor | None,
    mean: Tensor,
    deviation: Tensor,
) -> Tensor:
    """The loss of one of a head's outputs; see the four functions above."""
    if task == "single_label":
        return single_label(output, targets.class_B, weights_C=class_weights_C, smoothing=smoothing)
    if task == "binary":
        return binary(output, targets.class_B, weights_C=class_weights_C, smoothing=smoothing)
    if task == "multi_label":
        return multi_label(output, targets.labels_BK, weights_K=label_weights_K, smoothing=smoothing)
    assert task == "regression", task
    return regression(output, targets.value_B, mean=mean, deviation=deviation, huber=huber)


def balanced_weights(count_C: Tensor) -> Tensor:
    """Weights in inverse proportion to a class's rows, with mean 1 over rows; 1 for a class without rows."""
    count_C = count_C.float()
    return torch.where(count_C > 0, count_C.sum() / ((count_C > 0).sum() * count_C.clamp(min=1)), 1.0)
