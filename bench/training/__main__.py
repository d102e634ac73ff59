"""`python -m bench.training`: training speed beside open_clip, and two processes beside one.

Each line is a median over pairs taken in turn, with its range; the ratio says how many times as fast the
first is. CPU seconds are given too: on a machine that others use they tell the two sides apart better.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from bench.training.contest import loading, ours, peer, race

THREADS = 2
DEFAULT = ["bf16", "fp32", "processes", "loading"]


def main() -> None:
    """Run the races that are asked for; print a line each, and all of it as JSON at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--races", nargs="+", default=DEFAULT, choices=sorted(RACES))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:THREADS]
    os.sched_setaffinity(0, cores)
    print(
        f"on {len(cores)} cores, {THREADS} threads in all; load before: {os.getloadavg()[0]:.1f}", flush=True
    )
    results = {}
    for name in options.races:
        first, second = RACES[name]()
        found = race(first, second, pairs=options.pairs, steps=options.steps)
        results[name] = found
        print(f"{name}: {_line(found)}", flush=True)
    print(json.dumps(results, sort_keys=True))


def _line(found: dict[str, Any]) -> str:
    low, high = found["range"]
    cpu_low, cpu_high = found["cpu_range"]
    sides = zip(found["sides"], found["samples_per_second"], strict=True)
    speeds = "; ".join(f"{side}: {speed} samples/s" for side, speed in sides)
    cpu = f"{found['cpu_ratio']:.2f} ({cpu_low:.2f} to {cpu_high:.2f})"
    return f"{found['ratio']:.2f} ({low:.2f} to {high:.2f}); in CPU seconds {cpu}; {speeds}"


RACES = {
    "bf16": lambda: (ours("bf16", "full", threads=2), peer("bf16", "full", threads=2)),
    "fp32": lambda: (ours("fp32", "full", threads=2), peer("fp32", "full", threads=2)),
    "bf16-compiled": lambda: (
        ours("bf16", "full", threads=2, compiled=True),
        peer("bf16", "full", threads=2),
    ),
    "fp32-compiled": lambda: (
        ours("fp32", "full", threads=2, compiled=True),
        peer("fp32", "full", threads=2),
    ),
    "bf16-short": lambda: (ours("bf16", "short", threads=2), peer("bf16", "short", threads=2)),
    "bf16-one-core": lambda: (ours("bf16", "full", threads=1), peer("bf16", "full", threads=1)),
    "fp32-one-core": lambda: (ours("fp32", "full", threads=1), peer("fp32", "full", threads=1)),
    "processes": lambda: (
        ours("bf16", "full", processes=2, threads=1),
        ours("bf16", "full", threads=2),
    ),
    "bf16-two-processes": lambda: (
        ours("bf16", "full", processes=2, threads=1),
        peer("bf16", "full", threads=2),
    ),
    "loading": lambda: (loading(threads=1), ours("bf16", "full", threads=2)),
}
"""Both sides of each race; `short` texts have 3 to 9 tokens, and ours computes as many as the longest has."""


if __name__ == "__main__":
    main()
