"""Check every medium and every row by itself, and quarantine what fails with a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from polyweft.data.checks import Measured, ValidateParams, check_media, flat_view
from polyweft.data.media import MediaStore
from polyweft.data.records import SCHEMA, quarantine
from polyweft.errors import CheckFailedError
from polyweft.io import read_table, write_table
from polyweft.report import Report
from stages.entry import enter

if TYPE_CHECKING:
    from polyweft.data.expectations import Outcome

PAGES = Path("reports/html/validate")


def run(params: ValidateParams, *, ingested: Path, out: Path) -> Report:
    """Leave the clean manifest.parquet in `out`, and quarantine.parquet with ingest's rows and its own.

    Raises
    ------
    CheckFailedError
        More than `max_quarantined_fraction` of the source's rows are set aside, or an expectation about
        the table as a whole does not hold. The message names the check; nothing is written to `out`.
    """
    from polyweft.data.expectations import run_suite, suite_rules, table_rules

    before = read_table(ingested / "quarantine.parquet").to_pylist()
    rows = read_table(ingested / "manifest.parquet").to_pylist()
    media = check_media(rows, MediaStore(ingested), params)
    columns = flat_view(media.rows, media.measured)
    outcomes = run_suite(columns, suite_rules(params), name="rows", docs=PAGES / "rows")
    blamed = _blamed(outcomes, media.rows)
    own = [*media.quarantined, *blamed.values()]
    _refuse_much(before, own, before_count=len(rows) + len({entry["id"] for entry in before}), params=params)
    clean = [row for place, row in enumerate(media.rows) if place not in blamed]
    kept = flat_view(clean, media.measured)
    table = run_suite(kept, table_rules(params), name="table", docs=PAGES / "table")
    _refuse([o for o in [*outcomes, *table] if not o.rule.by_row and not o.success], len(clean))
    write_table(out / "manifest.parquet", pa.Table.from_pylist(clean, schema=SCHEMA))
    write_table(out / "quarantine.parquet", quarantine([*before, *own]))
    facts = _facts(rows, clean, own, media.masked, [*outcomes, *table])
    return Report({**facts, **_ranges(kept, media.measured)}, pages=[PAGES])


def _blamed(outcomes: list[Outcome], rows: list[dict[str, Any]]) -> dict[int, dict[str, str]]:
    """A quarantine entry for each row that breaks an expectation, by the row's place."""
    faults: dict[int, list[tuple[str, str]]] = {}
    for outcome in outcomes:
        rule, seen = outcome.rule, set()
        for place, value in zip(outcome.rows, outcome.values, strict=True):
            if rule.check == "id_unique" and rows[place]["id"] not in seen:
                seen.add(rows[place]["id"])  # of rows with one id, the first is kept
                continue
            column, shown = rule.arguments["column"], _shown(value)
            reason = f"{rule.kind}: {column} is {shown}, expected {rule.allowed}"
            faults.setdefault(place, []).append((rule.check, reason))
    return {
        place: {
            "id": rows[place]["id"] or f"(row {place})",
            "stage": "validate",
            "check": found[0][0],
            "reason": "; ".join(reason for _, reason in found),
        }
        for place, found in sorted(faults.items())
    }


def _shown(value: Any) -> str:
    if value is None or value != value:
        return "absent"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse_much(
    before: list[dict[str, str]], own: list[dict[str, str]], *, before_count: int, params: ValidateParams
) -> None:
    aside = [*before, *own]
    count = len({entry["id"] for entry in aside})
    if count <= params.max_quarantined_fraction * before_count:
        return
    checks = Counter(entry["check"] for entry in aside)
    worst, number = min(checks.items(), key=lambda item: (-item[1], item[0]))
    examples = [entry for entry in aside if entry["check"] == worst][:2]
    shown = "; ".join(f"{entry['id']!r}: {entry['reason']}" for entry in examples)
    raise CheckFailedError(
        f"{count} of {before_count} rows fail ({count / before_count:.1%}), over "
        f"validate.max_quarantined_fraction {params.max_quarantined_fraction:.1%}. The check that most "
        f"fail is {worst} ({number} rows), for example {shown}. Correct the data, or that check's limit, "
        f"or raise the fraction. All of them: {PAGES / 'rows' / 'index.html'}."
    )


def _refuse(broken: list[Outcome], count: int) -> None:
    if broken:
        listed = "; ".join(
            f"{o.rule.check} ({o.rule.kind}): expected {o.rule.allowed}, found {o.observed}" for o in broken
        )
        raise CheckFailedError(
            f"the {count} rows that are left break {len(broken)} expectations about the table: {listed}. "
            f"Correct the data, or the limits in section `validate`. See {PAGES / 'table' / 'index.html'}."
        )


def _facts(
    rows: list[dict[str, Any]],
    clean: list[dict[str, Any]],
    own: list[dict[str, str]],
    masked: dict[str, int],
    outcomes: list[Outcome],
) -> dict[str, Any]:
    checks = Counter(entry["check"] for entry in own)
    return {
        "rows": len(rows),
        "rows_clean": len(clean),
        "quarantined": len(own),
        "quarantined_fraction": round(len(own) / max(1, len(rows)), 6),
        **{f"quarantined_{check}": number for check, number in sorted(checks.items())},
        **{f"masked_{kind}": number for kind, number in sorted(masked.items())},
        "expectations": len(outcomes),
        "expectations_unmet": sum(not outcome.success for outcome in outcomes),
    }


def _ranges(columns: dict[str, list[Any]], measured: dict[str, Measured]) -> dict[str, Any]:
    """Least and greatest of what was measured on the rows that are left."""
    facts: dict[str, Any] = {"media_opened": len(measured)}
    for name in (
        "image_width",
        "image_height",
        "audio_seconds",
        "audio_rate",
        "video_seconds",
        "graph_nodes",
        "captions",
        "caption_characters",
    ):
        values = [value for value in columns[name] if value is not None]
        if values:
            facts |= {f"{name}_min": round(min(values), 6), f"{name}_max": round(max(values), 6)}
    return facts


if __name__ == "__main__":
    enter(run)
