"""The stage trains with the agents of other machines, and ends with the bytes of as many workers on one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import lone_train
import pytest
import toy

from polyweft.training.launch import AGENTS_VARIABLE, LISTEN_VARIABLE

pytestmark = pytest.mark.slow


def test_a_stage_goes_on_with_the_agents_that_join_it(tmp_path: Path) -> None:
    one = lone_train.make(tmp_path / "one", processes=2)
    several = lone_train.make(tmp_path / "several", processes=1)
    for folder in (one, several):
        lone_train.change(folder, {"runtime.threads": 1, "train.epochs": 3})
    lone_train.finish(one)

    listen = {LISTEN_VARIABLE: "127.0.0.1:0", AGENTS_VARIABLE: "2"}
    stage = toy.python(several, *lone_train.COMMAND, **listen)
    output = several / "output"
    assert toy.wait_until(lambda: "ITS_OWN" in output.read_text(), 60), output.read_text()
    command = re.search(r"python (-m polyweft\S+ join .*) ITS_OWN", output.read_text())
    assert command is not None
    other = subprocess.Popen(
        [sys.executable, *command[1].split(), "127.0.0.1"],
        cwd=several,
        env=toy.environment(several) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert stage.wait(timeout=180) == 0, output.read_text()[-4000:]
    assert other.wait(timeout=60) == 0
    assert lone_train.outputs(several) == lone_train.outputs(one)


@pytest.mark.parametrize(
    ("listen", "agents", "words"),
    [("10.0.0.1", "2", "POLYWEFT_LISTEN is '10.0.0.1'"), ("127.0.0.1:0", "few", "POLYWEFT_AGENTS is 'few'")],
)
def test_an_address_or_a_number_that_cannot_be_is_refused(
    listen: str, agents: str, words: str, tmp_path: Path
) -> None:
    folder = lone_train.make(tmp_path / "run", processes=1)
    stage = toy.python(folder, *lone_train.COMMAND, **{LISTEN_VARIABLE: listen, AGENTS_VARIABLE: agents})
    assert stage.wait(timeout=60) == 1
    said = (folder / "output").read_text().strip()
    assert said.startswith(f"train: {words}; give ")
    assert len(said.splitlines()) == 1
