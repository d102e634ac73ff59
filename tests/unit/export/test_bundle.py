"""The export's hash covers every byte of what is served, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from polyweft.errors import ExportError
from polyweft.export.bundle import SPEC_FILE, export_hash, read_spec, verify, write_spec
from polyweft.io import read_json, write_json
from polyweft.modalities import reader_module
from tests.unit.export.tiny_export import Made


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def test_an_untouched_export_passes_and_its_hash_is_recomputed_from_its_bytes(exported: Path) -> None:
    assert verify(exported) == export_hash(exported) == read_spec(exported)["export_hash"]


@pytest.mark.parametrize("name", ["image.onnx", "text.int8.onnx", "head.onnx", "text.json"])
def test_one_flipped_bit_changes_the_hash_and_verify_names_the_file(copy: Path, name: str) -> None:
    before = export_hash(copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    assert export_hash(copy) != before
    with pytest.raises(ExportError, match=name):
        verify(copy)


def test_a_changed_description_is_found(copy: Path) -> None:
    spec = read_json(copy / SPEC_FILE)
    spec["inputs"]["image"]["spec"]["mean"][0] += 0.01
    write_json(copy / SPEC_FILE, spec)
    with pytest.raises(ExportError, match=r"model\.json was changed"):
        verify(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "text.onnx").unlink()
    with pytest.raises(ExportError, match=r"text\.onnx cannot be read"):
        export_hash(copy)


def test_a_description_that_names_a_file_outside_the_folder_is_refused(copy: Path) -> None:
    spec = read_json(copy / SPEC_FILE)
    spec["files"]["../secret"] = "0" * 64
    write_json(copy / SPEC_FILE, spec)
    with pytest.raises(ExportError, match="leaves its folder"):
        export_hash(copy)


def test_golden_queries_and_the_parity_table_do_not_count(copy: Path) -> None:
    before = export_hash(copy)
    shutil.rmtree(copy / "golden")
    (copy / "parity.csv").unlink()
    assert export_hash(copy) == before


def test_writing_the_same_description_again_gives_the_same_hash(copy: Path) -> None:
    spec = read_spec(copy)
    content = {key: value for key, value in spec.items() if key not in ("files", "export_hash")}
    before = (copy / SPEC_FILE).read_bytes()
    assert write_spec(copy, content) == spec["export_hash"]
    assert (copy / SPEC_FILE).read_bytes() == before


def test_without_an_export_the_message_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="make run"):
        read_spec(tmp_path)


def test_model_json_states_what_each_modality_takes(each: Made) -> None:
    spec = read_spec(each.exported)
    assert sorted(spec["inputs"]) == sorted(spec["modalities"]) == sorted(spec["features"])
    for name, given in spec["inputs"].items():
        assert given["module"] == Path(str(reader_module(name).__file__)).name
        reader = reader_module(name).Reader(given["spec"], each.exported)
        assert (reader.tensor, reader.dtype, list(reader.shape)) == (
            given["tensor"],
            given["dtype"],
            given["shape"],
        )
        assert all(
            most > 0 and size in (-1, most)
            for size, most in zip(given["shape"], given["largest"], strict=True)
        )


@pytest.mark.parametrize("content", ["{", "[]", '{"classes": []}'])
def test_a_malformed_description_is_an_export_error(tmp_path: Path, content: str) -> None:
    (tmp_path / SPEC_FILE).write_text(content)
    with pytest.raises(ExportError, match=r"model\.json"):
        read_spec(tmp_path)
