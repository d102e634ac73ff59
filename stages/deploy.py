"""Publish the champion to Triton, ask the real server golden queries, and only then make it current."""

from __future__ import annotations

import math
import os
import tempfile
import time
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

from pydantic import Field

from polyweft.config import Section
from polyweft.errors import ServingError
from polyweft.export.bundle import read_spec
from polyweft.export.golden import ask_export, read_golden
from polyweft.io import read_json, write_json
from polyweft.report import Report
from registry.configs import ServingSettings
from stages.entry import enter


class DeployParams(Section):
    """Section `deploy`: how the model is served, and how exactly it must answer."""

    tolerance: float = Field(gt=0, le=0.1, description="largest absolute difference to PyTorch's answers")
    start_timeout_seconds: float = Field(gt=0, le=3600)
    max_batch_size: int = Field(ge=1, le=4096, description="rows of a request, and of a batch of requests")
    threads: int = Field(ge=1, le=256, description="CPU threads of each ONNX session on the server")
    queue_delay_microseconds: int = Field(
        ge=0, le=1_000_000, description="how long a request waits for others"
    )


def run(params: DeployParams, *, exported: Path, registered: Path, receipt: Path) -> Report:
    """Check this export's golden answers, then have Triton serve whatever the registry calls champion.

    The facts are of this export alone, which the gate may have held; what the server answered for the
    champion depends on the world's history and stands in the run's facts.
    """
    export_hash = str(read_spec(exported)["export_hash"])
    golden = read_golden(exported / "golden")
    difference = ask_export(exported, golden, threads=params.threads)
    if difference > params.tolerance:
        raise ServingError(
            f"{exported} differs from PyTorch by {difference:.3g} on the golden queries; at most "
            f"{params.tolerance:g} is allowed (deploy.tolerance). Nothing was deployed."
        )
    facts = {
        "export_hash": export_hash,
        "golden_queries": len(golden),
        "largest_difference": _round_up(difference),
        "tolerance": params.tolerance,
    }
    if os.environ.get("DVC_EXP_NAME"):
        run_facts: dict[str, Any] = {"decision": "nothing: inside an experiment"}
    else:
        run_facts = _serve_champion(params, str(read_json(registered)["name"]))
    write_json(receipt, {"export_hash": export_hash})
    return Report(facts, run_facts)


def _serve_champion(params: DeployParams, name: str) -> dict[str, Any]:
    from registry.rollout import serve_export
    from registry.versions import champion

    best = champion(name)
    if best is None:
        return {"decision": f"nothing: {name} has no champion"}
    began = time.monotonic()
    settings = ServingSettings(params.max_batch_size, params.threads, params.queue_delay_microseconds)
    with tempfile.TemporaryDirectory(prefix="polyweft-deploy-") as folder:
        done = serve_export(
            name,
            best.download(Path(folder)),
            tolerance=params.tolerance,
            settings=settings,
            start_timeout=params.start_timeout_seconds,
        )
    return {
        "decision": "kept" if done.previous == done.version else "switched",
        "server": done.server,
        "server_url": done.url,
        "server_started": done.started,
        "server_export_hash": done.export_hash,
        "server_largest_difference": done.largest_difference,
        "served_version": done.version,
        "previous_version": done.previous,
        "registered_version": best.version,
        "rollout_seconds": round(time.monotonic() - began, 3),
    }


def _round_up(value: float) -> float:
    """To one significant digit: the last bits of a difference of rounding errors tell nothing."""
    if value <= 0 or not math.isfinite(value):
        return value
    exact = Decimal(repr(value))
    return float(exact.quantize(Decimal(1).scaleb(exact.adjusted()), rounding=ROUND_CEILING))


if __name__ == "__main__":
    enter(run)
