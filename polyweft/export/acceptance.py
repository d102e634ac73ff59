"""Whether an export may leave its stage: parity, the metrics, golden queries, INT8's loss; and speed."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from polyweft.config import Section
from polyweft.data.shards import Sample
from polyweft.errors import ExportError
from polyweft.evaluation.evaluator import EvaluateParams, evaluate_split
from polyweft.export.golden import ask, differences, read_golden, write_golden
from polyweft.export.parity import check, measure, metric_difference, write_parity
from polyweft.export.quantize import compared, loss_facts
from polyweft.models.predictor import Predictor

REAL_ROWS = 32
"""Rows whose contents parity is measured with, and speed."""


class ExportParams(Section):
    """Section `export`."""

    # From 23 on there is an Attention operator, whose CPU form in ONNX Runtime 1.31 takes no mask that
    # must be broadcast over the queries.
    opset: int = Field(ge=18, le=22, description="ONNX's set of operators")
    batch_sizes: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        min_length=1, description="parity is measured at each"
    )
    text_lengths: list[Annotated[int, Field(ge=2)]] = Field(
        description="and text at each of these, in tokens with start and end, and at the greatest"
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
    samples: Sequence[Sample]

    def contents(self) -> dict[str, list[bytes]]:
        """Raw bytes of the first rows, by modality."""
        rows = self.samples[:REAL_ROWS]
        return {
            name: [content for row in rows if (content := row.contents(name)) is not None]
            for name in self.torch.modalities
        }


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
        sides.contents(),
        batch_sizes=params.batch_sizes,
        lengths=params.text_lengths,
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
        return compared(evaluate_split(side, sides.samples, settings, seed=seed).metrics)

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
    sides: Sides,
    params: ExportParams,
    samples: Sequence[Sample],
    folder: Path,
    *,
    generation: Mapping[str, Any] | None,
) -> dict[str, float | int]:
    """Write the golden queries, chosen among all of a split's `samples`, and ask the ONNX side.

    Raises
    ------
    ExportError
        Its answers differ from PyTorch's by more than `params.max_abs_error`, or a caption does.
    """
    write_golden(sides.torch, samples, folder, generation=generation, count=params.golden_queries)
    golden = read_golden(folder)
    answered = ask(sides.onnx, golden.ids, golden.contents, generation)
    found = differences(golden, answered.expected, answered.captions)
    worst = max(found, key=lambda name: found[name])
    if not found[worst] <= params.max_abs_error:
        raise ExportError(
            f"the exported model's {worst} differs from PyTorch's by {found[worst]:.3g} on the golden "
            f"queries; at most {params.max_abs_error:g} is allowed (`export.max_abs_error`)."
        )
    return {"golden_queries": len(golden), "golden_max_abs_error": found[worst]}


def speeds(sides: Sides) -> dict[str, float]:
    """Rows a second of each side's encoders, at a batch of 16; it takes about a second."""
    facts: dict[str, float] = {}
    for name, contents in sides.contents().items():
        if contents:
            batch = sides.torch.readers[name].read([contents[row % len(contents)] for row in range(16)])
            for who, side in (("torch", sides.torch), ("onnx", sides.onnx), ("int8", sides.int8)):
                if side is not None:
                    encode = functools.partial(side.encode, name)
                    facts[f"{who}_{name}_rows_per_second"] = _rate(encode, batch)
    return facts


def _rate(ask: Callable[[Any], Any], batch: Any, seconds: float = 0.15) -> float:
    ask(batch)
    begin, done = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        ask(batch)
        done += len(batch)
    return round(done / (time.perf_counter() - begin), 1)
