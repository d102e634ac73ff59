"""Golden queries: raw bytes with the answers that PyTorch gave, to hold a served model against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from polyweft.errors import DataError, ServingError
from polyweft.io import inside, read_json

if TYPE_CHECKING:
    from registry.client import Client

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """N queries and their expected answers.

    Attributes
    ----------
    images, texts
        Raw bytes; empty where the modality is absent.
    expected
        `image_embedding` and `text_embedding` float32 [N, D], `probabilities` float32 [N, C] (only with
        classes); zeros in an embedding whose modality is absent.
    """

    images: list[bytes]
    texts: list[bytes]
    expected: dict[str, FloatArray]

    def __len__(self) -> int:
        return len(self.images)


def load_golden(folder: Path) -> Golden:
    """Read an export's `golden/` folder; an incomplete one is a `ServingError`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        rows = read_json(folder / "golden.json")
        expected = load_file(folder / "golden.safetensors")
        images = [inside(folder, row["image"]).read_bytes() if row["image"] else b"" for row in rows]
    except (DataError, OSError, SafetensorError) as error:
        raise ServingError(
            f"golden queries in {folder} cannot be read: {error}. Run `dvc repro export`."
        ) from error
    texts = [(row["text"] or "").encode("utf-8") for row in rows]
    if not rows or any(len(array) != len(rows) for array in expected.values()):
        sizes = {name: len(array) for name, array in expected.items()}
        raise ServingError(f"{folder} has {len(rows)} queries for answers {sizes}. Run `dvc repro export`.")
    return Golden(images, texts, expected)


def ask_golden(client: Client, golden: Golden, *, export_hash: str, tolerance: float) -> float:
    """Ask every golden query end to end, and give the largest absolute difference.

    Raises
    ------
    ServingError
        The server does not answer, another model answered, or a component differs by more than `tolerance`.
    """
    answer = client.ask(golden.images, golden.texts)
    if answer.model_version != export_hash:
        raise ServingError(
            f"{client.name} was answered by model {answer.model_version[:12]}; expected {export_hash[:12]}"
        )
    differences = compare(answer.arrays, golden.expected)
    worst = max(differences, key=lambda name: differences[name])
    if differences[worst] > tolerance:
        raise ServingError(
            f"{client.name}: {worst} differs from PyTorch's answer by {differences[worst]:.3g} on the golden "
            f"queries; at most {tolerance:g} is allowed (deploy.tolerance)"
        )
    return differences[worst]


def ask_export(export: Path, golden: Golden, *, threads: int) -> float:
    """The largest absolute difference of the export itself, in this process, through serving's preprocessing.

    The same on every machine of a kind, whatever is served; a mismatch in shape or a NaN is infinite.
    """
    from polyweft.data.decode import decode_image
    from polyweft.data.text import TextTokenizer
    from polyweft.export.onnx import OnnxPredictor

    predictor, tokenizer = OnnxPredictor.load(export, threads=threads), TextTokenizer.load(export)
    spec = predictor.image_spec
    present = np.array(
        [[bool(i), bool(t)] for i, t in zip(golden.images, golden.texts, strict=True)], np.float32
    )
    pixels = np.zeros((len(golden), 3, spec.size, spec.size), np.float32)
    for row, image in enumerate(golden.images):
        if image:
            pixels[row] = decode_image(image, spec)
    ids = tokenizer.encode([text.decode() for text in golden.texts], length=tokenizer.max_tokens)
    image_side = [array * present[:, :1] for array in predictor.images(pixels)]
    text_side = [array * present[:, 1:] for array in predictor.texts(ids)]
    given = {"image_embedding": image_side[0], "text_embedding": text_side[0]}
    if predictor.classes:
        given["probabilities"] = predictor.classify(image_side[1], text_side[1], present)
    return max(compare(given, golden.expected).values())


def compare(given: Mapping[str, FloatArray], expected: Mapping[str, FloatArray]) -> dict[str, float]:
    """Largest absolute difference by output; a missing output, another shape or a NaN is infinite."""
    differences = {}
    for name, want in expected.items():
        got = given.get(name)
        if got is None or got.shape != want.shape:
            differences[name] = float("inf")
            continue
        worst = float(np.abs(got.astype(np.float64) - want.astype(np.float64)).max(initial=0.0))
        differences[name] = worst if np.isfinite(worst) else float("inf")
    return differences
