"""`python -m polyweft.predict`: answers from an export without torch, and one message for bad input."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from polyweft.errors import ExportError
from polyweft.export.bundle import read_spec, write_spec
from polyweft.export.golden import read_golden
from polyweft.models.build import load_trained
from polyweft.predict import main, predict
from tests.unit.export.tiny_export import CLASSES, KINDS, made, picture, sample

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`joint/`, `fused/`, `captioner/`, and `image/`, whose head sees the image alone, as it says."""
    root = tmp_path_factory.mktemp("predict")
    for kind in KINDS:
        shutil.copytree(made(kind).exported, root / kind)
    shutil.copytree(made().exported, root / "image")
    rewrite(root / "image", {"sees": ["image"]})
    return root


def rewrite(folder: Path, change: dict[str, object]) -> None:
    """Change what an export says of itself, and state its hash anew."""
    spec = read_spec(folder)
    kept = {key: value for key, value in spec.items() if key not in ("files", "export_hash")}
    write_spec(folder, {**kept, **change})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    path.write_bytes(picture(5))
    return path


def test_similarities_and_classes_are_those_of_pytorch(folder: Path, image: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.jpg"
    other.write_bytes(picture(6, form="JPEG"))
    texts = ["一个红色的圆", "a red star", "https://example.org"]
    found = predict(folder / "joint", {"image": [image, other], "text": texts})
    trained = load_trained(made().trained, threads=1)
    pixels = trained.readers["image"].read([path.read_bytes() for path in (image, other)])
    image_D, image_F = trained.encode("image", pixels)
    text_D, text_F = trained.encode("text", trained.readers["text"].read([text.encode() for text in texts]))
    (pair,) = found.similarities
    assert (pair.rows, pair.columns) == ("image", "text")
    assert np.abs(np.array(pair.cosine) - image_D @ text_D.T).max() < 1e-5
    assert [tuple(answer.asked.values()) for answer in found.answers] == [
        (str(path), text) for path in (image, other) for text in texts
    ]
    features = {"image": image_F[[1]], "text": text_F[[2]]}
    expected = trained.answer(features, np.ones((1, 2), np.float32))["probabilities"][0]
    named = dict(found.answers[5].classes)
    assert [named[name] for name in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [value for _, value in found.answers[5].classes] == sorted(named.values(), reverse=True)


def test_one_modality_alone_is_answered_as_such(folder: Path, image: Path) -> None:
    found = predict(folder / "joint", {"image": [image]})
    assert [answer.asked for answer in found.answers] == [{"image": str(image)}]
    assert found.similarities == []
    found = predict(folder / "joint", {"text": ["a star"]})
    assert [answer.asked for answer in found.answers] == [{"text": "a star"}]


def test_a_head_that_sees_the_image_alone_answers_an_image_once(folder: Path, image: Path) -> None:
    found = predict(folder / "image", {"image": [image], "text": ["a star", "a circle"]})
    assert [answer.asked for answer in found.answers] == [{"image": str(image)}]
    assert len(found.similarities[0].cosine[0]) == 2


def test_every_modality_is_asked_with_and_every_task_answers(folder: Path, tmp_path: Path) -> None:
    row = sample(1)
    given: dict[str, list[Path | str]] = {"text": ["a red circle"]}
    for name, content in row.media.items():
        path = tmp_path / f"a.{row.extensions[name]}"
        path.write_bytes(content)
        given[name] = [path]
    found = predict(folder / "fused", given)
    assert found.similarities == []
    (answer,) = found.answers
    assert set(answer.asked) == {"image", "text", "audio", "graph"}
    assert sum(value for _, value in answer.classes) == pytest.approx(1, abs=1e-5)
    assert {name for name, _ in answer.labels} == {"round", "sharp"}
    assert predict(folder / "fused", {"graph": given["graph"]}).answers[0].classes != answer.classes


def test_a_captioner_describes_images_as_its_golden_queries_say(folder: Path) -> None:
    golden = folder / "captioner" / "golden"
    image = next(path for path in sorted(golden.iterdir()) if path.name.startswith("image-000"))
    found = predict(folder / "captioner", {"image": [image]})
    assert found.captions == [read_golden(golden).captions[0]]
    assert found.answers == []


def test_json_is_for_machines(folder: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "--model",
        str(folder / "joint"),
        "--image",
        str(image),
        "--text",
        "圆",
        "--json",
        "--top",
        "2",
    ]
    assert main(command) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["version"] == json.loads((folder / "joint/model.json").read_text())["export_hash"]
    assert answer["asked"]["text"] == ["圆"]
    assert [set(one) for one in answer["answers"][0]["classes"]] == [{"name", "probability"}] * 2


def test_tables_are_for_people_and_show_brackets_as_they_are(
    folder: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--model", str(folder / "joint"), "--image", str(image), "--text", "[red] 圆"]
    assert main([*command, "--variant", "int8"]) == 0
    shown = capsys.readouterr().out
    assert "[red] 圆" in shown
    assert "Cosine similarity" in shown
    assert "(int8)" in shown
    assert main(["--model", str(folder / "captioner"), "--image", str(image)]) == 0
    assert "Captions" in capsys.readouterr().out


def huge_png() -> bytes:
    """A valid header of 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "bad.png"),
        (b"<html>", "bad.png"),
        (picture(1)[:150], "truncated"),
        (huge_png(), "50000"),
    ],
    ids=["missing", "empty", "not an image", "truncated", "50,000 x 50,000"],
)
def test_a_bad_image_gets_one_message_and_exit_code_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, words: str
) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    assert main(["--model", str(folder / "joint"), "--image", str(path)]) == 1
    message = capsys.readouterr().err
    assert "bad.png" in message
    assert words in message
    assert "Traceback" not in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "at least one of --image, --text, --audio, --video, --graph"),
        (["--text", "x", "--top", "0"], "--top"),
        (["--text", "caf\udce9"], "UTF-8"),
        (["--audio", "a.wav"], "takes image, text, not audio"),
        (["--text", "x", "--model", "no/such/folder"], "make run"),
    ],
)
def test_bad_arguments_get_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["--model", str(folder / "joint"), *arguments]) == 1
    assert words in capsys.readouterr().err


def test_a_question_without_an_answer_says_what_to_add(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(folder / "image"), "--text", "a star"]) == 1
    assert "looks at image alone, so --text alone has no answer. Give --image too" in capsys.readouterr().err
    assert main(["--model", str(folder / "captioner"), "--text", "a star"]) == 1
    assert "it has no head, so --text alone has no answer" in capsys.readouterr().err


def test_a_damaged_model_answers_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folder / "joint", tmp_path / "copy")
    content = bytearray((copy / "text.onnx").read_bytes())
    content[-10] ^= 1
    (copy / "text.onnx").write_bytes(content)
    assert main(["--model", str(copy), "--text", "a star"]) == 1
    assert "text.onnx" in capsys.readouterr().err


def test_an_export_without_int8_says_so(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder / "joint", tmp_path / "copy")
    for name in ("image.int8.onnx", "text.int8.onnx"):
        (copy / name).unlink()
    rewrite(copy, {})
    with pytest.raises(ExportError, match="no int8 variant"):
        predict(copy, {"text": ["a star"]}, variant="int8")


def test_as_a_program_it_needs_no_torch(folder: Path, image: Path) -> None:
    script = (
        "import sys; from polyweft.predict import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'pandas', 'mlflow', 'transformers'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(code)"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "--model",
        str(folder / "joint"),
        "--image",
        str(image),
        "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
