"""The curve's file grows, is cut to a checkpoint's mark, and tells when it is not the one."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from polyweft.training import checkpoint
from polyweft.training.curve import FILE, Curve, holds

ROWS = st.lists(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=4), max_size=8)


@settings(max_examples=30, deadline=None)
@given(kept=ROWS, lost=ROWS, more=ROWS)
def test_rows_after_the_mark_are_cut_off_on_resuming(
    tmp_path_factory: object, kept: list[list[float]], lost: list[list[float]], more: list[list[float]]
) -> None:
    folder: Path = tmp_path_factory.mktemp("curve")  # type: ignore[attr-defined]
    curve = Curve(folder, None)
    for row in kept:
        curve.append(row)
    mark = curve.mark()
    for row in lost:
        curve.append(row)
    curve.mark()
    curve.close()
    assert holds(folder, mark)
    again = Curve(folder, mark)
    for row in more:
        again.append(row)
    assert again.rows() == kept + more
    again.mark()
    again.close()
    assert (folder / FILE).read_bytes().count(b"\n") == len(kept) + len(more)


def test_another_or_shorter_file_does_not_hold_the_mark(tmp_path: Path) -> None:
    curve = Curve(tmp_path, None)
    curve.append([0.0, 1.5])
    mark = curve.mark()
    curve.close()
    content = (tmp_path / FILE).read_bytes()
    for other in (content[:-1], content.replace(b"1.5", b"1.6"), b""):
        (tmp_path / FILE).write_bytes(other)
        assert not holds(tmp_path, mark)
    (tmp_path / FILE).unlink()
    assert not holds(tmp_path, mark)
    assert holds(tmp_path, {"bytes": 0, "sha256": ""})


def test_a_checkpoint_whose_curve_is_gone_is_passed_over(tmp_path: Path) -> None:
    curve = Curve(tmp_path, None)
    for step in (1, 2):
        checkpoint.save(tmp_path, step, {}, {}, curve=curve)
        curve.append([float(step)])
    curve.mark()
    curve.close()
    (tmp_path / FILE).write_bytes(b"")
    warnings: list[str] = []
    found = checkpoint.newest(tmp_path, warn=warnings.append)
    assert found is not None
    assert found.step == 1, "its mark is of no rows yet"
    assert len(warnings) == 1
    assert re.match(r"checkpoint step-000000002 is damaged, .*step-000000001 is used", warnings[0])
