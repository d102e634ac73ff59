"""The built-in data is the same bytes for a seed, and its faults are what the truth says."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from polyweft.data.audio import AudioDecodeError, decode_audio
from polyweft.data.decode import STATISTICS, ImageSpec, MediaDecodeError, decode_image_uint8
from polyweft.data.graph import parse_graph
from polyweft.data.scene_faults import FAULTS, SceneRow, plan, read, truth
from polyweft.data.scene_places import PLACES
from polyweft.data.scenes import COLOURS, RELATIONS, SHAPES, ScenesParams, sample_scenes
from polyweft.data.video import VideoSpec, decode_video, probe_video

SEED = 7
PARAMS = ScenesParams(
    samples=120,
    swapped_captions=0.1,
    broken_images=0.05,
    broken_audio=0.05,
    missing_files=0.05,
    exact_duplicates=0.05,
    near_duplicates=0.05,
    leaks=0.05,
)
FULL = ScenesParams(samples=40, media=["image", "audio", "video", "graph"], tasks=True)
SPEC = ImageSpec(64, "squash", *STATISTICS["half"], [0, 0, 0], 10**6)

DIGEST = """
import hashlib
from polyweft.data.scene_faults import read
from polyweft.data.scenes import ScenesParams
digest = hashlib.sha256()
for row in read(ScenesParams(samples=24, media=["image", "audio", "video", "graph"], tasks=True), 3):
    digest.update(repr(row).encode())
print(digest.hexdigest())
"""


@pytest.fixture(scope="module")
def rows() -> dict[str, SceneRow]:
    return {row.id: row for row in read(PARAMS, SEED)}


@pytest.fixture(scope="module")
def faults() -> dict[str, dict[str, str]]:
    return {entry["id"]: entry for entry in truth(PARAMS, SEED)}


def difference(one: bytes, two: bytes) -> float:
    return float(
        np.abs(
            decode_image_uint8(one, SPEC).astype(float) - decode_image_uint8(two, SPEC).astype(float)
        ).mean()
    )


def test_a_seed_gives_the_same_bytes_in_every_process() -> None:
    digests = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(done.stdout)
    here = hashlib.sha256()
    for row in read(FULL.model_copy(update={"samples": 24}), 3):
        here.update(repr(row).encode())
    assert digests == {here.hexdigest() + "\n"}


def test_another_seed_gives_other_rows() -> None:
    one, two = (next(iter(read(ScenesParams(samples=16), seed))) for seed in (1, 2))
    assert (one.image, one.captions) != (two.image, two.captions)


def test_every_fault_is_there_as_often_as_asked(faults: dict[str, dict[str, str]]) -> None:
    counts = Counter(entry["fault"] for entry in faults.values())
    assert counts == dict.fromkeys(FAULTS, 6) | {"swapped_captions": 12}


def test_faults_stand_on_rows_of_their_own(faults: dict[str, dict[str, str]]) -> None:
    copies = ("exact_duplicate", "near_duplicate", "leak")
    originals = [entry["detail"] for entry in faults.values() if entry["fault"] in copies]
    assert len(set(originals)) == len(originals)
    assert not set(originals) & set(faults)


def test_copies_are_what_the_truth_says(rows: dict[str, SceneRow], faults: dict[str, dict[str, str]]) -> None:
    for entry in faults.values():
        row, other = rows[entry["id"]], rows.get(entry["detail"])
        if entry["fault"] == "exact_duplicate":
            assert other
            assert (row.image, row.audio, row.captions) == (other.image, other.audio, other.captions)
            assert row.split == other.split
        if entry["fault"] == "near_duplicate":
            assert other
            assert row.image
            assert other.image
            assert row.image != other.image
            assert difference(row.image, other.image) < 16
            assert (row.label, row.split) == (other.label, other.split)
        if entry["fault"] == "leak":
            assert other
            assert row.image
            assert other.image
            assert difference(row.image, other.image) < 16
            assert other.split == "train"
            assert row.split != "train"


def test_rows_without_a_fault_have_pictures_of_their_own(
    rows: dict[str, SceneRow], faults: dict[str, dict[str, str]]
) -> None:
    clean = [row.image for name, row in rows.items() if name not in faults][:40]
    for index, one in enumerate(clean):
        for two in clean[index + 1 :]:
            assert one
            assert two
            assert difference(one, two) > 16


def test_broken_files_cannot_be_read(rows: dict[str, SceneRow], faults: dict[str, dict[str, str]]) -> None:
    for entry in faults.values():
        row = rows[entry["id"]]
        if entry["fault"] == "broken_image":
            assert row.image is not None
            with pytest.raises(MediaDecodeError):
                decode_image_uint8(row.image, SPEC)
        if entry["fault"] == "broken_audio":
            assert row.audio is not None
            with pytest.raises(AudioDecodeError):
                decode_audio(row.audio, None)
        if entry["fault"] == "missing_file":
            assert row.image is None
            assert row.image_name


def test_every_other_file_is_whole(rows: dict[str, SceneRow], faults: dict[str, dict[str, str]]) -> None:
    for name, row in rows.items():
        fault = faults.get(name, {}).get("fault")
        if fault not in ("broken_image", "missing_file"):
            assert row.image
            decode_image_uint8(row.image, SPEC)
        if fault != "broken_audio" and row.audio is not None:
            samples, rate = decode_audio(row.audio, None)
            assert (len(samples), rate) == (4000, 8000)


def test_swapped_captions_describe_the_partner() -> None:
    scenes = sample_scenes(PARAMS.samples, SEED)
    swapped = [part for part in plan(PARAMS, scenes, SEED) if part.fault == "swapped_captions"]
    rows = {row.id: row for row in read(PARAMS, SEED)}
    for part in swapped:
        mine, theirs = scenes[part.index].described(), scenes[part.speaks].described()
        assert sum(a != b for a, b in zip(mine, theirs, strict=True)) >= 2
        english = [text for text, language in rows[f"scene-{part.index:05d}"].captions if language == "en"]
        for text in english:
            assert scenes[part.speaks].first.colour in text
            assert scenes[part.speaks].second.shape in text


def test_captions_are_in_both_languages_and_seldom_name_the_place(rows: dict[str, SceneRow]) -> None:
    languages = Counter(language for row in rows.values() for _, language in row.captions)
    assert set(languages) == {"en", "zh"}
    assert min(languages.values()) > 90
    named = sum("，" in text for row in rows.values() for text, language in row.captions if language == "zh")
    assert 0.15 < named / languages["zh"] < 0.45
    assert any(len(row.captions) == 1 for row in rows.values())


def test_everything_that_can_be_drawn_is_drawn() -> None:
    scenes = sample_scenes(600, SEED)
    things = [thing for scene in scenes for thing in (scene.first, scene.second)]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {scene.relation for scene in scenes} == set(RELATIONS)
    assert {scene.place for scene in scenes} == set(PLACES)
    assert len({(scene.place, *scene.described()) for scene in scenes}) == 600


def test_clips_graphs_and_tasks_are_those_of_the_scene() -> None:
    scenes = {f"scene-{number:05d}": scene for number, scene in enumerate(sample_scenes(FULL.samples, SEED))}
    every = list(read(FULL, SEED))
    frames = VideoSpec(4, 32, "squash", [0.5] * 3, [0.5] * 3, 10**6, 100, 10.0)
    for row in every:
        scene = scenes[row.id]
        assert row.labels == sorted({scene.first.colour, scene.second.colour})
        assert row.target is not None
        if "video" in row.more:
            name, content = row.more["video"]
            pixels = decode_video(content, frames).astype(float)
            assert name == f"video/{row.id}.mp4"
            assert probe_video(content).frames == 8
            assert np.abs(pixels[0] - pixels[-1]).max() > 40  # things move ...
            assert np.median(np.abs(pixels[0] - pixels[-1])) < 8  # ... and the ground does not
        if "graph" in row.more:
            nodes = parse_graph(row.more["graph"][1]).nodes
            assert [node.name for node in nodes] == [scene.first.shape, scene.second.shape, "ground"]
            assert scene.place not in {word for node in nodes for word in node.attributes}
    lacking = [kind for row in every for kind in ("video", "graph") if kind not in row.more]
    assert 0 < len(lacking) < 20


def test_more_media_leave_the_others_as_they_are() -> None:
    plain = ScenesParams(samples=16)
    for one, two in zip(read(plain, 5), read(FULL.model_copy(update={"samples": 16}), 5), strict=True):
        assert (one.image, one.audio, one.captions, one.split) == (
            two.image,
            two.audio,
            two.captions,
            two.split,
        )
        assert (one.more, one.labels, one.target) == ({}, [], None)


def test_without_sound_nothing_about_sound_is_broken() -> None:
    silent = ScenesParams(samples=40, media=["image"], broken_audio=0.2)
    assert {row.audio for row in read(silent, SEED)} == {None}
    assert "broken_audio" not in {entry["fault"] for entry in truth(silent, SEED)}


def test_the_size_is_as_asked() -> None:
    row = next(iter(read(ScenesParams(samples=16, image_size=96), 0)))
    assert row.image
    assert Image.open(io.BytesIO(row.image)).size == (96, 96)


@pytest.mark.parametrize(
    "wrong",
    [{"leaks": 0.2, "swapped_captions": 0.5, "near_duplicates": 0.2}, {"samples": 1}, {"media": ["audio"]}],
)
def test_impossible_shares_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ScenesParams.model_validate(wrong)
