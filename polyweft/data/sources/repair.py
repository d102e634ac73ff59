"""Find files whose path in the manifest is wrong, where there is exactly one answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from polyweft.data.sources.rows import EXTENSIONS
from polyweft.errors import DataError
from polyweft.io import inside


@dataclass(frozen=True)
class Found:
    """Where a medium's file is. `rule` is empty for the path as given, else what was wrong with it:
    `root`, `case`, `extension`, or several of them joined by `+`; `used` is the path that was taken."""

    path: Path
    rule: str
    used: str


class Finder:
    """Looks files up below one root, and repairs paths that lead nowhere.

    A lost file is looked for in the root and in each of `others` (there also with leading folders of the
    path left out), in another letter case and with another extension of its kind. Of all the files that
    this finds there must be exactly one; with none or several the medium is missing.
    """

    def __init__(self, root: Path, others: Sequence[Path] = ()) -> None:
        self._root = root
        self._places = [_Place(root), *(_Place(other) for other in others)]

    def find(self, kind: str, name: str, place: str) -> Found | None:
        """The file of `name`, repaired where that is unambiguous, or None.

        Raises
        ------
        DataError
            `name` leaves the root; the message names `place`, the line where it stands.
        """
        try:
            path = inside(self._root, name)
        except (DataError, ValueError, RuntimeError) as error:
            raise DataError(f"{place}: {error}") from None
        if _is_file(path):
            return Found(path, "", name)
        answers = self._answers(kind, PurePosixPath(name))
        if len(answers) != 1:
            return None
        (number, used), *_ = answers
        at = self._places[number]
        return Found(
            inside(at.folder, used), _rule(name, number, used), used if not number else at.shown(used)
        )

    def _answers(self, kind: str, given: PurePosixPath) -> list[tuple[int, str]]:
        answers: dict[Path, tuple[int, str]] = {}
        for number, at in enumerate(self._places):
            tails = range(len(given.parts)) if number else range(1)
            for first in tails:
                for used in at.index.get(_key(PurePosixPath(*given.parts[first:])), []):
                    suffix = PurePosixPath(used).suffix.lower()
                    if suffix == given.suffix.lower() or suffix.lstrip(".") in EXTENSIONS[kind]:
                        answers.setdefault((at.folder / used).resolve(), (number, used))
        return list(answers.values())


class _Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def shown(self, used: str) -> str:
        """The repaired path below the other root's name: an absolute path may not stand in an output."""
        return f"{self.folder.name}/{used}"

    @cached_property
    def index(self) -> dict[str, list[str]]:
        """Every file of the folder by its path without extension, in lower case; walked when first asked."""
        index: dict[str, list[str]] = {}
        for folder, folders, files in os.walk(self.folder):
            folders.sort()
            for file in sorted(files):
                used = PurePosixPath(Path(folder, file).relative_to(self.folder).as_posix())
                index.setdefault(_key(used), []).append(str(used))
        return index


def _key(path: PurePosixPath) -> str:
    return str(path.with_suffix("") if path.name else path).casefold()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long for the file system
        return False


def _rule(given: str, number: int, used: str) -> str:
    one, two = PurePosixPath(given), PurePosixPath(used)
    tail = PurePosixPath(*one.parts[len(one.parts) - len(two.parts) :])
    parts = ["root"] if number else []
    if tail.suffix.lower() != two.suffix.lower():
        parts.append("extension")
        tail, two = tail.with_suffix(""), two.with_suffix("")
    if str(tail) != str(two):
        parts.append("case")
    return "+".join(parts)
