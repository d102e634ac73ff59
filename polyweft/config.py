"""Typed parameters: sections of `params.yaml` as frozen pydantic objects.

A section's class stands beside the code that uses it and derives from `Section`. The file is read as DVC
reads it (YAML 1.2 by ruamel: `1e-4` is a number, `on` is text).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyweft.errors import ConfigError

PARAMS_FILE = Path("params.yaml")
_LONGEST_SHOWN = 80


class Section(BaseModel):
    """Base of every section: frozen, strict types, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def class_for(cls, content: dict[str, Any]) -> type[Self]:
        """The class that `content` is read as; a section overrides it where one key decides the others."""
        return cls


class RuntimeParams(Section):
    """Section `runtime`: what every stage shares."""

    seed: int = Field(ge=0, lt=2**31)
    threads: int = Field(ge=1, le=256, description="CPU threads a stage may use in all")


S = TypeVar("S", bound=Section)


def load_section(cls: type[S], name: str, path: Path = PARAMS_FILE) -> S:
    """Read section `name` of the params file at `path` into `cls`.

    Raises
    ------
    ConfigError
        The file or section is missing, or a key is unknown, mistyped or out of range. Every fault is
        named with its key, what came and what is allowed.
    """
    document = read_yaml(path)
    if name not in document:
        raise ConfigError(f"{path} has no section `{name}`; it has {sorted(document)}. Add the section.")
    return parse_section(cls, name, document[name], where=str(path))


def parse_section(cls: type[S], name: str, content: Any, *, where: str) -> S:
    """Check `content`, one section's mapping, against `cls`; see `load_section` for what is raised."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: section `{name}` is {content!r}; expected a mapping of keys to values.")
    try:
        return cls.model_validate(content)
    except ValidationError as error:
        chosen = cls.class_for(content)
        faults = [_explain(chosen, name, where, fault) for fault in error.errors()]
        raise ConfigError("\n".join(faults)) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML 1.2 mapping as plain Python objects, as DVC does."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing. Run from the project's root folder.") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; expected sections (a mapping).")
    return content


def _explain(cls: type[BaseModel], name: str, where: str, fault: Any) -> str:
    # pydantic marks a fault in a mapping's key itself so.
    key = ".".join(str(part) for part in (name, *fault["loc"]) if part != "[key]")
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_fields_at(cls, fault["loc"][:-1])))
        return f"{where}: unknown key `{key}`. Allowed here: {allowed}."
    if fault["type"] == "missing":
        return f"{where}: key `{key}` is missing. Add it; examples/ and docs/guide show each key."
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(fault["input"], dict):
        return f"{where}: `{key}`: {message}."  # a whole section came, and the message says what of it
    shown = repr(fault["input"])
    if len(shown) > _LONGEST_SHOWN:
        shown = f"{shown[: _LONGEST_SHOWN - 3]}..."
    return f"{where}: `{key}` is {shown}: {message}."


def _fields_at(cls: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    for part in location:
        field = cls.model_fields.get(str(part))
        cls = next(_models_in(field.annotation), cls) if field else cls
    return list(cls.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that an annotation such as `Section | None` or `list[Section]` names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
