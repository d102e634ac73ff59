"""The gate applied to the registry: measure the candidate and the champion, decide, move the alias, record.

Every step can be done again: a version is found by its export's hash, and a candidate that is champion
already changes nothing.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyweft.data.shards import Sample
from polyweft.errors import DataError, MediaError, PolyweftError, TrainingError
from polyweft.evaluation.evaluator import EvaluateParams, evaluate_split
from polyweft.export.onnx import OnnxPredictor
from registry import ledger, versions
from registry.gate import Decision, Measured, NotEvaluable, RegisterParams, decide
from registry.versions import Version


@dataclass(frozen=True)
class HeldOut:
    """What candidate and champion are measured on, and how."""

    samples: Sequence[Sample]
    params: EvaluateParams
    seed: int
    threads: int

    def measure(self, export: Path) -> Measured:
        """Measure an export with its own readers; raises as `evaluate_split` does."""
        predictor = OnnxPredictor.load(export, threads=self.threads, check_hash=True)
        found = evaluate_split(predictor, self.samples, self.params, seed=self.seed)
        metrics = {name: float(value) for name, value in found.metrics.items()}
        return Measured(metrics, found.rows, (*predictor.classes, *predictor.labels))


def measure_candidate(export: Path, rows: HeldOut) -> Measured:
    """Measure the candidate; one that cannot be measured has no metrics, and so is held.

    Raises
    ------
    ExportError
        The export is damaged: that is for the export stage to repair.
    """
    try:
        return rows.measure(export)
    except (DataError, MediaError, TrainingError):
        return Measured({}, {}, ())


def measure_champion(champion: Version, rows: HeldOut) -> Measured | NotEvaluable:
    """Measure the champion's registered files on the candidate's rows."""
    with tempfile.TemporaryDirectory(prefix="polyweft-champion-") as folder:
        try:
            return rows.measure(champion.download(Path(folder)))
        except PolyweftError as error:
            return NotEvaluable(f"version {champion.version}: {error}")
        except Exception as error:  # noqa: BLE001 - an old export may fail in any way; the gate then holds
            return NotEvaluable(f"version {champion.version}: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Admission:
    """What came of a candidate: `promoted`, `held` or `unchanged` (it is the champion already)."""

    outcome: str
    reasons: list[str]
    checks: dict[str, Any]
    champion: int | None

    def facts(self) -> dict[str, Any]:
        """As JSON values of this run."""
        return {
            "decision": self.outcome,
            "reasons": self.reasons,
            "champion": self.champion,
            "checks": self.checks,
        }


def admit(candidate: Version, measured: Measured, rows: HeldOut, params: RegisterParams) -> Admission:
    """Ask the gate for `candidate`, move the alias if it says so, and enter the decision everywhere.

    A version that was rolled back by hand is held: only `python -m registry promote` brings it back.
    """
    champion = versions.champion(params.name)
    if champion is not None and champion.version == candidate.version:
        return Admission("unchanged", ["it is the champion already"], {}, champion.version)
    state = measure_champion(champion, rows) if champion is not None else None
    decision = decide(measured, state, params, seed=rows.seed)
    if versions.ROLLED_BACK in candidate.tags:
        reason = (
            f"version {candidate.version} was rolled back by hand; "
            f"`python -m registry promote {params.name} {candidate.version}` brings it back"
        )
        against = [] if decision.promote else decision.reasons
        decision = Decision(False, [reason, *against], decision.checks)
    _record(candidate, decision, champion)
    if decision.promote:
        versions.move_champion(candidate, event="promote", reasons=decision.reasons)
        return Admission("promoted", decision.reasons, decision.checks, candidate.version)
    number = champion.version if champion else None
    ledger.append(
        "hold",
        params.name,
        version=candidate.version,
        export_hash=candidate.export_hash,
        champion=number,
        reasons=decision.reasons,
    )
    return Admission("held", decision.reasons, decision.checks, number)


def _record(candidate: Version, decision: Decision, champion: Version | None) -> None:
    versions.set_tags(
        candidate,
        {
            "gate.decision": "promoted" if decision.promote else "held",
            "gate.reasons": "; ".join(decision.reasons)[:4900],
            "gate.checks": json.dumps(decision.checks, sort_keys=True)[:4900],
            "gate.champion": str(champion.version) if champion else "none",
        },
    )


def finite(metrics: dict[str, float]) -> dict[str, float]:
    """Those metrics that MLflow can keep."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
