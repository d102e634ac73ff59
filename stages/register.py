"""Register the exported model in MLflow, and let the gate decide whether it becomes champion."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from polyweft.config import RuntimeParams
from polyweft.data.shards import open_dataset, read_split
from polyweft.evaluation.evaluator import EvaluateParams
from polyweft.export.bundle import read_spec
from polyweft.io import write_json
from polyweft.report import Report
from registry import lineage, model_card, packaging, versions
from registry.admission import HeldOut, admit, finite, measure_candidate
from registry.gate import Measured, RegisterParams, minimum_bars
from registry.versions import Version
from stages.entry import enter

TEST_SPLIT = "test"


def run(
    params: RegisterParams,
    evaluate: EvaluateParams,
    runtime: RuntimeParams,
    *,
    prepared: Path,
    exported: Path,
    evaluated: Path,
    receipt: Path,
) -> Report:
    """Register the export once, by its hash, and ask the gate; a hold is no failure.

    Inside a DVC experiment nothing is registered and no alias is moved; the facts are the same.
    """
    spec = read_spec(exported)
    settings = evaluate.model_copy(
        update={"split": TEST_SPLIT, "bootstrap_samples": params.bootstrap_samples}
    )
    samples = list(read_split(prepared, TEST_SPLIT))
    rows = HeldOut(samples, settings, runtime.seed, runtime.threads)
    measured = measure_candidate(exported, rows)
    bars = minimum_bars(measured.metrics, params.minimum)
    facts = {
        "export_hash": spec["export_hash"],
        "minimum_bars": bars,
        "minimum_bars_passed": all(bar["pass"] for bar in bars.values()),
        "name": params.name,
        "primary_metric": params.primary_metric,
        "test_rows": len(samples),
    }
    experiment = os.environ.get("DVC_EXP_NAME")
    if experiment:
        reason = f"experiment {experiment}: nothing was registered and no alias moved"
        run_facts: dict[str, Any] = {"decision": "not asked", "reasons": [reason]}
    else:
        version, new = _register(params, spec, measured, bars, [prepared, exported, evaluated])
        admission = admit(version, measured, rows, params)
        run_facts = {"version": version.version, "registered": "new" if new else "again", **admission.facts()}
    write_json(receipt, {key: facts[key] for key in ("export_hash", "minimum_bars", "name")})
    return Report(facts=facts, run_facts=run_facts)


def _register(
    params: RegisterParams,
    spec: dict[str, Any],
    measured: Measured,
    bars: dict[str, dict[str, Any]],
    folders: list[Path],
) -> tuple[Version, bool]:
    """Give the version that holds this export, and whether it is new."""
    prepared, exported, evaluated = folders
    record = lineage.build_record(spec["export_hash"], folders)
    found = versions.find_export(params.name, spec["export_hash"])
    if found is not None:
        lineage.store_record(found, record)
        return found, False
    card = model_card.write_card(
        name=params.name,
        description=params.description,
        spec=spec,
        dataset=open_dataset(prepared),
        metrics=measured.metrics,
        bars=bars,
        record=record,
        reports=model_card.read_reports(evaluated.parent / "reports"),
    )
    metrics = finite(dict(measured.metrics))
    registration = packaging.Registration(metrics, _tags(params, record, metrics, folders), card, record)
    return packaging.register_export(params.name, exported, registration), True


def _tags(
    params: RegisterParams, record: lineage.Record, metrics: dict[str, float], folders: list[Path]
) -> dict[str, str]:
    made = {
        out["path"]: out.get("md5", "")
        for stage in record["stages"].values()
        for out in stage.get("outs", [])
    }
    given = {name: stage.get("params") for name, stage in record["stages"].items()}
    content = json.dumps(given, sort_keys=True).encode("utf-8")
    shown = {name: metrics[name] for name in {params.primary_metric, *params.minimum} if name in metrics}
    return {
        "commit": record["commit"] or "none",
        "pipeline": record["pipeline"] or "none",
        "params_md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "primary_metric": params.primary_metric,
        lineage.RECORD_HASH: lineage.record_hash(record),
        **{f"md5.{folder.name}": made.get(folder.as_posix(), "unknown") for folder in folders},
        **{f"metric.{name}": f"{value:.6f}" for name, value in shown.items()},
    }


if __name__ == "__main__":
    enter(run)
