"""What a stage reports: facts for git, facts of this run alone, and pages for a person."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Report:
    """The answer of a stage's `run`.

    Attributes
    ----------
    facts
        JSON values that the same data, parameters and code give again: they go to
        `data/reports/<stage>.json`, which git tracks. Flat where a number can be. No NaN.
    run_facts
        JSON values that differ from run to run (seconds, throughput, versions, ports, decisions): they
        go to MLflow and to the untracked summary only.
    pages
        Files or folders for a person (HTML, plots with times) that are logged to MLflow as artifacts.
    """

    facts: dict[str, Any]
    run_facts: dict[str, Any] = field(default_factory=dict)
    pages: list[Path] = field(default_factory=list)
