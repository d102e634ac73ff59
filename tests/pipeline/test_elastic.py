"""One of two agents is killed: training goes on with the other's workers from the last checkpoint."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import lone_train
import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("victim", ["the agent of rank 0", "the other agent"])
def test_training_goes_on_when_either_agent_is_killed(victim: str, strategy: str, tmp_path: Path) -> None:
    folder = lone_train.make(tmp_path / "run", agents=2, strategy=strategy)
    process = lone_train.start(folder)
    lone_train.wait_for_step(folder, 9)
    main = next(w for w in lone_train.workers(process) if w.environ()["RANK"] == "0").ppid()
    agents = lone_train.agents(process)
    assert len(agents) == 2
    chosen = next(agent for agent in agents if (agent.pid == main) == (victim == "the agent of rank 0"))
    chosen.kill()
    begin = time.monotonic()
    assert process.wait(timeout=180) == 0, (folder / "output").read_text()[-4000:]
    took = time.monotonic() - begin
    said = (folder / "output").read_text()
    resumed = int(said.split("resumed from step ")[1].split()[0])
    assert resumed >= 9
    with (folder / "out" / "curves.csv").open(encoding="utf-8") as handle:
        steps = [int(row["step"]) for row in csv.DictReader(handle)]
    assert steps == list(range(len(steps))), "each step stands in the curve once"
    assert len(steps) == 30 * 3
    assert took < 120
