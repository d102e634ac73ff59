"""The model repository on disk: versions are numbered, immutable, found again, and survive kills."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyweft.data import decode
from polyweft.errors import ExportError, ServingError
from registry import contents
from registry.configs import ServingSettings
from registry.repository import Repository, served_models
from tests.serving.tiny import write_tiny_export

NAME = "tiny-model"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "served" / "models", NAME)


@pytest.fixture
def exports(tmp_path: Path) -> list[Path]:
    return [write_tiny_export(tmp_path / str(seed), seed=seed) for seed in range(2)]


def _imports(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]


def _tree(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_versions_count_up_and_an_export_is_published_once(
    repository: Repository, exports: list[Path]
) -> None:
    assert repository.publish(exports[0]) == (1, True)
    assert repository.publish(exports[1]) == (2, True)
    before = _tree(repository.root)
    assert repository.publish(exports[0]) == (1, False)
    assert _tree(repository.root) == before
    assert list(repository.versions()) == [1, 2]
    assert repository.current is None


def test_a_version_holds_the_library_code_verbatim(repository: Repository, exports: list[Path]) -> None:
    version, _ = repository.publish(exports[0])
    folder = repository.root / "tiny_model_image_preprocess" / str(version)
    assert decode.__file__ is not None
    assert (folder / "decode.py").read_bytes() == Path(decode.__file__).read_bytes()
    assert "polyweft" not in {line.split()[1].split(".")[0] for line in _imports(folder / "decode.py")}
    onnx = repository.root / "tiny_model_image_encoder" / str(version) / "model.onnx"
    assert onnx.read_bytes() == (exports[0] / "image.onnx").read_bytes()


def test_a_number_is_never_given_twice(repository: Repository, exports: list[Path]) -> None:
    repository.publish(exports[0])
    repository.publish(exports[1])
    repository.discard(2)
    assert list(repository.versions()) == [1]
    assert repository.publish(exports[1]) == (3, True)


def test_the_current_version_cannot_be_discarded(repository: Repository, exports: list[Path]) -> None:
    version, _ = repository.publish(exports[0])
    repository.make_current(version)
    with pytest.raises(ServingError, match="Roll back first"):
        repository.discard(version)
    assert served_models(repository.root) == [NAME]


def test_damage_is_named_and_publishing_puts_it_right(repository: Repository, exports: list[Path]) -> None:
    version, _ = repository.publish(exports[0])
    assert repository.damaged(version) is None
    good = _tree(repository.root)
    (repository.root / "tiny_model_text_encoder" / "1" / "model.onnx").write_bytes(b"x")
    assert "tiny_model_text_encoder/1/model.onnx has other bytes" in str(repository.damaged(version))
    assert repository.publish(exports[0]) == (version, False)
    assert repository.damaged(version) is None
    assert _tree(repository.root) == good


def test_a_flipped_byte_is_refused_by_name(repository: Repository, exports: list[Path]) -> None:
    onnx = exports[0] / "image.onnx"
    content = bytearray(onnx.read_bytes())
    content[100] ^= 1
    onnx.write_bytes(bytes(content))
    with pytest.raises(ExportError, match=r"image\.onnx"):
        repository.publish(exports[0])
    assert repository.versions() == {}


def test_an_export_without_golden_queries_is_refused(repository: Repository, exports: list[Path]) -> None:
    (exports[0] / "golden" / "golden.safetensors").unlink()
    with pytest.raises(ServingError, match=r"golden\.safetensors is missing"):
        repository.publish(exports[0])


def test_what_a_killed_publication_left_is_removed(repository: Repository, exports: list[Path]) -> None:
    repository.publish(exports[0])
    left = [
        repository.root / "tiny_model_image_encoder" / "2",
        repository.root.parent / ".staging-tiny_model-2" / "join",
    ]
    for folder in left:
        folder.mkdir(parents=True)
    version, fresh = repository.publish(exports[1])
    assert (version, fresh) == (2, True)
    assert repository.damaged(2) is None
    assert not left[1].parent.exists()


def test_a_full_disk_leaves_the_repository_as_it_was(
    repository: Repository, exports: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.publish(exports[0])
    before = _tree(repository.root)
    real = contents.shutil.copyfile

    def copy(source: Path, target: Path) -> None:
        if Path(target).name == "text.json":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(contents.shutil, "copyfile", copy)
    with pytest.raises(ServingError, match="No space left on device"):
        repository.publish(exports[1])
    assert _tree(repository.root) == before
    assert list(repository.root.parent.glob(".staging*")) == []


def test_one_rollout_at_a_time(repository: Repository) -> None:
    other = Repository(repository.root, NAME)
    with repository.locked(), pytest.raises(ServingError, match="another rollout"), other.locked():
        pass
    with other.locked():
        pass


def test_two_names_that_are_served_as_one_are_refused(repository: Repository, exports: list[Path]) -> None:
    repository.publish(exports[0])
    with pytest.raises(ServingError, match="Rename one"):
        Repository(repository.root, "tiny_model").publish(exports[1])


def test_a_state_that_is_no_json_is_named(repository: Repository, exports: list[Path]) -> None:
    repository.publish(exports[0])
    (repository.root / "tiny_model.json").write_text("{")
    with pytest.raises(ServingError, match=r"tiny_model\.json"):
        repository.versions()


def test_another_geometry_gets_components_of_its_own(repository: Repository, tmp_path: Path) -> None:
    small = write_tiny_export(tmp_path / "small", seed=1, size=8)
    large = write_tiny_export(tmp_path / "large", seed=2, size=16)
    (one, _), (two, _) = repository.publish(small), repository.publish(large)
    assert not repository.same_generation(one, two)
    assert "tiny_model_image_encoder_g2" in repository.components(two)
    assert repository.stale_components(two) == sorted(repository.components(one))
    assert repository.stale_components(two, one) == []


def test_a_state_of_another_form_says_what_to_do(repository: Repository, exports: list[Path]) -> None:
    repository.publish(exports[0])
    path = repository.root / "tiny_model.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"generations": [{"image_size": 8}]}))
    with pytest.raises(ServingError, match=r"another version of Polyweft.*Move the folder away"):
        repository.components(1)


def test_a_captioner_has_its_decoder_and_the_code_that_asks_it(
    repository: Repository, tmp_path: Path
) -> None:
    export = write_tiny_export(tmp_path / "captioner", seed=1, generates=True)
    repository.publish(export)
    folder = repository.root / "tiny_model_generate" / "1"
    wanted = {"decoder.onnx", "generation.py", "text.py", "text.json", "tokenizer.json", "model.json"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert _imports(folder / "generation.py")
    assert not any("polyweft" in line for line in _imports(folder / "generation.py"))


def test_ensembles_pin_the_version_and_unchanged_files_are_not_touched(
    repository: Repository, exports: list[Path]
) -> None:
    for export in exports:
        repository.publish(export)
    repository.write_ensembles(2)
    path = repository.root / "tiny_model" / "config.pbtxt"
    text = path.read_text()
    assert text.count("model_version: 2") == 6
    assert "model_version: -1" not in text
    assert (repository.root / "tiny_model" / "2").is_dir()
    changed = path.stat().st_mtime_ns
    repository.write_ensembles(2)
    assert path.stat().st_mtime_ns == changed


def test_the_state_names_hashes_and_what_is_current(repository: Repository, exports: list[Path]) -> None:
    version, _ = repository.publish(exports[0])
    repository.make_current(version)
    state = json.loads((repository.root / "tiny_model.json").read_text())
    expected = json.loads((exports[0] / "model.json").read_text())["export_hash"]
    assert state["current"] == 1
    assert state["versions"]["1"]["export_hash"] == expected == repository.export_hash(1)
    with pytest.raises(ServingError, match="no version 9"):
        repository.export_hash(9)


def test_settings_are_kept_for_those_who_give_none(repository: Repository, exports: list[Path]) -> None:
    given = ServingSettings(max_batch_size=4, threads=2, queue_delay_microseconds=7)
    Repository(repository.root, NAME, given).publish(exports[0])
    assert repository.settings == given
    assert repository.publish(exports[1]) == (2, True)
    assert repository.write_components(2, {2})
    assert not repository.write_components(2, {2})
    assert "max_batch_size: 4" in (repository.root / "tiny_model_join" / "config.pbtxt").read_text()
