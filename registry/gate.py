"""The gate: whether a candidate may become champion. It fails closed.

A decision depends on its arguments alone. A first version needs the minimum bars; a later one must also be
non-inferior to the champion in the primary metric, on the same rows, by a paired bootstrap. What is missing,
not a number, measured on nothing or not comparable means hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from polyweft.config import Section
from polyweft.errors import DataError
from polyweft.evaluation.confidence import Rows, paired_difference
from registry.versions import NAME_PATTERN


class RegisterParams(Section):
    """Section `register`.

    Attributes
    ----------
    name
        The model's name in the registry: one per data set, as versions of it are compared with each other.
    primary_metric
        The metric that the champion is compared by, a key of `data/reports/evaluate.json`.
    non_inferiority_margin
        The candidate holds its ground where the lower end of the 95% interval of candidate minus champion
        is at least minus this.
    minimum
        The lowest value allowed of each metric that is named here; larger is better in all.
    bootstrap_samples
        Resamples of the paired bootstrap.
    description
        The model card's first lines: what the model is for.
    """

    name: str = Field(pattern=NAME_PATTERN)
    primary_metric: str = Field(min_length=1)
    non_inferiority_margin: float = Field(ge=0, le=1)
    minimum: dict[str, float] = Field(min_length=1)
    bootstrap_samples: int = Field(ge=100, le=100_000)
    description: str = Field(min_length=1, max_length=2000)


@dataclass(frozen=True)
class Measured:
    """A model as measured on the test rows.

    Attributes
    ----------
    metrics
        Values by name.
    rows
        The per-row material of the paired bootstrap; see `polyweft.evaluation.confidence`.
    classes
        The names of the model's classes and then of its labels, in order.
    """

    metrics: Mapping[str, float]
    rows: Rows
    classes: tuple[str, ...]


@dataclass(frozen=True)
class NotEvaluable:
    """A champion that exists and cannot be measured on the candidate's rows, with the reason."""

    reason: str


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Attributes
    ----------
    promote
        Whether the candidate may become champion.
    reasons
        Why, in sentences: all that speak against it, or, if none does, what speaks for it.
    checks
        JSON values: what was compared with what.
    """

    promote: bool
    reasons: list[str]
    checks: dict[str, Any]


def decide(
    candidate: Measured, champion: Measured | NotEvaluable | None, params: RegisterParams, *, seed: int
) -> Decision:
    """Compare the candidate with the minimum bars and with the champion; None is a first version."""
    bars = minimum_bars(candidate.metrics, params.minimum)
    against = [_below(name, bar) for name, bar in bars.items() if not bar["pass"]]
    if not _finite(candidate.metrics.get(params.primary_metric)):
        against.append(f"the primary metric {params.primary_metric} is missing or not a number")
    if not len(candidate.rows.get("unit_id", ())):
        against.append("the candidate was measured on no samples")
    checks: dict[str, Any] = {"minimum_bars": bars}
    if champion is None:
        favour = "it passes the minimum bars, and there is no champion yet"
    elif isinstance(champion, NotEvaluable):
        favour = ""
        against.append(f"the champion cannot be evaluated on the same rows: {champion.reason}")
    else:
        favour, reasons, comparison = _compare(candidate, champion, params, seed)
        against += reasons
        checks["non_inferiority"] = comparison
    return Decision(promote=not against, reasons=against or [favour], checks=checks)


def minimum_bars(metrics: Mapping[str, float], minimum: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Hold metrics against bars: `{metric: {"bar", "value" (null if missing or not a number), "pass"}}`."""
    answer = {}
    for name, bar in sorted(minimum.items()):
        value = metrics.get(name)
        finite = _finite(value)
        passed = finite and value is not None and bool(value >= bar)
        answer[name] = {"bar": bar, "value": value if finite else None, "pass": passed}
    return answer


def _compare(
    candidate: Measured, champion: Measured, params: RegisterParams, seed: int
) -> tuple[str, list[str], dict[str, Any] | None]:
    metric, margin = params.primary_metric, params.non_inferiority_margin
    if candidate.classes != champion.classes:
        gone = sorted(set(champion.classes) - set(candidate.classes))
        new = sorted(set(candidate.classes) - set(champion.classes))
        reason = (
            f"its classes are not the champion's ({_some(new)} new, {_some(gone)} gone): "
            "another data set needs a name of its own (`register.name`)"
        )
        return "", [reason], None
    if not len(candidate.rows.get("unit_id", ())) or not len(champion.rows.get("unit_id", ())):
        return "", ["there are no rows to compare with the champion on"], None
    try:
        difference, low, high = paired_difference(
            candidate.rows, champion.rows, metric, samples=params.bootstrap_samples, seed=seed
        )
    except (DataError, KeyError, ValueError, IndexError) as error:
        return "", [f"it cannot be compared with the champion: {error}"], None
    if not all(_finite(number) for number in (difference, low, high)):
        return "", [f"the difference in {metric} to the champion is not a number"], None
    comparison = {
        "metric": metric,
        "difference": difference,
        "low": low,
        "high": high,
        "margin": margin,
        "pass": low >= -margin,
    }
    said = (
        f"{metric} differs from the champion's by {difference:+.4f} (95% interval {low:+.4f} to {high:+.4f})"
    )
    if low >= -margin:
        return f"{said}; the margin is {margin:g}", [], comparison
    return "", [f"{said}: it may be worse by more than the margin of {margin:g}"], comparison


def _below(name: str, bar: Mapping[str, Any]) -> str:
    if bar["value"] is None:
        return f"{name} is missing or not a number (the bar is {bar['bar']:g})"
    return f"{name} is {bar['value']:.4f}, below the bar of {bar['bar']:g}"


def _finite(value: float | None) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _some(names: list[str]) -> str:
    return (
        ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
    )
