"""Rows with tables through the data stages, in a process of its own, where the line is there from the start.

`python -m tests.unit.models.table_stages FOLDER` leaves a folder a stage, and pages in the current folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from polyweft import modalities

ROWS = 30
BROKEN, WITHOUT, TWICE = 3, 4, (5, 6)
"""Rows whose table is no numbers, that have none, and that have the same one in unlike splits."""


def main(folder: Path) -> None:
    """Ingest, validate, align and prepare; parameters that name media name the table."""
    here = "tests.unit.models.table_modality"
    modalities.MODALITIES["table"] = modalities.Modality(here, here, frozenset({"csv"}))
    modalities.MEDIA = (*modalities.MEDIA, "table")

    from polyweft.config import RuntimeParams, parse_section
    from polyweft.data.align_rows import AlignParams
    from polyweft.data.checks import ValidateParams
    from polyweft.data.sources import IngestParams
    from stages import align, ingest, prepare, validate

    runtime, source = RuntimeParams(seed=1, threads=1), folder / "source"
    _write(source)
    given = {"source": "metadata", "path": str(source), "columns": {"id": "id"}}
    ingest.run(parse_section(IngestParams, "ingest", given, where="a test"), runtime, out=folder / "ingest")
    params = {"required": ["captions", "table"], "max_missing": {"table": 0.0}}
    validate.run(
        parse_section(ValidateParams, "validate", params, where="a test"),
        ingested=folder / "ingest", out=folder / "validate",
    )  # fmt: skip
    params = {"required": ["table"], "leak_media": ["table"], "leaks": "report"}
    align.run(
        parse_section(AlignParams, "align", params, where="a test"), runtime,
        ingested=folder / "ingest", validated=folder / "validate", out=folder / "align",
    )  # fmt: skip
    content = {
        "tokenizer": "bpe", "vocabulary_size": 300, "max_tokens": 12, "lowercase": True,
        "clip_vocabulary": None, "test_fraction": 0.2, "validation_fraction": 0.2,
        "link_media": ["table"], "link_checks": [], "leaks": "mark", "languages": None, "shard_samples": 16,
    }  # fmt: skip
    prepare.run(
        parse_section(prepare.PrepareParams, "prepare", content, where="a test"), runtime,
        ingested=folder / "ingest", aligned=folder / "align", out=folder / "prepare",
    )  # fmt: skip


def _write(source: Path) -> None:
    source.mkdir()
    lines = []
    for number in range(ROWS):
        same = TWICE[0] if number in TWICE else number
        table = "no,numbers" if number == BROKEN else f"{same},1,2"
        (source / f"{number}.csv").write_text(table, encoding="utf-8")
        row = {"id": f"row-{number}", "text": f"the number {number}", "label": ("even", "odd")[number % 2]}
        row["split"] = ("train", "validation", "test")[number % 3]
        lines.append(row if number == WITHOUT else {**row, "table": f"{number}.csv"})
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
