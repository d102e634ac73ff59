"""How a command of flows that needs Prefect's server runs: one message where it fails, 130 after Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

from flows.server import starting
from polyweft.errors import PolyweftError
from polyweft.workspace import quiet_environment


def answer(name: str, work: Callable[[], str], *, after_stop: str = "") -> int:
    """Print what `work` gives, with a server beside it; 0, 1 with one message, 130 after Ctrl-C."""
    quiet_environment()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    try:
        with starting(pages=False) as server:
            if server is not None:
                server.wait()
            text = work()
    except PolyweftError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: stopped by Ctrl-C.{after_stop}", file=sys.stderr)
        return 130
    print(text)
    return 0
