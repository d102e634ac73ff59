"""The built-in scenes as a source."""

from __future__ import annotations

from collections.abc import Iterator

from polyweft.data.scene_faults import read
from polyweft.data.sources.rows import IngestParams, Medium, SourceRow


def read_scenes(params: IngestParams, seed: int) -> Iterator[SourceRow]:
    """One row a scene; a file that the faults removed is a medium without content."""
    for scene in read(params.scenes, seed):
        media = {"image": Medium(scene.image_name, content=scene.image)}
        if scene.audio_name is not None:
            media["audio"] = Medium(scene.audio_name, content=scene.audio)
        media |= {kind: Medium(name, content=content) for kind, (name, content) in scene.more.items()}
        yield SourceRow(
            place=scene.id,
            id=scene.id,
            media=media,
            captions=[(text, language) for text, language in scene.captions],
            label=scene.label,
            labels=scene.labels,
            target=scene.target,
            group=scene.group,
            split=scene.split,
        )
