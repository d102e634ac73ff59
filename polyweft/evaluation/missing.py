"""What a head loses when a modality is taken away from it.

For each modality that the head sees: over the rows that have it and still have another one, the task's main
metric with everything (`accuracy_with_image`), and with that modality marked as absent
(`accuracy_without_image`). A head that can stand in for what is absent in two ways, by a learned vector and
by a reconstruction from what is present, is asked both ways (`_learned`, `_imputed`); without a suffix it
answers as it is served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from polyweft.evaluation.confidence import estimates, intervals
from polyweft.evaluation.embedding import Answers, BoolArray
from polyweft.evaluation.tasks import MAIN
from polyweft.evaluation.weighted import Rows, metric_names, same_keys
from polyweft.models.predictor import Predictor


@dataclass(frozen=True)
class Removal:
    """One task's main metric when a modality is taken away.

    Attributes
    ----------
    modality, metric, samples
        What was taken away, what was measured, and over how many rows.
    values
        By suffix: `with_<m>`, `without_<m>`, and where the head can do both `without_<m>_learned` and
        `without_<m>_imputed`; each the value with its interval (value, low, high).
    """

    modality: str
    metric: str
    samples: int
    values: dict[str, tuple[float, float, float]]


Ask = Callable[[str | None, bool | None], Answers]
"""The head's answers without a modality (None: with all), and the way it stands in for what is absent."""


def removals(
    predictor: Predictor,
    has: Mapping[str, BoolArray],
    answers: Answers,
    *,
    ask: Ask,
    rows: Callable[[Answers, BoolArray], Rows],
    bootstrap_samples: int,
    seed: int,
) -> list[Removal]:
    """Measure the head without each modality that it sees; empty where it sees only one.

    Parameters
    ----------
    has
        By modality, the rows that have it.
    answers
        The head's, with everything.
    rows
        The material of `confidence` from answers over the rows that are kept.
    """
    found = []
    ways: dict[str, bool | None] = {"": None}
    if getattr(predictor, "imputes", False):
        ways |= {"_learned": False, "_imputed": True}
    for modality in predictor.sees:
        others = [has[name] for name in predictor.sees if name != modality]
        keep_N = has[modality] & np.any(others, axis=0) if others else np.zeros_like(has[modality])
        if not keep_N.any():
            continue
        asked = {f"with_{modality}": rows(answers, keep_N)}
        asked |= {f"without_{modality}{way}": rows(ask(modality, how), keep_N) for way, how in ways.items()}
        for metric in (MAIN[output] for output in predictor.outputs if output in MAIN):
            values = {
                name: _with_interval(given, metric, samples=bootstrap_samples, seed=seed)
                for name, given in asked.items()
                if metric in metric_names(given)
            }
            values = {name: value for name, value in values.items() if np.isfinite(value).all()}
            if values:
                count = len(asked[f"with_{modality}"][same_keys({}, metric)[1]])
                found.append(Removal(modality, metric, count, values))
    return found


def _with_interval(rows: Rows, metric: str, *, samples: int, seed: int) -> tuple[float, float, float]:
    value = estimates(rows, [metric])[metric]
    return value, *intervals(rows, [metric], samples=samples, seed=seed)[metric]
