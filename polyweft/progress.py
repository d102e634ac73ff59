"""Progress of long work: a bar on a terminal, nothing but the lines that are said elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")


class Bar:
    """A bar on standard output where that is a terminal; use as a context manager.

    Parameters
    ----------
    title
        What is being done.
    total
        Steps in all; None where it is not known.
    shown
        False for the processes that do not speak.
    """

    def __init__(self, title: str, total: int | None = None, *, shown: bool = True) -> None:
        self._title, self._total = title, total
        self._shown, self._live = shown, shown and sys.stdout.isatty()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        if self._live:
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(self._title, total=self._total)
        return self

    def at(self, done: int, total: int | None = None) -> None:
        """Move the bar to `done` steps, of `total` where that has become known."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def say(self, line: str) -> None:
        """Print a line above the bar, or a plain one where there is no bar."""
        if self._progress is not None:
            self._progress.console.print(line, highlight=False, markup=False)
        elif self._shown:
            print(line, flush=True)

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, moving a bar."""
    with Bar(title, total) as bar:
        for done, item in enumerate(items, 1):
            yield item
            if done % 32 == 0:
                bar.at(done)
