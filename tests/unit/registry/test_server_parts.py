"""Names, ports, the serving environment and the supervisor, without Triton."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from polyweft.errors import ServingError
from registry import supervise
from registry.client import Client
from registry.configs import Geometry, ServingSettings, component_config, ensemble_config, triton_name
from registry.control import is_triton
from registry.environment import find_environment
from registry.server import Ports, choose_ports, remove_stale_shared_memory

PIXELS = {"tensor": "pixel_values", "dtype": "float32", "shape": [3, 32, 32], "largest": [3, 32, 32]}
IDS = {"tensor": "input_ids", "dtype": "int64", "shape": [-1], "largest": [12]}
CLIP = {"tensor": "log_mel", "dtype": "float32", "shape": [16, 20], "largest": [16, 20]}


def geometry(**changes: Any) -> Geometry:
    given: dict[str, Any] = {
        "modalities": ["image", "text", "audio"],
        "inputs": {"image": PIXELS, "text": IDS, "audio": CLIP},
        "features": {"image": [4, 8], "text": [-1, 8], "audio": [8]},
        "embedding_size": 16,
        "sees": ["image"],
        "outputs": {"probabilities": [3], "value": [1]},
        "generates": True,
    }
    return Geometry(**given | changes)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-a", "a b", "模型", "a" * 101])
def test_names_that_are_no_safe_file_names_are_refused(name: str) -> None:
    with pytest.raises(ServingError, match="letters, digits"):
        triton_name(name)


def test_every_component_batches_and_states_the_onnx_sizes() -> None:
    made = geometry()
    for kind in made.components():
        text = component_config(kind, f"n_{kind}", made, [2, 1], ServingSettings())
        assert "max_batch_size: 32" in text
        assert "dynamic_batching" in text
        assert "versions: [ 1, 2 ]" in text
    image = component_config("image_encoder", "n", made, [1], ServingSettings(threads=3))
    assert 'backend: "onnxruntime"' in image
    assert "dims: [ 3, 32, 32 ]" in image
    assert "dims: [ 4, 8 ]" in image
    assert 'string_value: "3"' in image
    assert "dims: [ -1, 8 ]" in component_config("head", "n", made, [1], ServingSettings())


@pytest.mark.parametrize(
    ("kind", "changes", "answers"),
    [
        (
            "all",
            {},
            {"image_embedding", "text_embedding", "audio_embedding", "probabilities", "value", "caption"},
        ),
        ("candidate", {"embedding_size": 0}, {"probabilities", "value", "caption"}),
        ("image", {}, {"image_embedding", "probabilities", "value", "caption"}),
        ("text", {}, {"text_embedding"}),
        ("text", {"sees": ["text", "audio"]}, {"text_embedding", "probabilities", "value"}),
        ("audio", {"outputs": {}, "sees": [], "generates": False}, {"audio_embedding"}),
    ],
)
def test_an_ensemble_answers_what_the_model_can_say_of_what_it_takes(
    kind: str, changes: dict[str, Any], answers: set[str]
) -> None:
    text = ensemble_config(kind, "n", geometry(**changes), 4, 1, ServingSettings())
    found = {line.split('"')[1] for line in text.splitlines() if line.startswith("output ")}
    assert found == answers | {"model_version"}
    assert "model_version: -1" not in text


def test_a_modality_that_would_be_answered_with_nothing_has_no_ensemble() -> None:
    assert geometry(embedding_size=0).ensembles() == ("all", "image")
    assert geometry().ensembles() == ("all", "image", "text", "audio")


def test_one_step_at_a_time_reads_the_clients_bytes() -> None:
    text = ensemble_config("all", "n", geometry(), 4, 1, ServingSettings())
    assert 'key: "after" value: "image_present"' in text
    assert 'key: "after" value: "text_present"' in text
    assert text.count('key: "after"') == 2


def test_free_ports_are_three_different_ones() -> None:
    ports = choose_ports(Ports())
    assert len({ports.http, ports.grpc, ports.metrics}) == 3
    assert choose_ports(ports) == ports


@pytest.mark.parametrize("ports", [Ports(http=70_000), Ports(http=-1)])
def test_a_number_that_is_no_port_is_refused(ports: Ports) -> None:
    with pytest.raises(ServingError, match="Triton's http"):
        choose_ports(ports)


def test_an_incomplete_environment_names_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    monkeypatch.setenv("POLYWEFT_TRITON_VENV", str(tmp_path))
    with pytest.raises(ServingError, match=r"lacks .*tritonserver.*make setup"):
        find_environment()


def test_nobody_there_is_no_triton() -> None:
    assert not is_triton("127.0.0.1:9")
    with Client("grpc://127.0.0.1:9/", "n") as client, pytest.raises(ServingError, match="did not answer"):
        client.embed_texts(["a"])


def test_inputs_of_unequal_length_are_refused() -> None:
    with Client("127.0.0.1:9", "n") as client, pytest.raises(ServingError, match="as many of each"):
        client.ask({"image": [b"a"], "text": []})


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ServingError, match="grpc or http"):
        Client("127.0.0.1:9", "n", protocol="smtp")  # type: ignore[arg-type]


def test_shared_memory_of_the_dead_goes_and_that_of_the_living_stays() -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = [Path(f"/dev/shm/polyweft-triton-{pid}-1-unit") for pid in (dead.pid, os.getpid())]
    for path in left:
        path.touch()
    try:
        remove_stale_shared_memory()
        assert [path.exists() for path in left] == [False, True]
    finally:
        left[1].unlink()


class Supervised:
    """A supervisor, with a shell that has a child of its own in place of Triton and its stub."""

    def __init__(self, parent: int, script: str = "sleep 600 & wait") -> None:
        self.memory = Path(f"/dev/shm/polyweft-unit-{os.getpid()}-x")
        self.memory.touch()
        prefix = self.memory.name.removesuffix("x")
        command = [sys.executable, "-I", "-S", supervise.__file__, str(parent), prefix, "2"]
        command += ["/bin/sh", "-c", script]
        self.process = subprocess.Popen(command, start_new_session=True)

    def children(self, count: int) -> list[psutil.Process]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = psutil.Process(self.process.pid).children(recursive=True)
            if len(found) >= count:
                return found
            time.sleep(0.02)
        raise AssertionError("the children did not come up")

    def assert_nothing_left(self, children: list[psutil.Process]) -> None:
        self.process.wait(20)
        psutil.wait_procs(children, timeout=5)
        assert not any(child.is_running() for child in children)
        assert not self.memory.exists()


def test_sigterm_ends_the_server_and_what_it_started() -> None:
    supervised = Supervised(os.getpid())
    children = supervised.children(2)
    supervised.process.send_signal(signal.SIGTERM)
    supervised.assert_nothing_left(children)


def test_a_server_that_ignores_sigterm_is_killed() -> None:
    supervised = Supervised(os.getpid(), "trap '' TERM; sleep 600 & wait; sleep 600")
    children = supervised.children(2)
    supervised.process.send_signal(signal.SIGTERM)
    supervised.assert_nothing_left(children)


def test_a_parent_that_is_gone_ends_the_server() -> None:
    supervised = Supervised(parent=1_000_000_000)
    supervised.assert_nothing_left([])


def test_the_servers_own_exit_code_is_passed_on() -> None:
    supervised = Supervised(os.getpid(), "exit 7")
    supervised.assert_nothing_left([])
    assert supervised.process.returncode == 7
