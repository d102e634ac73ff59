"""A trace holds the asked steps, of the main process alone."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from polyweft.training.distributed import ALONE, World
from polyweft.training.profile import profiled


@pytest.mark.parametrize(("asked", "taken", "traced"), [(3, 9, 3), (3, 4, 2)])
def test_the_asked_steps_are_traced_or_as_many_as_there_are(
    asked: int, taken: int, traced: int, tmp_path: Path
) -> None:
    place = tmp_path / "reports" / "trace.json.gz"
    with profiled(asked, place, ALONE) as step:
        for _ in range(taken):
            torch.ones(3, 3).mm(torch.ones(3, 3))
            step()
    events = json.loads(gzip.decompress(place.read_bytes()))["traceEvents"]
    assert sum(event["name"] == "aten::mm" for event in events) == traced


def test_nothing_is_left_unless_asked_for_and_by_the_main_process(tmp_path: Path) -> None:
    for steps, world in ((0, ALONE), (2, World(1, 2, torch.device("cpu")))):
        with profiled(steps, tmp_path / "trace.json.gz", world) as step:
            for _ in range(6):
                step()
    assert list(tmp_path.iterdir()) == []
