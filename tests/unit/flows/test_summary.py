"""The last table: what the reports and summaries hold, in 100 columns, and nothing where they are missing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows import summary
from polyweft.io import write_json


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    recall = {f"text_to_image_recall_at_{k}": k / 20 for k in (1, 5, 10)}
    recall |= {f"{key}_low": value - 0.01 for key, value in recall.items()}
    recall |= {f"text_to_image_recall_at_{k}_high": k / 20 + 0.02 for k in (1, 5, 10)}
    reports = {
        "ingest": {"rows": 4000, "quarantined": 12},
        "align": {"duplicates_precision": 1.0, "duplicates_recall": 0.995, "pairs_average_precision": 0.81},
        "evaluate": {"accuracy": 0.912345, "macro_f1": 0.9, **recall},
        "register": {"name": "polyweft-scenes"},
        "deploy": {"golden_queries": 8},
    }
    run_facts: dict[str, dict[str, object]] = {
        "register": {"decision": "hold", "reasons": ["accuracy is below 0.9"], "version": 3},
        "deploy": {"decision": "kept", "served_version": 2, "server_largest_difference": 2e-6},
    }
    for number, (stage, facts) in enumerate(reports.items()):
        write_json(tmp_path / "data" / "reports" / f"{stage}.json", facts)
        times = {"own_seconds": 10.0, "startup_seconds": 1.5, "finished": number}
        content = {"stage": stage, "facts": facts, "run_facts": run_facts.get(stage, {}), **times}
        write_json(tmp_path / ".polyweft" / "summary" / f"{stage}.json", content)
    page = tmp_path / "reports" / "html" / "validate" / "docs" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("x")
    return tmp_path


def printed(width: int = 100) -> str:
    stream = io.StringIO()
    summary.show(console=Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    "said",
    [
        "91.2%",
        "5.0% [4.0, 7.0]  25.0% [24.0, 27.0]  50.0% [49.0, 52.0]",
        "4,000 rows, 12 quarantined",
        "precision 1.000, recall 0.995",
        "average precision 0.810",
        "hold: accuracy is below 0.9",
        "polyweft-scenes version 3",
        "version 2 (kept); 8 golden queries within 2e-06 of PyTorch",
        "reports/html/validate/docs/index.html",
        "http://127.0.0.1:5000",
        "http://127.0.0.1:4200",
    ],
)
def test_the_table_says_it_on_one_line(folder: Path, said: str) -> None:
    assert [line for line in printed().splitlines() if said in line]


def test_the_table_fits_and_adds_the_seconds_up(folder: Path) -> None:
    text = printed()
    assert max(map(len, text.splitlines())) <= 100
    last = [line for line in text.splitlines() if line.strip().startswith("all")]
    assert last[0].split() == ["all", "50.0", "7.5"]


def test_the_markdown_has_the_same_rows(folder: Path) -> None:
    text = summary.markdown(summary.read())
    assert "| Accuracy | 91.2% |" in text
    assert "| all | 50.0 | 7.5 |" in text
    assert summary.markdown(summary.read()) == text


def test_an_empty_workspace_gives_an_empty_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    found = summary.read()
    assert (found.results, found.data, found.serving, found.timings) == ([], [], [], [])
    assert "MLflow" in printed()


def test_the_command_prints_and_sends_what_is_left(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert summary.main([]) == 0
    assert summary.main(["--markdown"]) == 0
    assert "Macro F1" in capsys.readouterr().out


def test_a_broken_report_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "data" / "reports" / "ingest.json").write_text("{")
    assert summary.main(["--markdown"]) == 1
    assert "ingest.json" in capsys.readouterr().err
