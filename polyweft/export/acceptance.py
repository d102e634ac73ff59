"""Whether an export may leave its stage: parity, the metrics, golden queries, INT8's loss; and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from polyweft.config import Section
from polyweft.data.decode import decode_image
from polyweft.data.shards import Sample
from polyweft.data.text import TextTokenizer
from polyweft.errors import ExportError
from polyweft.evaluation.evaluator import EvaluateParams, evaluate_split
from polyweft.export.golden import answers, largest_difference, read_golden, write_golden
from polyweft.export.parity import Inputs, check, measure, metric_difference, write_parity
from polyweft.export.quantize import LOSSES, loss_facts
from polyweft.models.predictor import Predictor

REAL_ROWS = 32
"""Rows whose pixels and captions parity is measured with, and speed."""


class ExportParams(Section):
    """Section `export`."""

    # From 23 on there is an Attention operator, whose CPU form in ONNX Runtime 1.31 takes no mask that
    # must be broadcast over the queries.
    opset: int = Field(ge=18, le=22, description="ONNX's set of operators")
    batch_sizes: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        min_length=1, description="parity is measured at each"
    )
    text_lengths: list[Annotated[int, Field(ge=2)]] = Field(
        description="and at each of these, in tokens with start and end, and at the tokenizer's max_tokens"
    )
    max_abs_error: float = Field(gt=0, le=1, description="largest difference of any output from PyTorch's")
    max_metric_difference: float = Field(ge=0, le=1, description="largest difference of any metric")
    metric_split: Literal["validation", "test"]
    metric_rows: int = Field(ge=1, description="rows of that split that metrics are compared on, at most")
    int8: bool = Field(description="write the dynamic INT8 variant")
    int8_max_loss: float = Field(ge=0, le=1, description="largest loss of any metric to accept it")
    golden_queries: int = Field(ge=1, le=256)
    tensorrt: bool = Field(description="build engines where TensorRT and a GPU are present")


@dataclass(frozen=True)
class Sides:
    """The same model three times, and what it is asked: rows of the split that metrics are compared on."""

    torch: Predictor
    onnx: Predictor
    int8: Predictor | None
    tokenizer: TextTokenizer
    samples: Sequence[Sample]

    def inputs(self) -> Inputs:
        """Pixels and captions of the first rows."""
        spec, rows = self.torch.image_spec, self.samples[:REAL_ROWS]
        images = [decode_image(row.image, spec) for row in rows if row.image is not None]
        pixels = np.stack(images) if images else np.zeros((0, 3, spec.size, spec.size), np.float32)
        texts = [caption["text"] or "" for row in rows for caption in row.captions[:2]]
        return Inputs(pixels, texts, self.tokenizer)


def accept_outputs(sides: Sides, params: ExportParams, *, seed: int, table: Path) -> dict[str, float | int]:
    """Measure parity, write it to `table`, and give `max_abs_error` and the number of cases.

    Raises
    ------
    ExportError
        An output differs by more than `params.max_abs_error`; see `parity.check`.
    """
    measurements = measure(
        sides.torch,
        sides.onnx,
        sides.inputs(),
        batch_sizes=params.batch_sizes,
        text_lengths=params.text_lengths,
        seed=seed,
    )
    write_parity(table, measurements)
    return {"max_abs_error": check(measurements, params.max_abs_error), "parity_cases": len(measurements)}


def accept_metrics(sides: Sides, params: ExportParams, *, seed: int) -> dict[str, float | int | bool]:
    """Compare the task's metrics of ONNX with PyTorch's, and of INT8 with ONNX's, on the same rows.

    Returns
    -------
    `metric_difference`, `metric_rows`, and with an INT8 side `quantize.loss_facts`.

    Raises
    ------
    ExportError
        A metric of ONNX differs by more than `params.max_metric_difference`. INT8's loss raises nothing: it
        is reported, and over `params.int8_max_loss` the variant is not accepted.
    """
    # The intervals are not used here: as few replicates as the section allows.
    settings = EvaluateParams(
        split=params.metric_split, languages=None, caption_choice="all", bootstrap_samples=100, batch_size=64
    )

    def measured(side: Predictor) -> dict[str, float]:
        found = evaluate_split(side, sides.tokenizer, sides.samples, settings, seed=seed).metrics
        return {name: found[name] for name in LOSSES if name in found}

    expected, found = measured(sides.torch), measured(sides.onnx)
    difference, name = metric_difference(expected, found)
    if not difference <= params.max_metric_difference:
        raise ExportError(
            f"the exported model's {name} is {found[name]:.4f}, PyTorch's {expected[name]:.4f} on the same "
            f"{len(sides.samples)} rows; at most {params.max_metric_difference:g} of difference is allowed "
            "(`export.max_metric_difference`). Try another `export.opset`."
        )
    facts: dict[str, float | int | bool] = {
        "metric_difference": difference,
        "metric_rows": len(sides.samples),
    }
    if sides.int8 is not None:
        facts |= loss_facts(found, measured(sides.int8), max_loss=params.int8_max_loss)
    return facts


def accept_golden(
    sides: Sides, params: ExportParams, samples: Sequence[Sample], folder: Path
) -> dict[str, float | int]:
    """Write the golden queries, chosen among all of a split's `samples`, and ask the ONNX side.

    Raises
    ------
    ExportError
        Its answers differ from PyTorch's by more than `params.max_abs_error`.
    """
    write_golden(sides.torch, sides.tokenizer, samples, folder, count=params.golden_queries)
    golden = read_golden(folder)
    found = answers(sides.onnx, sides.tokenizer, golden.queries, golden.images)
    difference = largest_difference(golden.expected, found)
    if not difference <= params.max_abs_error:
        raise ExportError(
            f"the exported model's answers to the golden queries differ from PyTorch's by {difference:.3g}; "
            f"at most {params.max_abs_error:g} is allowed (`export.max_abs_error`)."
        )
    return {"golden_queries": len(golden.queries), "golden_max_abs_error": difference}


def speeds(sides: Sides) -> dict[str, float]:
    """Images and texts a second of each side, at a batch of 16; it takes about a second."""
    inputs = sides.inputs()
    batch = range(16)
    pixels = inputs.pixels[[row % len(inputs.pixels) for row in batch]] if len(inputs.pixels) else None
    texts = [inputs.texts[row % len(inputs.texts)] for row in batch] if inputs.texts else None
    facts: dict[str, float] = {}
    for name, side in (("torch", sides.torch), ("onnx", sides.onnx), ("int8", sides.int8)):
        if side is not None and pixels is not None:
            facts[f"{name}_images_per_second"] = _rate(side.images, pixels)
        if side is not None and texts is not None:
            facts[f"{name}_texts_per_second"] = _rate(side.texts, inputs.tokenizer.encode(texts))
    return facts


def _rate(ask: Callable[[Any], Any], batch: Any, seconds: float = 0.15) -> float:
    ask(batch)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        ask(batch)
        done += len(batch)
    return round(done / (time.perf_counter() - begin), 1)
