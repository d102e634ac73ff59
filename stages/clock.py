"""How long a stage spent on its own work, and how long on starting up and importing.

Imports are timed where they happen: the first import of a package inside `run` counts as start-up, the
work around it does not.
"""

from __future__ import annotations

import builtins
import time
from typing import Any

import psutil


class ImportClock:
    """Adds up the seconds of outermost imports of this process while it is installed."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._import = builtins.__import__

    def install(self) -> None:
        """Put the clock around `import`. A module that is loaded already costs nothing and counts nothing."""
        builtins.__import__ = self._timed

    def _timed(self, *args: Any, **kwargs: Any) -> Any:
        if self._depth:
            return self._import(*args, **kwargs)
        self._depth = 1
        begin = time.perf_counter()
        try:
            return self._import(*args, **kwargs)
        finally:
            self._depth = 0
            self.seconds += time.perf_counter() - begin


def seconds_since_process_start() -> float:
    """Wall-clock seconds since this process was started (the interpreter's own start included)."""
    return max(0.0, time.time() - psutil.Process().create_time())
