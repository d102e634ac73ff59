"""Golden queries: a few test rows with their raw media and texts, and what PyTorch answered.

A server that decodes and tokenizes by itself is asked these before it is made current. `golden/` holds
`golden.json` (rows of `id`, `image`: a file's name or null, `text`: or null), the images' original bytes, and
`golden.safetensors` with a row a query: `image_embedding` and `text_embedding` (zeros where the modality is
absent) and, where the model has classes, `probabilities`. Suffixes: N queries, M some of them, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from polyweft.data.decode import MediaDecodeError, decode_image
from polyweft.data.shards import Sample
from polyweft.data.text import TextTokenizer
from polyweft.errors import DataError, ExportError
from polyweft.export.bundle import RESTORE
from polyweft.io import inside, read_json, write_bytes, write_json
from polyweft.models.predictor import FloatArray, Predictor

FOLDER = "golden"


@dataclass(frozen=True)
class Query:
    """One row: a sample's id, the name of its image's file in the folder, its text; one of these is there."""

    id: str
    image: str | None
    text: str | None


@dataclass(frozen=True)
class Golden:
    """Queries, the bytes of their images (None where absent), and the expected answers by name, [N, ...]."""

    queries: list[Query]
    images: list[bytes | None]
    expected: dict[str, FloatArray]


def choose(samples: Sequence[Sample], count: int) -> list[tuple[Sample, str | None]]:
    """Pick at most `count` rows and a caption of each, the same for the same samples.

    One row without image and one without text where there are such, then rows with both (classes that
    were not seen yet first), then what is left. Every other row takes a Chinese caption if it has one.
    """
    whole = [sample for sample in samples if sample.image and sample.captions]
    texts = [sample for sample in samples if sample.image is None and sample.captions]
    images = [sample for sample in samples if sample.image and not sample.captions]
    lacking = [*texts[:1], *images[:1]][: count - 1 if whole else count]
    seen: set[int] = set()
    fresh: list[Sample] = []
    rest: list[Sample] = []
    for sample in whole:
        (rest if sample.class_index in seen else fresh).append(sample)
        seen.add(sample.class_index)
    more = [*fresh, *rest, *texts[1:], *images[1:]]
    picked = [*more[: count - len(lacking)], *lacking]
    return [(sample, _caption(sample, chinese=number % 2 == 1)) for number, sample in enumerate(picked)]


def write_golden(
    predictor: Predictor,
    tokenizer: TextTokenizer,
    samples: Sequence[Sample],
    folder: Path,
    *,
    count: int,
) -> Golden:
    """Choose `count` queries among `samples`, ask `predictor`, and write all into `folder`.

    Raises
    ------
    ExportError
        No sample has an image or a text to ask with.
    """
    from safetensors.numpy import save

    picked = choose(samples, count)
    if not picked:
        raise ExportError("the test split has no sample with an image or a text; there is nothing to ask.")
    queries: list[Query] = []
    images: list[bytes | None] = []
    for number, (sample, text) in enumerate(picked):
        name = f"img-{number:03d}.{sample.image_extension}" if sample.image else None
        queries.append(Query(sample.id, name, text))
        images.append(sample.image)
    golden = Golden(queries, images, answers(predictor, tokenizer, queries, images))
    for query, image in zip(queries, images, strict=True):
        if query.image and image:
            write_bytes(folder / query.image, image)
    write_bytes(folder / "golden.safetensors", save(golden.expected))
    write_json(folder / "golden.json", [asdict(query) for query in queries])
    return golden


def read_golden(folder: Path) -> Golden:
    """Read the folder that `write_golden` left; an `ExportError` names what is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / "golden.json"
    try:
        queries = [Query(**row) for row in read_json(path)]
        images: list[bytes | None] = []
        for query in queries:
            path = inside(folder, query.image) if query.image else path
            images.append(path.read_bytes() if query.image else None)
        path = folder / "golden.safetensors"
        expected: dict[str, FloatArray] = load(path.read_bytes())
    except (DataError, OSError, TypeError, SafetensorError) as error:
        raise ExportError(f"golden queries: {path} cannot be read ({error}). {RESTORE}") from error
    return Golden(queries, images, expected)


def answers(
    predictor: Predictor,
    tokenizer: TextTokenizer,
    queries: Sequence[Query],
    images: Sequence[bytes | None],
) -> dict[str, FloatArray]:
    """What `predictor` says of the queries, from raw bytes on; keys and shapes as in `golden.safetensors`."""
    count, size = len(queries), predictor.embedding_size
    with_image = [number for number, image in enumerate(images) if image is not None]
    with_text = [number for number, query in enumerate(queries) if query.text is not None]
    embeddings = {name: np.zeros((count, size), np.float32) for name in ("image", "text")}
    features: dict[str, FloatArray] = {}
    present_N2 = np.zeros((count, 2), np.float32)
    if with_image:
        pixels = np.stack([_pixels(predictor, queries[n], images[n] or b"") for n in with_image])
        embeddings["image"][with_image], some_MF = predictor.images(pixels)
        features["image"] = _spread(some_MF, with_image, count)
        present_N2[with_image, 0] = 1
    if with_text:
        ids = tokenizer.encode([queries[n].text or "" for n in with_text])
        embeddings["text"][with_text], some_MF = predictor.texts(ids)
        features["text"] = _spread(some_MF, with_text, count)
        present_N2[with_text, 1] = 1
    found = {f"{name}_embedding": array for name, array in embeddings.items()}
    if predictor.classes:
        absent_NF = np.zeros_like(next(iter(features.values())))
        parts = (features.get("image", absent_NF), features.get("text", absent_NF))
        found["probabilities"] = predictor.classify(*parts, present_N2)
    return found


def largest_difference(expected: dict[str, FloatArray], found: dict[str, FloatArray]) -> float:
    """The largest absolute difference of any component; infinite where a name, a shape or a value is off."""
    if set(expected) != set(found) or any(expected[key].shape != found[key].shape for key in expected):
        return float("inf")
    if not all(np.isfinite(found[key]).all() for key in expected):
        return float("inf")
    return max(float(np.abs(expected[key] - found[key]).max()) for key in expected)


def _caption(sample: Sample, *, chinese: bool) -> str | None:
    texts = [(caption["text"] or "", caption["language"]) for caption in sample.captions]
    wanted = [text for text, language in texts if (language == "zh") == chinese]
    return next(iter(wanted or [text for text, _ in texts]), None)


def _pixels(predictor: Predictor, query: Query, image: bytes) -> FloatArray:
    try:
        return decode_image(image, predictor.image_spec)
    except MediaDecodeError as error:
        raise ExportError(
            f"golden query {query.id!r}: {error}. `prepare` should have left it out; run it again."
        ) from error


def _spread(some_MF: FloatArray, rows: list[int], count: int) -> FloatArray:
    full_NF = np.zeros((count, some_MF.shape[1]), np.float32)
    full_NF[rows] = some_MF
    return full_NF
