"""Run the graph as a Prefect flow: `python -m flows.pipeline`, or `--serve` for the nightly schedule.

Exit codes: 0 when every stage is up to date, 1 with one message when one failed, 130 and 143 after Ctrl-C and
SIGTERM, when DVC, the stage and all below it have been ended first.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any, NoReturn

from flows.server import UI_PORT, starting
from polyweft.config import read_yaml
from polyweft.errors import ConfigError, PolyweftError

DEPLOYMENTS = Path("prefect.yaml")


class _Terminated(BaseException):
    """SIGTERM came."""


def _on_sigterm(number: int, frame: object) -> NoReturn:
    raise _Terminated


def run() -> int:
    """Run the flow once; gives the exit code."""
    with starting(pages=False) as server:
        import dvc.repo  # both this and Prefect are imported here while the server imports Prefect  # noqa: F401

        from flows.flow import polyweft

        if server is not None:
            server.wait()
        polyweft()
    from flows import summary

    summary.show()
    return 0


def serve() -> int:
    """Serve the first deployment of `prefect.yaml` with its schedule, until stopped."""
    deployment = nightly()
    with starting(pages=True, port=UI_PORT) as server:
        from prefect.schedules import Cron

        from flows.flow import polyweft

        if server is not None:
            server.wait()
            print(f"Prefect: http://127.0.0.1:{server.port}  (Ctrl-C stops it)", flush=True)
        # Prefect's own handler of SIGTERM forgets to await its stop, after which it stops in order.
        warnings.filterwarnings("ignore", message="coroutine 'Runner.astop' was never awaited")
        given = deployment["schedules"][0]
        schedule = Cron(given["cron"], timezone=given["timezone"])
        polyweft.serve(name=deployment["name"], schedules=[schedule], tags=deployment["tags"], limit=1)
    return 0


def nightly(path: Path = DEPLOYMENTS) -> dict[str, Any]:
    """Give the first deployment of `prefect.yaml`."""
    deployments = read_yaml(path).get("deployments")
    if not deployments or not deployments[0].get("schedules"):
        raise ConfigError(f"{path} has no deployment with a schedule. Put the file back with `git checkout`.")
    return dict(deployments[0])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.pipeline", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="serve the nightly schedule until Ctrl-C")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _on_sigterm)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has background jobs ignore it
    try:
        return serve() if given.serve else run()
    except PolyweftError as error:
        print(f"flow: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flow: stopped by Ctrl-C; run it again to go on.", file=sys.stderr)
        return 130
    except BaseException as error:
        if not _is_termination(error):
            raise
        print("flow: stopped by SIGTERM; run it again to go on.", file=sys.stderr)
        return 143


def _is_termination(error: BaseException) -> bool:
    return isinstance(error, _Terminated) or type(error).__name__ == "TerminationSignal"


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code) if code in {130, 143} else sys.exit(code)
