"""Parity: the exported model answers what the trained one answers, over batch sizes and text lengths.

Embeddings and probabilities are compared as they are. Features have no fixed scale, so their difference is
divided by the largest expected magnitude where that is above 1. Suffixes: B rows of a batch, S pixels a side,
T tokens, F features.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from polyweft.data.text import TextTokenizer
from polyweft.errors import ExportError
from polyweft.export.onnx import GRAPHS
from polyweft.io import write_text
from polyweft.models.predictor import FloatArray, IntArray, Predictor


@dataclass(frozen=True)
class Measurement:
    """Largest difference of one output for one input: `length` in tokens, 0 where there is no text."""

    output: str
    inputs: str
    batch: int
    length: int
    max_abs_error: float


@dataclass(frozen=True)
class Inputs:
    """What parity is measured on: real pixels (rows, 3, S, S) and real texts; either may be empty."""

    pixels: FloatArray
    texts: list[str]
    tokenizer: TextTokenizer


def measure(
    reference: Predictor,
    candidate: Predictor,
    inputs: Inputs,
    *,
    batch_sizes: Sequence[int],
    text_lengths: Sequence[int],
    seed: int,
) -> list[Measurement]:
    """Compare two predictors on real and on random input.

    Texts are measured at each of `text_lengths` that the tokenizer allows, and at its `max_tokens`. The class
    head is asked with both modalities, image alone and text alone in one batch (one of them a row).

    Raises
    ------
    ExportError
        A value of `candidate` is not finite, or an output has another shape.
    """
    rng = np.random.default_rng(seed)
    size = reference.image_spec.size
    found: list[Measurement] = []
    for batch in batch_sizes:
        features: dict[str, list[FloatArray]] = {"real": [], "random": []}
        pixels = {"random": rng.standard_normal((batch, 3, size, size)).astype(np.float32)}
        if len(inputs.pixels):
            pixels["real"] = inputs.pixels[np.arange(batch) % len(inputs.pixels)]
        for kind, pixels_B3SS in pixels.items():
            expected = reference.images(pixels_B3SS)
            found += _compare("image", kind, 0, expected, candidate.images(pixels_B3SS))
            features[kind].append(expected[1])
        for kind, ids_BT in _texts(inputs, batch, text_lengths, rng):
            expected = reference.texts(ids_BT)
            found += _compare("text", kind, ids_BT.shape[1], expected, candidate.texts(ids_BT))
            features[kind].append(expected[1])
        if reference.classes:
            for kind, parts in features.items():
                if len(parts) > 1:
                    found += _classify(reference, candidate, kind, parts[0], parts[-1])
    return found


def check(measurements: Sequence[Measurement], limit: float) -> float:
    """The largest error of all; over `limit` an `ExportError` that names output, batch and length."""
    worst = max(measurements, key=lambda m: m.max_abs_error)
    if not worst.max_abs_error <= limit:
        raise ExportError(
            f"the exported model differs from PyTorch: {worst.output} by {worst.max_abs_error:.3g} with "
            f"{worst.inputs} input, batch {worst.batch}, length {worst.length}; at most {limit:g} is allowed "
            "(`export.max_abs_error`). Try another `export.opset`; a model that scales its values up needs "
            "a higher limit."
        )
    return worst.max_abs_error


def metric_difference(expected: Mapping[str, float], found: Mapping[str, float]) -> tuple[float, str]:
    """The largest absolute difference of a metric between two evaluations, and the metric's name.

    Raises
    ------
    ExportError
        A metric stands in one of them only, or there is none.
    """
    if not expected or set(expected) != set(found):
        raise ExportError(
            f"the two evaluations do not have the same metrics: {sorted(set(expected) ^ set(found))} stand "
            "in one of them only. They must be of the same rows."
        )
    return max((abs(float(expected[name]) - float(found[name])), name) for name in expected)


def write_parity(path: Path, measurements: Sequence[Measurement]) -> None:
    """Write the measurements as CSV, a row each, with a header."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow([field.name for field in fields(Measurement)])
    table.writerows(astuple(row) for row in measurements)
    write_text(path, buffer.getvalue())


def _compare(
    graph: str, kind: str, length: int, expected: Sequence[FloatArray], actual: Sequence[FloatArray]
) -> Iterator[Measurement]:
    for name, want, have in zip(GRAPHS[graph].outputs, expected, actual, strict=True):
        if want.shape != have.shape or not np.isfinite(have).all():
            raise ExportError(
                f"the exported model's {name} has shape {have.shape} or values that are not finite; "
                f"PyTorch's has {want.shape} ({kind} input, length {length}). Try another `export.opset`."
            )
        error = float(np.abs(want - have).max())
        if name.endswith("features"):
            error /= max(1.0, float(np.abs(want).max()))
        yield Measurement(name, kind, len(want), length, error)


def _classify(
    reference: Predictor, candidate: Predictor, kind: str, image_BF: FloatArray, text_BF: FloatArray
) -> Iterator[Measurement]:
    there = np.array([[1, 1], [1, 0], [0, 1]], np.float32)
    present_B2 = there[np.arange(len(image_BF)) % len(there)]
    parts = (image_BF * present_B2[:, :1], text_BF * present_B2[:, 1:], present_B2)
    expected, actual = reference.classify(*parts), candidate.classify(*parts)
    return _compare("classifier", kind, 0, [expected], [actual])


def _texts(
    inputs: Inputs, batch: int, lengths: Sequence[int], rng: np.random.Generator
) -> Iterator[tuple[str, IntArray]]:
    tokenizer = inputs.tokenizer
    for length in sorted({tokenizer.max_tokens, *(n for n in lengths if n <= tokenizer.max_tokens)}):
        yield "random", _random_ids(tokenizer, batch, length, rng)
        if inputs.texts:
            texts = [inputs.texts[row % len(inputs.texts)] for row in range(batch)]
            yield "real", tokenizer.encode(texts, length=length)


def _random_ids(tokenizer: TextTokenizer, batch: int, length: int, rng: np.random.Generator) -> IntArray:
    special = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id)
    plain = np.setdiff1d(np.arange(tokenizer.vocabulary_size), special)
    ids_BT = rng.choice(plain, (batch, length)).astype(np.int64)
    # The first row is full, the others end anywhere.
    end_B = np.r_[length - 1, rng.integers(1, length, batch - 1)]
    ids_BT[:, 0] = tokenizer.start_id
    ids_BT[np.arange(batch), end_B] = tokenizer.end_id
    ids_BT[np.arange(length)[None] > end_B[:, None]] = tokenizer.pad_id
    return ids_BT
