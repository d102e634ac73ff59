"""A folder per modality with a folder per class: `images/cat/7.png`, `audio/cat/7.wav`, `text/cat/7.txt`.

Files are joined by class and stem, never by position: a stem that one modality lacks is kept without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from polyweft.data.sources.metadata import source_folder
from polyweft.data.sources.rows import EXTENSIONS, IngestParams, Medium, SourceRow
from polyweft.errors import DataError
from polyweft.modalities import MODALITIES

_FOLDERS = {kind: (kind, f"{kind}s") for kind in MODALITIES} | {
    "image": ("images", "image"),
    "graph": ("graphs", "graph"),
    "text": ("text", "texts", "captions"),
}


def read_class_folders(params: IngestParams, path: Path) -> Iterator[SourceRow]:
    """Rows in the order of class and stem; in a text file, each line that is not blank is a caption."""
    root = source_folder(path)
    joined: dict[tuple[str, str], dict[str, Path]] = {}
    for kind, names in _FOLDERS.items():
        folders = [root / name for name in names if (root / name).is_dir()]
        if len(folders) > 1:
            raise DataError(
                f"{root} has both {folders[0].name} and {folders[1].name}: keep one {kind} folder."
            )
        for file in _files(folders[0], kind) if folders else ():
            files = joined.setdefault((file.parent.name, file.stem), {})
            if kind in files:
                raise DataError(
                    f"{file.relative_to(root)} and {files[kind].relative_to(root)} have one class and stem; "
                    "which belongs to the other modalities cannot be told. Rename or remove one."
                )
            files[kind] = file
    if not joined:
        expected = ", ".join(f"{names[0]}/<class>/" for names in _FOLDERS.values())
        raise DataError(f"{root} holds no media in any of {expected}. See ingest.source: class_folders.")
    limit = int(params.max_media_mib * 2**20)
    for (label, stem), files in sorted(joined.items()):
        yield _row(root, label, stem, files, limit)


def _files(folder: Path, kind: str) -> Iterator[Path]:
    wanted = EXTENSIONS.get(kind, frozenset({"txt"}))
    for file in sorted(folder.glob("*/*")):
        if file.suffix.lower().lstrip(".") in wanted and file.is_file():
            yield file


def _row(root: Path, label: str, stem: str, files: dict[str, Path], limit: int) -> SourceRow:
    media = {
        kind: Medium(file.relative_to(root).as_posix(), root=root)
        for kind, file in files.items()
        if kind != "text"
    }
    captions = _lines(files["text"], root, limit) if "text" in files else []
    return SourceRow(
        place=f"{label}/{stem}", id=f"{label}/{stem}", media=media, captions=captions, label=label
    )


def _lines(file: Path, root: Path, limit: int) -> list[tuple[str, str | None]]:
    name = file.relative_to(root).as_posix()
    if file.stat().st_size > limit:
        raise DataError(f"{name} is over ingest.max_media_mib; a caption file holds a caption a line.")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: invalid UTF-8 at byte {error.start}. Save the file as UTF-8.") from None
    return [(line.strip(), None) for line in text.splitlines() if line.strip()]
