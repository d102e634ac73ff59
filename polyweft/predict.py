"""`python -m polyweft.predict`: answers from the exported model, without a server and without torch.

Whatever is given of one modality is compared with whatever is given of another, where the model has a joint
space; its head, where there is one, is asked with every combination of what it looks at; images are described
where the model writes captions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyweft.errors import ConfigError, DataError, MediaError, PolyweftError
from polyweft.modalities import MEDIA, MODALITIES

if TYPE_CHECKING:
    from polyweft.export.bundle import Variant
    from polyweft.export.onnx import OnnxPredictor
    from polyweft.models.predictor import FloatArray

DEFAULT_MODEL = Path("data/export")


@dataclass(frozen=True)
class Similarities:
    """Cosine similarity of each content of one modality (a row) with each of another (a column)."""

    rows: str
    columns: str
    cosine: list[list[float]]


@dataclass(frozen=True)
class Answer:
    """What the head says of one combination.

    Attributes
    ----------
    asked
        By modality; what is not in it was absent.
    classes
        The most probable of the exclusive classes with their probabilities, most probable first.
    labels
        Every label with the probability that it applies, most probable first.
    value
        The regressed number, or None.
    """

    asked: dict[str, str]
    classes: list[tuple[str, float]]
    labels: list[tuple[str, float]]
    value: float | None


@dataclass(frozen=True)
class Prediction:
    """What the model says.

    Attributes
    ----------
    version
        The export's hash.
    variant
        `fp32` or `int8`.
    asked
        What was given, by modality, in order: texts, and names of files.
    similarities
        Of each pair of modalities that were both given; empty without a joint space.
    answers
        Of the head; empty without one.
    captions
        One an image, where the model writes them.
    """

    version: str
    variant: str
    asked: dict[str, list[str]]
    similarities: list[Similarities]
    answers: list[Answer]
    captions: list[str]


def predict(
    folder: Path,
    given: Mapping[str, Sequence[Path | str]],
    *,
    variant: Variant = "fp32",
    top: int = 5,
    threads: int = 1,
) -> Prediction:
    """Ask the export in `folder`.

    Parameters
    ----------
    given
        By modality: texts as they are, paths of files of any other.

    Raises
    ------
    DataError
        Nothing was given, something that the model does not take, a file is missing, or the model has no
        answer to what was given alone.
    MediaError
        A file cannot be decoded or is over the model's limits.
    ExportError
        There is no exported model, or it is broken.
    """
    from polyweft.export.captions import captions
    from polyweft.export.onnx import OnnxPredictor
    from polyweft.export.signature import DESCRIBED

    given = {name: list(given[name]) for name in MODALITIES if given.get(name)}
    if not given:
        flags = ", ".join(f"--{name}" for name in MODALITIES)
        raise DataError(f"nothing to ask with: give at least one of {flags}.")
    predictor = OnnxPredictor.load(folder, threads=threads, variant=variant, check_hash=True)
    _check_answerable(predictor, list(given))
    embeddings: dict[str, FloatArray] = {}
    features: dict[str, FloatArray] = {}
    for name, asked in given.items():
        inputs = predictor.readers[name].read([_content(predictor, name, one) for one in asked])
        embeddings[name], features[name] = predictor.encode(name, inputs)
    names = {name: [_shown(one) for one in asked] for name, asked in given.items()}
    described = predictor.generates and DESCRIBED in given
    return Prediction(
        version=predictor.export_hash,
        variant=variant,
        asked=names,
        similarities=[
            Similarities(one, other, (embeddings[one] @ embeddings[other].T).tolist())
            for one, other in itertools.combinations(given if predictor.embedding_size else (), 2)
        ],
        answers=_answers(predictor, names, features, top),
        captions=captions(predictor, features[DESCRIBED], predictor.generation or {}) if described else [],
    )


def _check_answerable(predictor: OnnxPredictor, given: list[str]) -> None:
    """Refuse what the model does not take, and what it has no answer to."""
    from polyweft.export.signature import DESCRIBED

    unknown = [name for name in given if name not in predictor.modalities]
    if unknown:
        raise DataError(
            f"this model takes {', '.join(predictor.modalities)}, not {unknown[0]}. Leave --{unknown[0]} out."
        )
    compared = predictor.embedding_size and len(given) > 1
    described = predictor.generates and DESCRIBED in given
    if compared or described or set(given) & set(predictor.sees):
        return
    lacking = [name for name in predictor.modalities if name not in given]
    head = f"its head looks at {', '.join(predictor.sees)} alone" if predictor.sees else "it has no head"
    flags = " or ".join(f"--{name}" for name in lacking)
    raise DataError(f"{head}, so --{given[0]} alone has no answer. Give {flags} too.")


def _shown(one: Path | str) -> str:
    # Python keeps an argument's invalid bytes as lone surrogates.
    return str(one).encode("utf-8", "backslashreplace").decode("utf-8")


def _content(predictor: OnnxPredictor, modality: str, one: Path | str) -> bytes:
    """Raw bytes that the modality's reader can read."""
    if modality not in MEDIA:
        try:
            return str(one).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{modality} {str(one)!r} is not valid UTF-8. Pass it in UTF-8.") from None
    try:
        content = Path(one).read_bytes()
        predictor.readers[modality].raw(content)
    except OSError as error:
        raise DataError(
            f"{modality} {one} cannot be read: {error.strerror or error}. Check its path and permissions."
        ) from error
    except ValueError as error:
        raise MediaError(f"{modality} {one}: {error}. Give a whole one within the model's limits.") from error
    return content


def _answers(
    predictor: OnnxPredictor, names: Mapping[str, list[str]], features: Mapping[str, FloatArray], top: int
) -> list[Answer]:
    """The head's answers to every combination of what it looks at."""
    import numpy as np

    from polyweft.export.signature import HEAD

    seen = [name for name in predictor.sees if name in names]
    if not seen:
        return []
    places = list(itertools.product(*(range(len(names[name])) for name in seen)))
    present_BM = np.zeros((len(places), len(predictor.modalities)), np.float32)
    parts: dict[str, FloatArray] = {}
    for column, name in enumerate(predictor.modalities):
        tensor = predictor.graphs[HEAD].inputs[f"{name}_features"]
        parts[name] = np.zeros((len(places), *tensor.at(2)), np.float32)
        if name in seen:
            parts[name] = features[name][[place[seen.index(name)] for place in places]]
            present_BM[:, column] = 1
    found = predictor.answer(parts, present_BM)
    values = found["value"][:, 0].tolist() if "value" in found else [None] * len(places)
    classes = _ranked(predictor.classes, found.get("probabilities"), len(places))
    labels = _ranked(predictor.labels, found.get("label_probabilities"), len(places))
    return [
        Answer(
            {name: names[name][index] for name, index in zip(seen, place, strict=True)},
            classes[row][:top],
            labels[row],
            values[row],
        )
        for row, place in enumerate(places)
    ]


def _ranked(names: list[str], probabilities: FloatArray | None, rows: int) -> list[list[tuple[str, float]]]:
    if probabilities is None:
        return [[] for _ in range(rows)]
    order = (-probabilities).argsort(axis=1, kind="stable").tolist()
    return [
        [(names[index], float(row[index])) for index in best]
        for row, best in zip(probabilities, order, strict=True)
    ]


def to_json(prediction: Prediction) -> str:
    """The prediction as JSON; classes and labels are objects of `name` and `probability`."""
    content = asdict(prediction)
    for row in content["answers"]:
        for kind in ("classes", "labels"):
            row[kind] = [{"name": name, "probability": value} for name, value in row[kind]]
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def show(prediction: Prediction) -> None:
    """Print tables for a person."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if prediction.answers:
        table = Table("asked", "answer", "", title="Answers")
        for answer in prediction.answers:
            rows = [(name, f"{value:.3f}") for name, value in (*answer.classes, *answer.labels)]
            rows += [("value", f"{answer.value:.4g}")] if answer.value is not None else []
            for place, (name, value) in enumerate(rows):
                asked = " + ".join(answer.asked.values()) if place == 0 else ""
                table.add_row(Text(asked), Text(name), value)
            table.add_section()
        console.print(table)
    for pair in prediction.similarities:
        table = Table(pair.rows, title=f"Cosine similarity: {pair.rows} and {pair.columns}")
        for column in prediction.asked[pair.columns]:
            table.add_column(Text(column), justify="right")
        for name, cosine in zip(prediction.asked[pair.rows], pair.cosine, strict=True):
            table.add_row(Text(name), *(f"{value:+.3f}" for value in cosine))
        console.print(table)
    if prediction.captions:
        table = Table("image", "caption", title="Captions")
        for name, caption in zip(prediction.asked["image"], prediction.captions, strict=True):
            table.add_row(Text(name), Text(caption))
        console.print(table)
    console.print(f"model {prediction.version[:12]} ({prediction.variant})", highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0 with an answer, 1 with one message on standard error."""
    parser = argparse.ArgumentParser(prog="python -m polyweft.predict", description=__doc__)
    for name in MODALITIES:
        media = name in MEDIA
        parser.add_argument(
            f"--{name}",
            type=Path if media else str,
            action="append",
            default=[],
            metavar="FILE" if media else None,
        )
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="FOLDER", help="an export")
    parser.add_argument("--variant", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("--top", type=int, default=5, help="classes to name (5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in MODALITIES}
    try:
        if options.top < 1 or options.threads < 1:
            raise ConfigError("--top and --threads are counts: give 1 or more.")
        prediction = predict(
            options.model, given, variant=options.variant, top=options.top, threads=options.threads
        )
    except PolyweftError as error:
        print(f"predict: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(to_json(prediction))
    else:
        show(prediction)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
