"""Training that is killed at any step, and run again, ends with the bytes of one that was not."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import lone_train
import psutil
import pytest
import toy

pytestmark = pytest.mark.slow

STRATEGIES = ("ddp", "fsdp")


@pytest.fixture(scope="module", params=STRATEGIES)
def unbroken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run that nothing disturbed."""
    folder = lone_train.make(tmp_path_factory.mktemp("unbroken") / "run", strategy=request.param)
    lone_train.finish(folder)
    return request.param, folder


def test_killed_at_random_steps_it_ends_with_the_same_bytes(
    unbroken: tuple[str, Path], tmp_path: Path
) -> None:
    strategy, reference = unbroken
    folder = lone_train.make(tmp_path / "run", strategy=strategy)
    draw = random.Random(strategy)
    step = 0
    for victim in draw.sample(["rank 0", "rank 1", "all"], 3):
        step += draw.randrange(4, 25)
        process = lone_train.start(folder)
        lone_train.wait_for_step(folder, step)
        time.sleep(draw.uniform(0.0, 0.1))
        tree = psutil.Process(process.pid).children(recursive=True)
        if victim == "all":
            process.kill()
        else:
            ranks = {worker.environ()["RANK"]: worker.pid for worker in lone_train.workers(process)}
            os.kill(ranks[victim[-1]], signal.SIGKILL)
        assert process.wait(timeout=120) != 0, f"killing {victim} was not noticed"
        lone_train.wait_for_end(tree)
    summary = lone_train.finish(folder)
    assert summary["run_facts"]["resumed_from_step"] >= step - 3
    assert lone_train.outputs(folder) == lone_train.outputs(reference)


def test_a_damaged_last_checkpoint_costs_steps_but_no_byte(
    unbroken: tuple[str, Path], tmp_path: Path
) -> None:
    strategy, reference = unbroken
    folder = lone_train.make(tmp_path / "run", strategy=strategy)
    process = lone_train.start(folder)
    lone_train.wait_for_step(folder, 12)
    process.kill()
    process.wait()
    lone_train.wait_for_end(toy.left(folder))
    last = max(folder.glob(".polyweft/checkpoints/*/step-*"))
    damaged = sorted(last.glob("*.safetensors"))[-1]
    damaged.write_bytes(damaged.read_bytes()[:-7])
    summary = lone_train.finish(folder)
    said = (folder / "output").read_text()
    assert re.search(rf"warning: checkpoint {last.name} is damaged, .*; step-\d+ is used", said)
    assert summary["run_facts"]["resumed_from_step"] == int(last.name.removeprefix("step-")) - 3
    assert lone_train.outputs(folder) == lone_train.outputs(reference)


def test_sigterm_leaves_a_checkpoint_of_that_step(unbroken: tuple[str, Path], tmp_path: Path) -> None:
    strategy, reference = unbroken
    folder = lone_train.make(tmp_path / "run", strategy=strategy)
    process = lone_train.start(folder)
    lone_train.wait_for_step(folder, 6)
    process.terminate()
    assert process.wait(timeout=60) == 130
    left = lone_train.steps(folder)[-1]
    summary = lone_train.finish(folder)
    assert summary["run_facts"]["resumed_from_step"] == left
    assert lone_train.outputs(folder) == lone_train.outputs(reference)
