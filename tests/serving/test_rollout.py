"""Rollouts on the real server: under load, of bad candidates, back again, and after damage."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from polyweft.errors import PolyweftError, ServingError
from polyweft.export import bundle
from polyweft.export.golden import read_golden
from registry.client import Client
from registry.configs import ServingSettings
from registry.control import Control
from registry.repository import Repository
from registry.rollout import Rollout, check, load_current, roll_out
from registry.server import Server
from tests.serving.tiny import picture, spoil_golden, write_tiny_export

pytestmark = pytest.mark.slow


class Load:
    """Clients that ask the whole time: what they were answered, and what was lost."""

    def __init__(self, url: str, name: str, exports: list[Path], clients: int = 3) -> None:
        self.lost: list[str] = []
        self.wrong = 0
        self.answers: list[tuple[float, str]] = []
        self._expected = {}
        for export in exports:
            golden = read_golden(export / "golden")
            self._image = golden.contents["image"][0] or b""
            row = golden.expected["image_embedding"][0]
            self._expected[bundle.read_spec(export)["export_hash"]] = row
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url, name)) for _ in range(clients)]

    def _ask(self, url: str, name: str) -> None:
        with Client(url, name) as client:
            while not self._stop.is_set():
                sent = time.monotonic()
                try:
                    answer = client.ask({"image": [self._image], "text": [b"red"]})
                except PolyweftError as error:
                    self.lost.append(str(error))
                    continue
                expected = self._expected[answer.model_version]
                self.wrong += int(np.abs(answer.arrays["image_embedding"][0] - expected).max() > 1e-4)
                self.answers.append((sent, answer.model_version))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        while not self.answers and not self.lost:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("exports")
    return [write_tiny_export(folder / str(seed), seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def repository(server: Server, exports: list[Path]) -> Repository:
    repository = Repository(server.root, "tiny-rollout")
    roll_out(server.url, repository, exports[0])
    return repository


def _hash(export: Path) -> str:
    return str(bundle.read_spec(export)["export_hash"])


def _versions(repository: Repository) -> dict[str, int]:
    return {export_hash: version for version, export_hash in repository.versions().items()}


def test_a_rollout_and_a_rollback_under_load_lose_nothing(
    server: Server, repository: Repository, exports: list[Path]
) -> None:
    old, new = map(_hash, exports)
    with Load(server.url, repository.name, exports) as load:
        done = roll_out(server.url, repository, exports[1])
        switched = time.monotonic()
        time.sleep(0.2)
        asked = time.monotonic()
        back = roll_out(server.url, repository, exports[0])
        returned = time.monotonic()
        time.sleep(0.2)
    assert (done.previous, done.version, done.export_hash) == (1, 2, new)
    assert (back.previous, back.version, back.export_hash) == (2, 1, old)
    assert load.lost == []
    assert load.wrong == 0
    between = {version for sent, version in load.answers if switched < sent < asked}
    assert between == {new}
    assert {version for sent, version in load.answers if sent > returned} == {old}
    assert len(load.answers) > 50


def test_the_current_export_is_not_published_again(
    server: Server, repository: Repository, exports: list[Path]
) -> None:
    before = repository.versions()
    done = roll_out(server.url, repository, exports[0])
    assert isinstance(done, Rollout)
    assert done.previous == done.version == _versions(repository)[_hash(exports[0])]
    assert repository.versions() == before


def test_changed_settings_are_applied_to_the_current_version(
    server: Server, repository: Repository, exports: list[Path]
) -> None:
    slow = Repository(server.root, repository.registered, ServingSettings(max_batch_size=2))
    assert roll_out(server.url, slow, exports[0]).version == 1
    with Client(server.url, repository.name, batch_size=16) as client, _refused("batch"):
        client.ask({"image": [picture(1)] * 3, "text": [b"red"] * 3})
    with Client(server.url, repository.name) as client:
        assert len(client.embed_texts(["red"] * 3)[0]) == 3
    roll_out(server.url, Repository(server.root, repository.registered, ServingSettings()), exports[0])


def test_a_candidate_that_answers_wrongly_never_reaches_clients(
    server: Server, repository: Repository, exports: list[Path], tmp_path: Path
) -> None:
    bad = write_tiny_export(tmp_path / "bad", seed=7)
    spoil_golden(bad)
    configured = _configurations(repository)
    with (
        Load(server.url, repository.name, exports, clients=2) as load,
        pytest.raises(ServingError, match=r"not rolled out, version 1 is served on.*image_embedding differs"),
    ):
        roll_out(server.url, repository, bad)
    assert load.lost == []
    assert {version for _, version in load.answers} == {_hash(exports[0])}
    _assert_untouched(server, repository, configured)


def test_a_corrupt_onnx_is_refused_with_the_reason_and_the_old_serves_on(
    server: Server, repository: Repository, exports: list[Path], tmp_path: Path
) -> None:
    bad = write_tiny_export(tmp_path / "bad", seed=8)
    (bad / "text.onnx").write_bytes(b"not an ONNX")
    spec = bundle.read_spec(bad)
    bundle.write_spec(bad, {k: v for k, v in spec.items() if k not in ("files", "export_hash")})
    configured = _configurations(repository)
    with (
        Load(server.url, repository.name, exports, clients=2) as load,
        pytest.raises(
            ServingError, match=r"(?s)version 1 is served on.*not a model that ONNX Runtime can load"
        ),
    ):
        roll_out(server.url, repository, bad)
    assert load.lost == []
    _assert_untouched(server, repository, configured)


def test_another_geometry_is_served_under_the_same_names(
    server: Server, exports: list[Path], tmp_path: Path
) -> None:
    repository = Repository(server.root, "tiny-geometry")
    roll_out(server.url, repository, write_tiny_export(tmp_path / "small", seed=3, classes=0))
    large = write_tiny_export(tmp_path / "large", seed=4, size=16, embedding=6)
    done = roll_out(server.url, repository, large)
    with Client(server.url, repository.name) as client:
        assert client.embed_images([picture(1)])[0].shape == (1, 6)
        assert client.classify([picture(1)], ["red"])[0].shape == (1, 3)
    assert (done.version, done.previous) == (2, 1)


def test_a_version_of_other_modalities_brings_and_takes_its_ensembles(server: Server, tmp_path: Path) -> None:
    repository = Repository(server.root, "tiny-modalities")
    wide = write_tiny_export(tmp_path / "wide", seed=3, modalities=["image", "text", "audio"])
    narrow = write_tiny_export(tmp_path / "narrow", seed=4)
    roll_out(server.url, repository, wide)
    with Client(server.url, repository.name) as client:
        assert set(client.ask({"image": [picture(1)]}).arrays) >= {"audio_embedding", "text_embedding"}
        roll_out(server.url, repository, narrow)
        assert "audio_embedding" not in client.ask({"image": [picture(1)]}).arrays
        with pytest.raises(ServingError, match="tiny_modalities_audio"):
            client.embed("audio", [b"x"])
        roll_out(server.url, repository, wide)
        assert "audio_embedding" in client.ask({"image": [picture(1)]}).arrays


def test_a_killed_stub_shows_in_the_answers_and_loading_again_helps(
    server: Server, repository: Repository
) -> None:
    model = repository.components(1)[0]
    stubs = [
        p
        for p in psutil.Process(server.process.pid).children(recursive=True)
        if model in " ".join(p.cmdline())
    ]
    assert stubs
    for stub in stubs:
        stub.kill()
    with pytest.raises(ServingError):
        check(server.url, repository, timeout_seconds=3)
    assert load_current(server.url, repository, timeout_seconds=3) <= 1e-4
    assert check(server.url, repository) <= 1e-4


def test_damage_in_the_repository_is_put_right_and_serving_goes_on(
    server: Server, repository: Repository, exports: list[Path]
) -> None:
    broken = server.root / "tiny_rollout_image_encoder" / "1" / "model.onnx"
    broken.write_bytes(b"damage")
    assert "model.onnx has other bytes" in str(repository.damaged(1))
    done = roll_out(server.url, repository, exports[0])
    assert (done.version, done.previous) == (1, 1)
    assert repository.damaged(1) is None


def test_a_server_that_reads_another_folder_is_named(
    server: Server, exports: list[Path], tmp_path: Path
) -> None:
    elsewhere = Repository(tmp_path / "models", "tiny-elsewhere")
    with pytest.raises(ServingError, match="Set TRITON_REPOSITORY"):
        roll_out(server.url, elsewhere, exports[0])
    assert elsewhere.versions() == {}


def _refused(reason: str) -> pytest.RaisesExc[ServingError]:
    return pytest.raises(ServingError, match=reason)


def _configurations(repository: Repository) -> dict[str, str]:
    found = repository.root.glob(f"{repository.name}*/config.pbtxt")
    return {path.parent.name: path.read_text() for path in found}


def _assert_untouched(server: Server, repository: Repository, configured: dict[str, str]) -> None:
    assert repository.current == 1
    assert set(repository.versions()) == {1, 2}
    assert _configurations(repository) == configured
    folders = repository.root.glob(f"{repository.name}_*/*")
    assert {path.name for path in folders if path.is_dir()} <= {"1", "2"}
    with Control(server.url) as control:
        loaded = {model: control.loaded(model) for model in repository.components(1)}
        assert all(versions <= {1, 2} and 1 in versions for versions in loaded.values()), loaded
    assert check(server.url, repository) <= 1e-4
