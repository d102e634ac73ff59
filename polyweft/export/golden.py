"""Golden queries: a few test rows with their raw bytes, and what PyTorch answered.

A server that decodes and tokenizes by itself is asked these before it is made current. `golden/` holds
`golden.json`, rows of `id`, `contents` (by modality: a text, the name of a file in the folder, or null) and
`caption` (or null); the files with their original bytes; and `golden.safetensors` with a row a query:
`<modality>_embedding` (zeros where the modality is absent) and the head's outputs.

Shape suffixes: N queries, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from polyweft.data.shards import Sample
from polyweft.errors import DataError, ExportError
from polyweft.export.bundle import RESTORE
from polyweft.export.captions import captions
from polyweft.export.signature import DESCRIBED
from polyweft.io import inside, read_json, write_bytes, write_json
from polyweft.modalities import MEDIA
from polyweft.models.predictor import FloatArray, Predictor

FOLDER = "golden"
FILES = ("golden.json", "golden.safetensors")

Contents = dict[str, list[bytes | None]]
"""By modality: raw bytes of each row; None where the row lacks it."""


@dataclass(frozen=True)
class Golden:
    """N queries and the expected answers.

    Attributes
    ----------
    ids
        The samples' ids.
    contents
        What is asked.
    expected
        Arrays [N, ...] by output.
    captions
        Of a model that writes them; empty for a row without an image. Empty for other models.
    """

    ids: list[str]
    contents: Contents
    expected: dict[str, FloatArray]
    captions: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


def choose(samples: Sequence[Sample], modalities: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Pick at most `count` rows with one content of each modality, the same for the same samples.

    One row without each modality where there is such, then rows with all (classes that were not seen yet
    first), then what is left. Every other row takes a Chinese caption if it has one.

    Returns
    -------
    Rows of `sample` and `contents` (by modality: bytes or None).
    """
    there = {id(s): {m for m in modalities if s.contents(m) is not None} for s in samples}
    whole = [s for s in samples if len(there[id(s)]) == len(modalities)]
    partial = [s for s in samples if 0 < len(there[id(s)]) < len(modalities)]
    lacking: list[Sample] = []
    for modality in modalities:
        lacking += [s for s in partial if modality not in there[id(s)] and s not in lacking][:1]
    lacking = lacking[: count - 1 if whole else count]
    seen: set[int] = set()
    fresh: list[Sample] = []
    rest: list[Sample] = []
    for sample in whole:
        (rest if sample.class_index in seen else fresh).append(sample)
        seen.add(sample.class_index)
    more = [*fresh, *rest, *(s for s in partial if s not in lacking)]
    picked = [*more[: count - len(lacking)], *lacking]
    return [
        {"sample": s, "contents": {m: _content(s, m, chinese=place % 2 == 1) for m in modalities}}
        for place, s in enumerate(picked)
    ]


def write_golden(
    predictor: Predictor,
    samples: Sequence[Sample],
    folder: Path,
    *,
    generation: Mapping[str, Any] | None,
    count: int,
) -> Golden:
    """Choose `count` queries among `samples`, ask `predictor`, and write all into `folder`.

    Raises
    ------
    ExportError
        No sample has anything to ask with.
    """
    from safetensors.numpy import save

    picked = choose(samples, predictor.modalities, count)
    if not picked:
        raise ExportError(f"no test row has any of {predictor.modalities}; there is nothing to ask.")
    contents = {m: [row["contents"][m] for row in picked] for m in predictor.modalities}
    golden = ask(predictor, [row["sample"].id for row in picked], contents, generation)
    rows = []
    for number, row in enumerate(picked):
        said = {m: _store(folder, number, row["sample"], m, row["contents"][m]) for m in predictor.modalities}
        caption = golden.captions[number] if golden.captions else None
        rows.append({"id": row["sample"].id, "contents": said, "caption": caption})
    write_bytes(folder / FILES[1], save(golden.expected))
    write_json(folder / FILES[0], rows)
    return golden


def read_golden(folder: Path) -> Golden:
    """Read the folder that `write_golden` left; an `ExportError` names what is missing or broken."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = folder / FILES[0]
    try:
        rows = read_json(path)
        contents: Contents = {name: [] for name in rows[0]["contents"]}
        for row in rows:
            for name, said in row["contents"].items():
                path = inside(folder, said) if said is not None and name in MEDIA else folder / FILES[0]
                contents[name].append(
                    path.read_bytes() if name in MEDIA and said is not None else _utf8(said)
                )
        captions = [row["caption"] for row in rows if row["caption"] is not None]
        path = folder / FILES[1]
        expected: dict[str, FloatArray] = load(path.read_bytes())
    except (DataError, OSError, TypeError, KeyError, IndexError, SafetensorError) as error:
        raise ExportError(f"golden queries: {path} cannot be read ({error!r}). {RESTORE}") from error
    if any(len(array) != len(rows) for array in expected.values()) or len(captions) not in (0, len(rows)):
        raise ExportError(f"golden queries: {folder} has {len(rows)} rows for other answers. {RESTORE}")
    return Golden([str(row["id"]) for row in rows], contents, expected, captions)


def ask(
    predictor: Predictor, ids: list[str], contents: Contents, generation: Mapping[str, Any] | None
) -> Golden:
    """What `predictor` says of raw bytes; names and shapes as in `golden.safetensors`.

    Raises
    ------
    ExportError
        A content cannot be decoded.
    """
    found: dict[str, FloatArray] = {}
    features: dict[str, FloatArray] = {}
    present_NM = np.zeros((len(ids), len(predictor.modalities)), np.float32)
    for column, name in enumerate(predictor.modalities):
        rows = [row for row, content in enumerate(contents[name]) if content is not None]
        inputs = _read(predictor, name, ids, contents[name], rows)
        embedding, features[name] = (
            _spread(some[: len(rows)], rows, len(ids)) for some in predictor.encode(name, inputs)
        )
        if predictor.embedding_size:
            found[f"{name}_embedding"] = embedding
        present_NM[rows, column] = 1
    if predictor.outputs:
        found |= predictor.answer(features, present_NM)
    written: list[str] = []
    if predictor.generates:
        assert generation is not None
        there = present_NM[:, predictor.modalities.index(DESCRIBED)] > 0
        said = iter(captions(predictor, features[DESCRIBED][there], generation))
        written = [next(said) if is_there else "" for is_there in there]
    return Golden(ids, contents, found, written)


def difference(expected: npt.NDArray[Any], found: npt.NDArray[Any] | None) -> float:
    """The largest absolute difference, over the largest expected magnitude where that is above 1.

    A missing array, another shape or a value that is not finite is infinitely far.
    """
    if found is None or expected.shape != found.shape:
        return float("inf")
    wide = expected.astype(np.float64)
    worst = float(np.abs(found.astype(np.float64) - wide).max(initial=0.0))
    return worst / max(1.0, float(np.abs(wide).max(initial=0.0))) if np.isfinite(worst) else float("inf")


def differences(
    golden: Golden, arrays: Mapping[str, FloatArray], captions: Sequence[str]
) -> dict[str, float]:
    """`difference` of answers to a golden query's, by output; another caption is infinitely far."""
    found = {name: difference(want, arrays.get(name)) for name, want in golden.expected.items()}
    if golden.captions:
        found["caption"] = 0.0 if list(captions) == golden.captions else float("inf")
    return found


def ask_export(export: Path, golden: Golden, *, threads: int) -> float:
    """The largest of `differences` of the export in the folder itself, in this process.

    It is the same on every machine of a kind, whatever is served.
    """
    from polyweft.export.onnx import OnnxPredictor

    predictor = OnnxPredictor.load(export, threads=threads)
    found = ask(predictor, golden.ids, golden.contents, predictor.spec["generation"])
    return max(differences(golden, found.expected, found.captions).values())


def _content(sample: Sample, modality: str, *, chinese: bool) -> bytes | None:
    if modality in MEDIA:
        return sample.contents(modality)
    texts = [(caption["text"] or "", caption["language"]) for caption in sample.captions]
    wanted = [text for text, language in texts if (language == "zh") == chinese]
    return next((text.encode("utf-8") for text in wanted or [text for text, _ in texts]), None)


def _store(folder: Path, number: int, sample: Sample, modality: str, content: bytes | None) -> str | None:
    """How golden.json tells of a content: a text as it is, anything else by its file's name."""
    if content is None:
        return None
    if modality not in MEDIA:
        return content.decode("utf-8")
    name = f"{modality}-{number:03d}.{sample.extensions[modality]}"
    write_bytes(folder / name, content)
    return name


def _utf8(text: str | None) -> bytes | None:
    return None if text is None else text.encode("utf-8")


def _read(
    predictor: Predictor, modality: str, ids: list[str], contents: list[bytes | None], rows: list[int]
) -> npt.NDArray[Any]:
    """The model's input; one row of zeros where there are none, by which the answers' shapes are known."""
    reader = predictor.readers[modality]
    if not rows:
        return np.zeros((1, *(2 if size < 0 else size for size in reader.shape)), reader.dtype)
    try:
        return reader.read([contents[row] or b"" for row in rows])
    except ValueError as error:
        asked = ", ".join(ids[row] for row in rows)
        raise ExportError(
            f"a golden query's {modality} ({asked}): {error}. `prepare` should have left it out; run it "
            "again."
        ) from error


def _spread(some: FloatArray, rows: list[int], count: int) -> FloatArray:
    full = np.zeros((count, *some.shape[1:]), np.float32)
    full[rows] = some
    return full
