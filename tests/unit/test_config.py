"""Parameters are typed, read as DVC reads them, and refused with the key, what came and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field, model_validator

from polyweft.config import Section, load_section
from polyweft.errors import ConfigError


class Inner(Section):
    depth: int = Field(ge=1)


class Outer(Section):
    rate: float = Field(gt=0)
    name: str
    inner: Inner
    maybe: Inner | None = None
    several: list[Inner] = Field(default=[])

    @model_validator(mode="after")
    def _named_apart(self) -> Outer:
        if self.name == "inner":
            raise ValueError("name is 'inner'; choose another")
        return self


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


GOOD = "outer:\n  rate: 1e-4\n  name: on\n  inner: {depth: 2}\n"


def test_yaml_is_read_as_dvc_reads_it(tmp_path: Path) -> None:
    section = load_section(Outer, "outer", _file(tmp_path, GOOD))
    assert (section.rate, section.name, section.inner.depth) == (0.0001, "on", 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "rate: 1e-4",
            "rte: 1e-4",
            r"unknown key `outer\.rte`. Allowed here: inner, maybe, name, rate, several\.",
        ),
        ("rate: 1e-4", "name2: 1", r"key `outer\.rate` is missing"),
        ("1e-4", "'1e-4'", r"`outer\.rate` is '1e-4': Input should be a valid number"),
        ("1e-4", "0", r"`outer\.rate` is 0: Input should be greater than 0"),
        ("1e-4", ".nan", r"`outer\.rate` is nan"),
        ("depth: 2", "deep: 2", r"unknown key `outer\.inner\.deep`. Allowed here: depth"),
        (
            "name: on",
            "name: on\n  maybe: {deep: 2}",
            r"unknown key `outer\.maybe\.deep`. Allowed here: depth\.",
        ),
        ("name: on", "name: on\n  several: [{deep: 2}]", r"`outer\.several\.0\.deep`. Allowed here: depth\."),
        ("name: on", "name: inner", r"params\.yaml: `outer`: name is 'inner'; choose another\.$"),
        ("1e-4", f"[{'1, ' * 200}1]", r"`outer\.rate` is \[(1, )+1?\.\.\.: Input should be a valid number"),
        ("outer:", "other:", r"has no section `outer`; it has \['other'\]"),
        ("{depth: 2}", "{depth: ", r"is not valid YAML"),
        ("outer:\n", "outer: 3\nx:\n", r"section `outer` is 3; expected a mapping"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_section(Outer, "outer", _file(tmp_path, GOOD.replace(old, new)))


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("1e-4", "-1").replace("depth: 2", "depth: 0")
    with pytest.raises(ConfigError) as caught:
        load_section(Outer, "outer", _file(tmp_path, text))
    assert "outer.rate" in str(caught.value)
    assert "outer.inner.depth" in str(caught.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run from the project's root folder"):
        load_section(Outer, "outer", tmp_path / "params.yaml")


def test_a_section_cannot_be_changed(tmp_path: Path) -> None:
    section = load_section(Outer, "outer", _file(tmp_path, GOOD))
    with pytest.raises(ValueError, match="frozen"):
        section.rate = 2.0  # type: ignore[misc]
