"""`python -m polyweft.predict`: answers from the exported model, without a server and without torch.

Every image is compared with every text; the class head, where there is one, is asked with what it sees.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyweft.errors import ConfigError, DataError, MediaError, PolyweftError

if TYPE_CHECKING:
    from polyweft.export.bundle import Variant
    from polyweft.export.onnx import OnnxPredictor
    from polyweft.models.predictor import FloatArray

DEFAULT_MODEL = Path("data/export")


@dataclass(frozen=True)
class ClassAnswer:
    """The most probable classes for one image, one text, or a pair; an absent one is None."""

    image: str | None
    text: str | None
    classes: list[tuple[str, float]]


@dataclass(frozen=True)
class Prediction:
    """What the model says.

    Attributes
    ----------
    version
        The export's hash.
    variant
        `fp32` or `int8`.
    images, texts
        What was asked, in order.
    similarities
        Cosine similarity of each image (a row) with each text (a column); empty without both.
    answers
        Class probabilities; empty where the model has no classes.
    """

    version: str
    variant: str
    images: list[str]
    texts: list[str]
    similarities: list[list[float]]
    answers: list[ClassAnswer]


def predict(
    folder: Path,
    images: Sequence[Path],
    texts: Sequence[str],
    *,
    variant: Variant = "fp32",
    top: int = 5,
    threads: int = 1,
) -> Prediction:
    """Ask the export in `folder` about images and texts.

    A head that sees both is asked for every pair, or for what is there. One that sees the images alone, or
    the texts alone, is asked for each of these.

    Raises
    ------
    DataError
        Nothing was given to ask with, an image is missing, or the model's head sees what was not given and
        there is no pair to compare either.
    MediaError
        An image cannot be decoded or is over the model's pixel limit.
    ExportError
        There is no exported model, or it is broken.
    """
    import numpy as np

    from polyweft.data.text import TextTokenizer, TokenizerError
    from polyweft.errors import ExportError
    from polyweft.export.onnx import OnnxPredictor

    if not images and not texts:
        raise DataError("nothing to ask with: give at least one --image or --text.")
    for text in texts:
        if not _is_unicode(text):
            raise DataError(f"text {text!r} is not valid UTF-8. Pass the text in UTF-8.")
    predictor = OnnxPredictor.load(folder, threads=threads, variant=variant, check_hash=True)
    sees = predictor.sees if predictor.classes else None
    if not (images and texts) and (
        sees is None or (sees == "image" and texts) or (sees == "text" and images)
    ):
        given, lacking = ("--text", "--image") if texts else ("--image", "--text")
        raise DataError(
            f"this model {'has no classes' if sees is None else f'classifies from the {sees} alone'}, so "
            f"{given} alone has no answer. Give {lacking} too."
        )
    pixels = [_pixels(path, predictor) for path in images]
    try:
        tokenizer = TextTokenizer.load(folder)
    except TokenizerError as error:
        raise ExportError(f"the exported model's tokenizer is broken: {error}") from error
    size = predictor.image_spec.size
    image_ID, image_features_IF = predictor.images(
        np.stack(pixels) if pixels else np.zeros((0, 3, size, size), np.float32)
    )
    text_JD, text_features_JF = predictor.texts(tokenizer.encode(texts))
    similarities: list[list[float]] = (image_ID @ text_JD.T).tolist() if images and texts else []
    names = [str(path).encode("utf-8", "backslashreplace").decode("utf-8") for path in images]
    return Prediction(
        version=predictor.export_hash,
        variant=variant,
        images=names,
        texts=list(texts),
        similarities=similarities,
        answers=_classes(predictor, names, texts, image_features_IF, text_features_JF, top),
    )


def _is_unicode(text: str) -> bool:
    # Python keeps an argument's invalid bytes as lone surrogates.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _pixels(path: Path, predictor: OnnxPredictor) -> FloatArray:
    from polyweft.data.decode import MediaDecodeError, decode_image

    try:
        return decode_image(path.read_bytes(), predictor.image_spec)
    except OSError as error:
        raise DataError(
            f"image {path} cannot be read: {error.strerror or error}. Check its path and permissions."
        ) from error
    except MediaDecodeError as error:
        raise MediaError(f"image {path}: {error}. Give a whole image within the model's limit.") from error


def _classes(
    predictor: OnnxPredictor,
    images: Sequence[str],
    texts: Sequence[str],
    image_features_IF: FloatArray,
    text_features_JF: FloatArray,
    top: int,
) -> list[ClassAnswer]:
    import numpy as np

    if not predictor.classes:
        return []
    # -1 stands for an absent modality.
    rows = list(range(len(images))) if predictor.sees != "text" and images else [-1]
    columns = list(range(len(texts))) if predictor.sees != "image" and texts else [-1]
    pairs = np.array([(row, column) for row in rows for column in columns])
    present_B2 = (pairs >= 0).astype(np.float32)
    absent = np.zeros((1, predictor.feature_size), np.float32)
    probabilities_BC = predictor.classify(
        np.concatenate([image_features_IF, absent])[pairs[:, 0]],
        np.concatenate([text_features_JF, absent])[pairs[:, 1]],
        present_B2,
    )
    answers = []
    for (row, column), probabilities_C in zip(pairs.tolist(), probabilities_BC, strict=True):
        best = np.argsort(-probabilities_C, kind="stable")[:top]
        classes = [(predictor.classes[index], float(probabilities_C[index])) for index in best]
        image, text = images[row] if row >= 0 else None, texts[column] if column >= 0 else None
        answers.append(ClassAnswer(image, text, classes))
    return answers


def to_json(prediction: Prediction) -> str:
    """The prediction as JSON; `classes` are objects of `name` and `probability`."""
    content = asdict(prediction)
    for answer, row in zip(prediction.answers, content["answers"], strict=True):
        row["classes"] = [{"name": name, "probability": value} for name, value in answer.classes]
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def show(prediction: Prediction) -> None:
    """Print tables for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if prediction.answers:
        table = Table("asked", "class", "probability", title="Classes")
        for answer in prediction.answers:
            asked = " + ".join(part for part in (answer.image, answer.text) if part is not None)
            for place, (name, value) in enumerate(answer.classes):
                table.add_row(Text(asked if place == 0 else ""), Text(name), f"{value:.3f}")
            table.add_section()
        console.print(table)
    if prediction.similarities:
        table = Table("image", title="Cosine similarity")
        for text in prediction.texts:
            table.add_column(Text(text), justify="right")
        for image, row in zip(prediction.images, prediction.similarities, strict=True):
            table.add_row(Text(image), *(f"{value:+.3f}" for value in row))
        console.print(table)
    console.print(f"model {prediction.version[:12]} ({prediction.variant})", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 with an answer, 1 with one message on standard error."""
    parser = argparse.ArgumentParser(prog="python -m polyweft.predict", description=__doc__)
    parser.add_argument("--image", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--text", action="append", default=[])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="an export")
    parser.add_argument("--variant", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--top", type=int, default=5, help="classes to name (5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    given = parser.parse_args(arguments)
    try:
        if given.top < 1 or given.threads < 1:
            raise ConfigError("--top and --threads are counts: give 1 or more.")
        prediction = predict(
            given.model, given.image, given.text, variant=given.variant, top=given.top, threads=given.threads
        )
    except PolyweftError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    if given.json:
        print(to_json(prediction))
    else:
        show(prediction)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
