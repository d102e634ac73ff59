"""From a reader's rows to manifest rows: find and probe the media, store them, set the broken ones aside."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from polyweft.data import audio, decode, graph, video
from polyweft.data.media import MediaWriter
from polyweft.data.sources.repair import Finder
from polyweft.data.sources.rows import IngestParams, Medium, SourceRow
from polyweft.errors import DataError, MediaError
from polyweft.modalities import MEDIA, MODALITIES
from polyweft.progress import track

_ROWS_AT_ONCE = 64  # rows whose media are held in memory
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_IMAGE_EXTENSIONS = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
}
_AUDIO_EXTENSIONS = {b"RIFF": "wav", b"fLaC": "flac", b"OggS": "ogg"}
_VIDEO_EXTENSIONS = {"matroska": "mkv", "avi": "avi", "mpeg": "mpg"}
_FAULTS = (decode.MediaDecodeError, audio.AudioDecodeError, video.VideoDecodeError, graph.GraphDecodeError)


@dataclass
class Collected:
    """What `collect` leaves: rows for the manifest, for the quarantine, and for the list of repairs."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    quarantined: list[dict[str, str]] = field(default_factory=list)
    repairs: list[dict[str, str]] = field(default_factory=list)
    media: dict[str, int] = field(default_factory=dict)
    """Size in bytes of every stored medium by its key."""


@dataclass
class _Opened:
    """A row with its media read: content and extension, or the check that failed and why."""

    row: SourceRow
    media: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    faults: dict[str, tuple[str, str]] = field(default_factory=dict)
    repairs: list[dict[str, str]] = field(default_factory=list)


class _MediumError(MediaError):
    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


def collect(
    source: Iterable[SourceRow],
    params: IngestParams,
    store: MediaWriter,
    *,
    others: Sequence[Path],
    threads: int,
) -> Collected:
    """Read every row's media into `store`, in the source's order, and sort the rows into `Collected`.

    Parameters
    ----------
    others
        `params.repair_roots`, resolved: folders in which lost files are looked for too.
    threads
        How many rows are opened at once.

    Raises
    ------
    DataError
        A path leaves the source folder, ids of the source are not unique, or no row is left.
    """
    opener = _Opener(params, others)
    out, ids, count = Collected(), _Ids(), 0
    with ThreadPoolExecutor(threads) as pool:
        for rows in _batches(track(source, "reading rows"), _ROWS_AT_ONCE):
            for opened in pool.map(opener.open, rows):
                count += 1
                _sort(opened, ids.next(opened), params, store, out)
    ids.refuse_duplicates()
    if not count:
        raise DataError(f"the {params.source} source has no rows. Put data there, or correct ingest.path.")
    if not out.rows:
        worst = out.quarantined[0]
        raise DataError(
            f"none of the {count} rows can be used; the first, {worst['id']!r}: {worst['reason']}. Correct "
            "ingest.path, ingest.media_root or ingest.columns."
        )
    return out


def language_of(text: str, setting: str) -> str | None:
    """A caption's language by `params.caption_languages`; None for text without a letter."""
    if setting != "auto":
        return None if setting == "none" else setting
    if _HAN.search(text):
        return "zh"
    return "en" if any(character.isalpha() for character in text) else None


class _Opener:
    def __init__(self, params: IngestParams, others: Sequence[Path]) -> None:
        self._limit, self._others = int(params.max_media_mib * 2**20), others
        self._finders: dict[Path, Finder] = {}

    def open(self, row: SourceRow) -> _Opened:
        opened = _Opened(row)
        for kind, medium in row.media.items():
            try:
                content, path = self._content(kind, medium, opened)
                opened.media[kind] = content, _probe(kind, content, path)
            except _MediumError as fault:
                opened.faults[kind] = fault.check, f"{medium.name!r}: {fault}"
        return opened

    def _content(self, kind: str, medium: Medium, opened: _Opened) -> tuple[bytes, str]:
        if medium.fault:
            raise _MediumError(f"{kind}_broken", medium.fault)
        if medium.content is not None:
            return medium.content, medium.name
        if medium.root is None:
            raise _MediumError(f"{kind}_missing", "the source names this file and does not hold it")
        finder = self._finders.setdefault(medium.root, Finder(medium.root, self._others))
        found = finder.find(kind, medium.name, opened.row.place)
        if found is None:
            raise _MediumError(
                f"{kind}_missing", "there is no such file, nor exactly one that could be meant"
            )
        if found.rule:
            repair = {"column": kind, "given": medium.name, "used": found.used, "rule": found.rule}
            opened.repairs.append(repair)
        try:
            size = found.path.stat().st_size
            if size > self._limit:
                raise _MediumError(
                    f"{kind}_broken", f"{size} bytes are over ingest.max_media_mib ({self._limit} bytes)"
                )
            return found.path.read_bytes(), found.used
        except OSError as error:
            raise _MediumError(f"{kind}_broken", f"cannot be read ({error.strerror})") from None


def _probe(kind: str, content: bytes, name: str) -> str:
    """The extension that the content goes by; content that is not of its kind is a `_MediumError`."""
    suffix = PurePosixPath(name).suffix.lower().lstrip(".")
    known = suffix if suffix in MODALITIES[kind].extensions else None
    try:
        if not content:
            raise _MediumError(f"{kind}_broken", f"{kind} is empty (0 bytes)")
        if kind == "image":
            return _IMAGE_EXTENSIONS[decode.probe_image(content)[0]]
        if kind == "audio":
            if not audio.probe_audio(content)[0]:
                raise audio.AudioDecodeError("audio holds no samples")
            return _AUDIO_EXTENSIONS.get(content[:4], known or "mp3")
        if kind == "video":
            form = video.probe_video(content).format
            return known or _VIDEO_EXTENSIONS.get(form, "mp4")
        if kind == "graph":
            graph.parse_graph(content)
    except _FAULTS as error:
        raise _MediumError(f"{kind}_broken", str(error)) from None
    return known or min(MODALITIES[kind].extensions)


class _Ids:
    """Ids as the source gives them, or made from the first medium's path (#2, #3 where it comes again)."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self._twice: dict[str, list[str]] = {}

    def next(self, opened: _Opened) -> str:
        row = opened.row
        if row.id is None:
            base = identity = _made_id(opened)
            for number in itertools.count(2):
                if identity not in self._places:
                    break
                identity = f"{base}#{number}"
        else:
            identity = row.id
            if identity in self._places:
                self._twice.setdefault(identity, [self._places[identity]]).append(row.place)
        self._places[identity] = row.place
        return identity

    def refuse_duplicates(self) -> None:
        if self._twice:
            shown = "; ".join(
                f"{i!r} at {', '.join(places[:4])}" for i, places in list(self._twice.items())[:5]
            )
            raise DataError(
                f"{len(self._twice)} ids come more than once: {shown}. Give every row an id of its own, or "
                "set ingest.columns.id to null to have ids made from the paths."
            )


def _made_id(opened: _Opened) -> str:
    for kind in MEDIA:
        medium = opened.row.media.get(kind)
        path = PurePosixPath(medium.name) if medium is not None and medium.root is not None else None
        if path is not None and path.name:
            return str(path.with_suffix(""))
    row, digest = opened.row, hashlib.sha256()
    for kind, (content, _) in sorted(opened.media.items()):
        digest.update(f"{kind}={hashlib.sha256(content).hexdigest()}\n".encode())
    digest.update(repr((row.captions, row.label, row.target, row.group, row.split)).encode())
    return f"row-{digest.hexdigest()[:16]}"


def _sort(opened: _Opened, identity: str, params: IngestParams, store: MediaWriter, out: Collected) -> None:
    row, faults = opened.row, opened.faults
    out.repairs.extend({"id": identity, **repair} for repair in opened.repairs)
    if faults and params.broken_media == "quarantine":
        reason = "; ".join(reason for _, reason in faults.values())
        out.quarantined.append(_set_aside(identity, next(iter(faults.values()))[0], reason))
        return
    if not opened.media and not any(text.strip() for text, _ in row.captions):
        reason = "; ".join(["no medium and no text is left", *(reason for _, reason in faults.values())])
        out.quarantined.append(_set_aside(identity, "row_empty", reason))
        return
    keys = {kind: store.add(kind, content, suffix) for kind, (content, suffix) in opened.media.items()}
    out.media.update({keys[kind]: len(content) for kind, (content, _) in opened.media.items()})
    out.rows.append(
        {
            "id": identity,
            **keys,
            "captions": [
                {"text": text, "language": given or language_of(text, params.caption_languages)}
                for text, given in row.captions
            ],
            "label": row.label,
            "labels": row.labels,
            "target": row.target,
            "difficulty": row.difficulty,
            "group": row.group,
            "split": row.split,
            "source": f"{params.source}:{row.place}",
            "masked": sorted(faults),
        }
    )


def _set_aside(identity: str, check: str, reason: str) -> dict[str, str]:
    return {"id": identity, "stage": "ingest", "check": check, "reason": reason}


def _batches(source: Iterable[SourceRow], size: int) -> Iterator[list[SourceRow]]:
    rows = iter(source)
    while batch := list(itertools.islice(rows, size)):
        yield batch
