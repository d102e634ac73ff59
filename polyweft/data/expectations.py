"""The suite of expectations over the flat manifest, run by Great Expectations.

The only module that imports it. Its context lives in memory, so that nothing with a time or an id in it
lands in a stage's output; the Data Docs are HTML beside the tracked files.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyweft.data.checks import FLAT, MAY_LACK, ValidateParams
from polyweft.data.records import SPLITS
from polyweft.modalities import MEDIA


@dataclass(frozen=True)
class Rule:
    """One expectation: `check` is our name for it, `kind` and `arguments` are Great Expectations'.

    A rule that is not `by_row` is about the table as a whole: when it does not hold, no row is to blame.
    `columns` must all be filled for the rule to be asked; `allowed` says in words what is allowed.
    """

    check: str
    kind: str
    arguments: dict[str, Any]
    allowed: str
    by_row: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a rule: for one by row, the places of the rows that break it and their values."""

    rule: Rule
    success: bool
    rows: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    observed: Any = None


def suite_rules(params: ValidateParams) -> list[Rule]:
    """The rules that `params` stand for: schema, uniqueness, nulls, allowed values and ranges."""
    rules = [
        Rule("table_columns", "ExpectTableColumnsToMatchSet", {"column_set": list(FLAT)}, "exactly", False),
        _unique("id"),
        *(_filled(name) for name in dict.fromkeys(("id", "source", "content_hash", *params.required))),
        _pattern("content_hash", "^[0-9a-f]{64}$"),
        _pattern("id", r"^[^\x00-\x1f\x7f]{1,1000}$"),
        *(_pattern(kind, rf"^{kind}/[0-9a-f]{{64}}\.[0-9a-z]{{1,8}}$") for kind in MEDIA),
        _one_of("split", list(SPLITS)),
        _between("image_width", params.image_min_side, params.image_max_side),
        _between("image_height", params.image_min_side, params.image_max_side),
        _between("image_aspect", 1, params.image_max_aspect),
        _between("audio_seconds", params.audio_min_seconds, params.audio_max_seconds),
        _between("audio_rate", params.audio_min_rate, params.audio_max_rate),
        _between("video_seconds", params.video_min_seconds, params.video_max_seconds),
        _between("graph_nodes", 1, params.graph_max_nodes),
        _between("captions", 1, params.captions_max),
        _between("caption_characters", 0, params.caption_max_characters),
        _between("caption_invalid", 0, params.caption_max_invalid),
    ]
    if params.labels is not None:
        rules.append(_one_of("label", params.labels))
    return rules


def table_rules(params: ValidateParams) -> list[Rule]:
    """The rules about what is left as a whole: enough rows, enough labels, and not too much missing."""
    rows = {"min_value": params.min_rows}
    rules = [
        Rule("rows_enough", "ExpectTableRowCountToBeBetween", rows, f"at least {params.min_rows} rows", False)
    ]
    if params.min_labels:
        rules.append(
            Rule(
                "labels_enough",
                "ExpectColumnUniqueValueCountToBeBetween",
                {"column": "label", "min_value": params.min_labels},
                f"at least {params.min_labels} distinct labels",
                False,
            )
        )
    for name in (*MEDIA, *MAY_LACK):
        share = params.max_missing.get(name, 1.0)
        if share < 1.0:
            arguments = {"column": name, "mostly": 1.0 - share}
            kind, allowed = "ExpectColumnValuesToNotBeNull", f"at most {share:.1%} of the rows without it"
            rules.append(Rule(f"{name}_missing", kind, arguments, allowed, False))
    return rules


def run_suite(columns: dict[str, list[Any]], rules: list[Rule], *, name: str, docs: Path) -> list[Outcome]:
    """Hold `columns` (see `checks.flat_view`) against `rules`, and add the answer to the Data Docs.

    Parameters
    ----------
    name
        The suite's name in the Data Docs.
    docs
        Folder of the HTML pages; it is made anew.

    Raises
    ------
    KeyError
        A rule is about a column that `columns` has not.
    """
    with _quiet():
        import pandas as pd

        frame = pd.DataFrame({key: pd.Series(value, dtype=_dtype(key)) for key, value in columns.items()})
        results = _run(frame, rules, name, docs)
    return [_outcome(rule, results[rule.check]) for rule in rules]


def _run(frame: Any, rules: list[Rule], name: str, docs: Path) -> dict[str, Any]:
    import great_expectations as gx
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
    for label, site in dict(context.variables.data_docs_sites or {}).items():
        # The context makes itself a folder for pages and leaves it behind.
        shutil.rmtree(site["store_backend"]["base_directory"], ignore_errors=True)
        context.delete_data_docs_site(label)
    shutil.rmtree(docs, ignore_errors=True)
    context.add_data_docs_site("pages", _site(docs))
    asset = context.data_sources.add_pandas("manifest").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("all")
    suite = context.suites.add(gx.ExpectationSuite(name))
    for rule in rules:
        suite.add_expectation(
            getattr(gx.expectations, rule.kind)(**rule.arguments, meta={"check": rule.check})
        )
    validation = gx.ValidationDefinition(name=name, data=batch, suite=suite)
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[context.validation_definitions.add(validation)],
        actions=[UpdateDataDocsAction(name="pages", site_names=["pages"])],
        result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row"]},
    )
    answer = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    (result,) = answer.run_results.values()
    results: list[Any] = list(result.results)
    return {one.expectation_config.meta["check"]: one for one in results}


def _site(docs: Path) -> Any:
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())}
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": store,
    }


def _outcome(rule: Rule, result: Any) -> Outcome:
    faults = result.exception_info or {}
    if faults.get("raised_exception") or any(
        isinstance(v, dict) and v.get("raised_exception") for v in faults.values()
    ):
        raise KeyError(f"{rule.check}: Great Expectations could not ask {rule.kind}: {faults}")
    found = result.result.get("unexpected_index_list") or []
    observed = result.result.get("observed_value")
    if observed is None and "unexpected_count" in result.result:
        observed = f"{result.result['unexpected_count']} of {result.result['element_count']} rows without it"
    column = rule.arguments.get("column")
    return Outcome(
        rule,
        bool(result.success),
        rows=[int(entry["row"]) for entry in found] if rule.by_row else [],
        values=[entry.get(column) for entry in found] if rule.by_row else [],
        observed=observed,
    )


def _dtype(column: str) -> str:
    if column == "row":
        return "int64"
    numbers = ("target", "labels", "captions", "caption_", "image_", "audio_", "video_", "graph_")
    return "float64" if column.startswith(numbers) else "object"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Great Expectations without its statistics, its progress bars and its chatter."""
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    logger = logging.getLogger("great_expectations")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _unique(column: str) -> Rule:
    return Rule(f"{column}_unique", "ExpectColumnValuesToBeUnique", {"column": column}, "unique")


def _filled(column: str) -> Rule:
    return Rule(f"{column}_filled", "ExpectColumnValuesToNotBeNull", {"column": column}, "present")


def _pattern(column: str, regex: str) -> Rule:
    arguments = {"column": column, "regex": regex}
    return Rule(f"{column}_form", "ExpectColumnValuesToMatchRegex", arguments, f"of the form {regex}")


def _one_of(column: str, values: list[str]) -> Rule:
    arguments = {"column": column, "value_set": values}
    return Rule(f"{column}_allowed", "ExpectColumnValuesToBeInSet", arguments, f"one of {', '.join(values)}")


def _between(column: str, low: float, high: float) -> Rule:
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Rule(f"{column}_range", "ExpectColumnValuesToBeBetween", arguments, f"from {low} to {high}")
