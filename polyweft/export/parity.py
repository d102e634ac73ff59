"""Parity: the exported model answers what the trained one answers, over batch sizes and lengths.

Errors are `golden.difference`: absolute, and for what has no fixed scale (features, logits, regressed values)
divided by the largest expected magnitude where that is above 1. Suffixes: B rows of a batch, M modalities.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.data.reader import Reader
from polyweft.errors import ExportError
from polyweft.export.golden import difference
from polyweft.export.signature import DESCRIBED, largest_shape
from polyweft.io import write_text
from polyweft.models.predictor import FloatArray, Predictor

Inputs = npt.NDArray[Any]


@dataclass(frozen=True)
class Measurement:
    """Largest difference of one output for one input: `length` of its free axis, 0 where there is none."""

    output: str
    inputs: str
    batch: int
    length: int
    max_abs_error: float


def measure(
    reference: Predictor,
    candidate: Predictor,
    contents: Mapping[str, Sequence[bytes]],
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
    seed: int,
) -> list[Measurement]:
    """Compare two predictors on real and on random input.

    Parameters
    ----------
    contents
        Real raw bytes by modality; none of them need be there.
    lengths
        An input with a free axis (token ids) is measured at each of these that its reader allows, and at the
        greatest. The head is asked with every modality, each alone and each removed, in one batch.

    Raises
    ------
    ExportError
        A value of `candidate` is not finite, or an output has another shape.
    """
    rng = np.random.default_rng(seed)
    found: list[Measurement] = []
    pools = {m: reference.readers[m].read(contents.get(m, [])[:32]) for m in reference.modalities}
    for batch in batch_sizes:
        features: dict[str, dict[str, FloatArray]] = {"real": {}, "random": {}}
        ids: dict[str, Inputs] = {}
        for name in reference.modalities:
            reader = reference.readers[name]
            for length in _lengths(reader, lengths):
                for kind, inputs in _inputs(reader, contents.get(name, []), pools[name], batch, length, rng):
                    expected = reference.encode(name, inputs)
                    actual = candidate.encode(name, inputs)
                    pairs = (
                        {f"{name}_embedding": (expected[0], actual[0])} if reference.embedding_size else {}
                    )
                    pairs[f"{name}_features"] = (expected[1], actual[1])
                    found += _compare(pairs, kind, length)
                    features[kind][name], ids[kind] = (
                        expected[1],
                        inputs if name == "text" else ids.get(kind, inputs),
                    )
        for kind, parts in features.items():
            if reference.outputs and len(parts) == len(reference.modalities):
                found += _answers(reference, candidate, kind, parts)
            if reference.generates and {"text", DESCRIBED} <= set(parts):
                given = (ids[kind], parts[DESCRIBED])
                pairs = {"logits": (reference.decode(*given), candidate.decode(*given))}
                found += _compare(pairs, kind, ids[kind].shape[1])
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
    pairs: Mapping[str, tuple[FloatArray, FloatArray]], kind: str, length: int
) -> Iterator[Measurement]:
    for name, (want, have) in pairs.items():
        if want.shape != have.shape or not np.isfinite(have).all():
            raise ExportError(
                f"the exported model's {name} has shape {have.shape} or values that are not finite; "
                f"PyTorch's has {want.shape} ({kind} input, length {length}). Try another `export.opset`."
            )
        yield Measurement(name, kind, len(want), length, difference(want, have))


def _answers(
    reference: Predictor, candidate: Predictor, kind: str, features: Mapping[str, FloatArray]
) -> Iterator[Measurement]:
    count, batch = len(features), len(next(iter(features.values())))
    alone = np.eye(count, dtype=np.float32)
    there = np.concatenate([np.ones((1, count), np.float32), alone, *([1 - alone] if count > 2 else [])])
    present_BM = there[np.arange(batch) % len(there)]
    parts = {
        name: part * present_BM[:, column].reshape(-1, *[1] * (part.ndim - 1))
        for column, (name, part) in enumerate(features.items())
    }
    expected, actual = reference.answer(parts, present_BM), candidate.answer(parts, present_BM)
    return _compare({name: (expected[name], actual[name]) for name in reference.outputs}, kind, 0)


def _lengths(reader: Reader, lengths: Sequence[int]) -> list[int]:
    free = [most for size, most in zip(reader.shape, largest_shape(reader), strict=True) if size < 0]
    return sorted({*free, *(length for length in lengths if length <= free[0])}) if free else [0]


def _inputs(
    reader: Reader, contents: Sequence[bytes], pool: Inputs, batch: int, length: int, rng: np.random.Generator
) -> Iterator[tuple[str, Inputs]]:
    """Random input and, where there are contents, real input; a free axis is of `length`."""
    shape = (batch, *(length if size < 0 else size for size in reader.shape))
    if reader.dtype == "int64":
        # Ids that the model knows: those of the real rows, in any order.
        yield "random", rng.choice(np.unique(pool) if pool.size else np.arange(2), shape).astype(np.int64)
    else:
        yield "random", rng.standard_normal(shape).astype(np.float32)
    if contents and length:
        chosen = [contents[row % len(contents)] for row in range(batch)]
        yield "real", reader.read(chosen, length=length)  # type: ignore[call-arg]
    elif len(pool):
        yield "real", pool[np.arange(batch) % len(pool)]
