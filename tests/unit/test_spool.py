"""A run's spool: whole lines from several writers, readable after any kill, and never MLflow."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyweft.errors import DataError
from polyweft.spool import append, exclusive, pipeline_key, read_events
from polyweft.stage_run import StageRun, current_run, flatten, numbers, texts


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("POLYWEFT_TRACKING", "spool")
    monkeypatch.delenv("POLYWEFT_SPOOL", raising=False)
    monkeypatch.delenv("POLYWEFT_PIPELINE_RUN", raising=False)
    return tmp_path


def events(run: StageRun) -> list[dict[str, object]]:
    return [event for event, _ in read_events(run.path)]


def begin(stage: str = "train") -> StageRun:
    return StageRun.begin(
        stage,
        params={"train": {"lr": 1e-3, "optimizer": {"name": "adamw"}}},
        deps={"data/prepare": "d" * 32},
        commit="c" * 40,
    )


def test_a_run_is_a_start_what_was_recorded_and_an_end() -> None:
    run = begin()
    run.metrics({"loss": 0.5}, step=3)
    run.tag("note", "x")
    run.end("FINISHED", outs={"data/train": "a" * 32}, facts={"accuracy": 0.9, "ok": True, "why": "fine"})
    start, metrics, tag, numbers_, tags, end = events(run)
    assert start["stage"] == "train"
    assert start["params"] == {"train.lr": "0.001", "train.optimizer.name": "adamw"}
    assert start["tags"]["polyweft.dep.data/prepare"] == "d" * 32  # type: ignore[index]
    assert (metrics["values"], metrics["step"]) == ({"loss": 0.5}, 3)
    assert tag["values"] == {"note": "x"}
    assert numbers_["values"] == {"accuracy": 0.9}
    assert tags["values"] == {"polyweft.out.data/train": "a" * 32, "fact.ok": "True", "fact.why": "fine"}
    assert end["status"] == "FINISHED"


def test_a_second_end_changes_nothing() -> None:
    run = begin()
    run.end("FAILED")
    before = events(run)
    run.end("FINISHED")
    assert events(run) == before


def test_a_worker_process_writes_into_the_stage_s_run() -> None:
    run = begin()
    code = "from polyweft.tracking import current_run; current_run().metric('loss', 0.25, step=7)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert events(run)[-1]["values"] == {"loss": 0.25}
    run.end("FINISHED")
    assert current_run() is None


def test_writers_do_not_split_each_other_s_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    code = (
        "import sys, pathlib; from polyweft.spool import append\n"
        "for i in range(200): append(pathlib.Path(sys.argv[1]), {'event': sys.argv[2], 'text': 'y' * 3000})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), name]) for name in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(read_events(path)) == 400
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_line_that_a_kill_cut_is_not_read_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append(path, {"event": "metrics"})
    with path.open("ab") as handle:
        handle.write(b'{"event": "tags"')
    assert [event["event"] for event, _ in read_events(path)] == ["metrics"]
    with path.open("ab") as handle:
        handle.write(b"\n")
    append(path, {"event": "end"})
    assert [event["event"] for event, _ in read_events(path)] == ["metrics", "end"]


@given(st.lists(st.dictionaries(st.text(), st.text()), max_size=5), st.integers(0, 5))
def test_reading_from_an_event_s_offset_gives_the_events_after_it(
    contents: list[dict[str, str]], at: int
) -> None:
    path = Path(os.environ["POLYWEFT_WORKSPACE"]) / "h.jsonl"
    path.unlink(missing_ok=True)
    for content in contents:
        append(path, content)
    found = read_events(path)
    assert [event for event, _ in found] == contents
    if at < len(found):
        assert read_events(path, found[at][1]) == found[at + 1 :]


def test_artifacts_are_kept_as_they_were(tmp_path: Path) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("first")
    run = begin()
    run.artifact(page, "pages")
    (page / "index.html").write_text("second")
    kept = Path(str(events(run)[-1]["path"]))
    assert (kept / "index.html").read_text() == "first"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(DataError, match="Free some space"):
        append(Path("/dev/full"), {"event": "metrics"})


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with exclusive(tmp_path / "lock") as first:
        assert first is not None
        with exclusive(tmp_path / "lock") as second:
            assert second is None
    with exclusive(tmp_path / "lock") as third:
        assert third is not None


@given(
    st.recursive(
        st.floats() | st.integers() | st.booleans() | st.text(),
        lambda inner: st.dictionaries(
            st.text(st.characters(categories=["Ll"]), min_size=1), inner, max_size=3
        ),
        max_leaves=8,
    ).filter(lambda content: isinstance(content, dict))
)
def test_facts_fall_into_finite_numbers_and_texts(content: dict[str, object]) -> None:
    flat = flatten(content)
    assert all(math.isfinite(value) for value in numbers(content).values())
    assert not set(numbers(content)) & set(texts(content))
    assert set(numbers(content)) | set(texts(content)) <= set(flat)
    assert all(isinstance(flat[key], str | bool) for key in texts(content))


def test_a_flow_names_its_pipeline_and_anything_else_in_the_variable_is_ignored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("POLYWEFT_PIPELINE_RUN", "12-345-abc")
    assert pipeline_key() == "12-345-abc"
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setenv("POLYWEFT_PIPELINE_RUN", "../../elsewhere")
    assert pipeline_key() is None


def test_a_stage_imports_no_mlflow() -> None:
    heavy = "{'mlflow', 'sqlalchemy', 'psutil'}"
    code = f"import sys, polyweft.tracking; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
