"""The manifest: one row a sample, every modality optional; and the quarantine beside it.

Later stages pass manifests on, never media: a media column holds a key into `data/ingest`'s media store
(see `polyweft.data.media`), named by the content's SHA-256, so equal media have equal keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from polyweft.modalities import MEDIA

CAPTION = pa.struct([pa.field("text", pa.string(), nullable=False), pa.field("language", pa.string())])
"""One caption and its ISO 639-1 language (`en`, `zh`), null where unknown."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in MEDIA),  # keys into the media store
        pa.field("captions", pa.list_(CAPTION), nullable=False),
        pa.field("label", pa.string()),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("target", pa.float64()),
        pa.field("difficulty", pa.float64()),
        pa.field("group", pa.string()),
        pa.field("split", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("content_hash", pa.string(), nullable=False),
        pa.field("masked", pa.list_(pa.string()), nullable=False),
    ]
)
"""`label`: one of several classes that exclude each other. `labels`: those of several that a row bears,
empty where none are known. `target`: a number to regress. `difficulty`: where the row stands in a curriculum,
easy ones low. `group`: rows that must share a split (null: alone). `source`: the name of the source and the
row's place in it. `content_hash`: SHA-256 over media keys and captions.
`masked`: modalities that were named by the source but are broken, and were kept as absent."""

SPLITS = ("train", "validation", "test")

QUARANTINE = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("check", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""`check`: a snake_case name such as `image_broken`; `reason`: a sentence for a person."""


def content_hash(row: dict[str, Any]) -> str:
    """SHA-256 (hex) over a row's media keys and captions, independent of its id, label and place."""
    digest = hashlib.sha256()
    for name in MEDIA:
        digest.update(f"{name}={row.get(name) or ''}\n".encode())
    for caption in row["captions"]:
        digest.update(f"caption={caption['text']}\n".encode())
    return digest.hexdigest()


def manifest(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Build a manifest table from row dictionaries; absent keys become null, `content_hash` is filled in."""
    filled = [
        {
            **row,
            "labels": row.get("labels") or [],
            "content_hash": content_hash(row),
            "masked": row.get("masked") or [],
        }
        for row in rows
    ]
    return pa.Table.from_pylist(filled, schema=SCHEMA)


def quarantine(rows: Sequence[dict[str, str]]) -> pa.Table:
    """Build a quarantine table from rows of `id`, `stage`, `check` and `reason`, ordered by id and check."""
    return pa.Table.from_pylist(sorted(rows, key=lambda r: (r["id"], r["check"])), schema=QUARANTINE)
