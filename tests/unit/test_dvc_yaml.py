"""`dvc.yaml` is held against the code: flags, sections, modules and paths of every stage."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import grimp
import pytest

from polyweft.config import load_section, parse_section, read_yaml
from polyweft.modalities import MEDIA, MODALITIES
from polyweft.models.family import FAMILIES
from stages.entry import Signature, signature

ROOT = Path(__file__).parents[2]
GRAPH: dict[str, dict[str, Any]] = read_yaml(ROOT / "dvc.yaml")["stages"]
STAGES = list(GRAPH)

# Modules that start, watch and record a stage but shape none of its outputs.
PLUMBING = {
    "polyweft", "polyweft.data", "polyweft.errors", "polyweft.evaluation", "polyweft.export",
    "polyweft.hashing", "polyweft.models", "polyweft.processes", "polyweft.progress", "polyweft.report",
    "polyweft.sender", "polyweft.spool", "polyweft.stage_run", "polyweft.tracking", "polyweft.training",
    "polyweft.workspace", "registry", "stages", "stages.clock", "stages.entry",
}  # fmt: skip

# What a stage starts as a program of its own, which its imports do not tell.
PROGRAMS = {"train": ["polyweft.training.worker"], "register": ["registry.pyfunc_model"]}

# What a module imports by a name from a table.
BY_NAME = {
    "polyweft.data.checks": [MODALITIES[medium].reader for medium in MEDIA],
    "polyweft.data.reader": [modality.reader for modality in MODALITIES.values()],
    "polyweft.models.family": [*FAMILIES.values(), *(modality.encoder for modality in MODALITIES.values())],
}


def _signature(stage: str) -> Signature:
    return signature(importlib.import_module(f"stages.{stage}").run)


def _flags(stage: str) -> dict[str, str]:
    words = GRAPH[stage]["cmd"].split()
    assert words[:3] == ["python", "-m", f"stages.{stage}"]
    return {flag.removeprefix("--"): value for flag, value in zip(words[3::2], words[4::2], strict=True)}


def _paths(items: list[Any]) -> list[str]:
    return [next(iter(item)) if isinstance(item, dict) else item for item in items]


def test_every_stage_file_is_in_the_graph_and_every_entry_has_its_file() -> None:
    files = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "entry", "clock"}
    assert files == set(STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_flags_are_the_paths_of_the_signature(stage: str) -> None:
    assert sorted(_flags(stage)) == sorted(_signature(stage).paths)


@pytest.mark.parametrize("stage", STAGES)
def test_the_params_are_the_sections_of_the_signature(stage: str) -> None:
    form = _signature(stage)
    assert sorted(GRAPH[stage]["params"]) == sorted(form.section_name(name) for name in form.sections)


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_stage_is_handed_is_a_dependency_or_an_output(stage: str) -> None:
    listed = _paths(GRAPH[stage]["deps"]) + _paths(GRAPH[stage]["outs"])
    assert set(_flags(stage).values()) <= set(listed)
    assert _paths(GRAPH[stage]["metrics"]) == [f"data/reports/{stage}.json"]


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph("polyweft", "registry", "stages", "flows")


@pytest.mark.parametrize("stage", STAGES)
def test_every_module_that_shapes_a_result_is_a_dependency(stage: str, imports: grimp.ImportGraph) -> None:
    missing = sorted(m for m in _reached(stage, imports) if not _covered(stage, m))
    assert not missing, f"add to the deps of {stage} in dvc.yaml: {missing}"


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_among_the_dependencies_is_used(stage: str, imports: grimp.ImportGraph) -> None:
    reached = {_file(m) for m in _reached(stage, imports)}
    for path in _paths(GRAPH[stage]["deps"]):
        if path.endswith(".py"):
            assert path in reached, f"{path} shapes nothing of {stage}: remove it from dvc.yaml"


def test_params_yaml_holds_exactly_the_sections_that_stages_read() -> None:
    wanted: dict[str, Any] = {}
    for stage in STAGES:
        form = _signature(stage)
        wanted |= {form.section_name(name): cls for name, cls in form.sections.items()}
    assert set(read_yaml(ROOT / "params.yaml")) == set(wanted)
    for name, cls in wanted.items():
        load_section(cls, name, ROOT / "params.yaml")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_whole_and_valid_params_file(example: Path) -> None:
    content = read_yaml(example)
    assert set(content) == set(read_yaml(ROOT / "params.yaml"))
    for stage in STAGES:
        form = _signature(stage)
        for name, cls in form.sections.items():
            parse_section(cls, form.section_name(name), content[form.section_name(name)], where=example.name)


def _reached(stage: str, imports: grimp.ImportGraph) -> set[str]:
    seen: set[str] = set()
    todo = [f"stages.{stage}", *PROGRAMS.get(stage, [])]
    while todo:
        module = todo.pop()
        if module not in seen and module not in PLUMBING:
            seen.add(module)
            todo.extend(imports.find_modules_directly_imported_by(module))
            todo.extend(BY_NAME.get(module, []))
    return seen


def _covered(stage: str, module: str) -> bool:
    path, deps = _file(module), _paths(GRAPH[stage]["deps"])
    if stage == "ingest":  # the scenes' generator is a dependency as ingest.path
        deps = [*deps, "polyweft/data/scenes.py"]
    return any(path == dep or path.startswith(f"{dep}/") for dep in deps)


def _file(module: str) -> str:
    path = Path(*module.split("."))
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"
