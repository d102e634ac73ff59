"""No process outlives what started it, whatever session it has and however its parent ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from polyweft import processes

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if processes.identity(pid) is None:
            return True
        time.sleep(0.05)
    return False


def test_an_identity_lives_as_long_as_its_process() -> None:
    process = subprocess.Popen(SLEEP)
    key = processes.identity(process.pid)
    assert key is not None
    assert key == processes.identity(process.pid)
    assert processes.is_alive(key)
    process.kill()
    # A zombie, which nobody has waited for yet, is gone too.
    assert gone(process.pid)
    assert not processes.is_alive(key)
    process.wait()


def test_an_identity_is_not_that_of_another_process_with_its_number() -> None:
    pid, _, boot = str(processes.identity(os.getpid())).split("-")
    assert processes.is_alive(f"{pid}-1-{boot}") is False
    assert processes.is_alive("not-a-key") is False


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/venv/bin/python", "/venv/bin/dvc", "repro"], True),
        (["/venv/bin/python3.11", "-m", "dvc", "repro"], True),
        (["python", "-X", "dev", "-m", "dvc", "exp", "exec-run"], False),
        (["dvc", "repro"], True),
        (["sh", "-c", "dvc repro"], False),
        (["git", "commit", "-m", "dvc"], False),
        (["python", "-m", "stages.train", "dvc"], False),
        (["vim", "dvc"], False),
        ([], False),
    ],
)
def test_dvc_is_told_by_its_command_line(command: list[str], expected: bool) -> None:
    assert processes._is_dvc(command) is expected


@pytest.mark.parametrize("shell", [["sh", "-c"], ["bash", "-c"], None])
def test_the_nearest_dvc_is_found_through_any_shell(tmp_path: Path, shell: list[str] | None) -> None:
    (tmp_path / "dvc").write_text(
        "import os, subprocess, sys\n"
        "from polyweft.processes import identity\n"
        "print(identity(os.getpid()), flush=True)\n"
        "subprocess.run(sys.argv[1:])\n"
    )
    probe = "from polyweft.processes import dvc_ancestor; print(dvc_ancestor())"
    inner = [sys.executable, "-c", probe]
    command = [*shell, f"'{inner[0]}' -c '{probe}'; true"] if shell else inner
    done = subprocess.run(
        [sys.executable, str(tmp_path / "dvc"), *command],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[1])},
    )
    own, found = done.stdout.split()
    assert own == found


def test_a_stage_that_dvc_left_behind_follows_nobody_and_stops(tmp_path: Path) -> None:
    # DVC was killed while the stage started, which init then has: no driver, though it is the next above.
    (tmp_path / "stage.py").write_text(
        "import sys, time\n"
        "from polyweft.processes import dvc_ancestor, identity, watch_ancestor\n"
        "while identity(int(sys.argv[1])): time.sleep(0.01)\n"
        "print('driver', dvc_ancestor(), flush=True)\n"
        "watch_ancestor()\n"
        "time.sleep(60)\n"
    )
    answer = tmp_path / "answer"
    answer.touch()
    script = f'("{sys.executable}" stage.py $$; echo "code $?") > "{answer}" 2>&1 & exit 0'
    environment = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[1]), "DVC_STAGE": "train"}
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, check=True)
    deadline = time.monotonic() + 20
    while "code" not in answer.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    message = "train: DVC, which started this stage, is gone; stopping. Run it again."
    assert answer.read_text().splitlines() == ["driver None", message, "code 143"]


def test_what_started_a_dying_dvc_is_not_taken_for_it(tmp_path: Path) -> None:
    # A process that gives back its memory has no command line any more, and is its children's parent still.
    (tmp_path / "dvc").write_text(
        "import os, subprocess, sys\n"
        "from polyweft.processes import identity\n"
        "held = b'1' * 2**30\n"
        "print(identity(os.getpid()), flush=True)\n"
        "subprocess.run(sys.argv[1:])\n"
    )
    (tmp_path / "stage.py").write_text(
        "import os, pathlib\n"
        "from polyweft.processes import dvc_ancestor\n"
        "dvc, found = os.getppid(), {str(dvc_ancestor())}\n"
        "print('at work', flush=True)\n"
        "while os.getppid() == dvc: found.add(str(dvc_ancestor()))\n"
        "pathlib.Path('begun').write_text(' '.join(found))\n"
        "os.rename('begun', 'found')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parents[1]), "DVC_STAGE": "train"}
    command = [sys.executable, "dvc", sys.executable, "stage.py"]
    dvc = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert dvc.stdout is not None
    own = dvc.stdout.readline().strip()
    assert dvc.stdout.readline() == "at work\n"
    dvc.kill()
    deadline = time.monotonic() + 20
    while not (tmp_path / "found").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    dvc.wait()
    dvc.stdout.close()
    assert {own} <= set((tmp_path / "found").read_text().split()) <= {own, "None"}


def test_a_guarded_child_dies_with_its_parent() -> None:
    code = (
        "import subprocess, sys, time; from polyweft.processes import guarded\n"
        f"child = subprocess.Popen(guarded({SLEEP!r}), start_new_session=True)\n"
        "time.sleep(0.5); print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert psutil.Process(child).cmdline() == SLEEP
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(child)


def test_a_guarded_program_that_is_missing_is_named() -> None:
    done = subprocess.run(processes.guarded(["no-such-program"]), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no-such-program" in done.stderr


def test_a_guard_whose_parent_is_gone_runs_nothing(tmp_path: Path) -> None:
    command = [sys.executable, processes.__file__, "--parent", "1", "--", "touch", str(tmp_path / "ran")]
    assert subprocess.run(command, check=False).returncode == 1
    assert not (tmp_path / "ran").exists()


def test_a_tree_is_killed_with_the_sessions_below_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({SLEEP!r}, start_new_session=True)\n"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    processes.kill_tree(parent.pid, patience=0.5)
    assert gone(child)
    assert gone(parent.pid)
    parent.stdout.close()
    parent.wait()


def test_what_lost_its_parent_is_found_by_its_mark() -> None:
    silent = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL"
    code = f"import subprocess; print(subprocess.Popen({SLEEP!r}, {silent}).pid)"
    environment = {**os.environ, "POLYWEFT_TEST_MARK": "here"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    stray = int(done.stdout)
    found = processes.marked("POLYWEFT_TEST_MARK", "here")
    assert [process.pid for process in found] == [stray]
    processes.kill_all(found)
    assert gone(stray)


def test_a_stage_whose_owner_is_gone_ends_with_all_below_it_and_says_so() -> None:
    owner = subprocess.Popen(SLEEP)
    code = (
        "import subprocess, sys, time; from polyweft.processes import watch\n"
        f"child = subprocess.Popen({SLEEP!r}, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "watch(sys.argv[1], 'owner is gone', lambda: print('told', flush=True)); time.sleep(60)"
    )
    stage = subprocess.Popen(
        [sys.executable, "-c", code, str(processes.identity(owner.pid))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stage.stdout is not None
    child = int(stage.stdout.readline())
    owner.kill()
    owner.wait()
    out, err = stage.communicate(timeout=20)
    assert stage.returncode == 143
    assert (out.strip(), err.strip()) == ("told", "owner is gone")
    assert gone(child)
