"""An epoch shows every row once, whatever the batch, the processes or the order; what is absent stays so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as np_arrays

from polyweft.data.batches import (
    Arrays,
    batch_bounds,
    choose_contents,
    drop_modalities,
    epoch_order,
    share_of,
    take,
    to_arrays,
)
from polyweft.errors import DataError
from polyweft.modalities import MODALITIES
from polyweft.training.feed import Feed
from tests import small


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Arrays:
    prepared = small.prepare(tmp_path_factory.mktemp("batches"))
    _, context = small.built(prepared)
    return small.arrays(prepared, context)


@given(rows=st.integers(1, 500), batch=st.integers(1, 100), world=st.integers(1, 5), epoch=st.integers(0, 9))
def test_no_row_is_repeated_or_dropped_in_an_epoch(rows: int, batch: int, world: int, epoch: int) -> None:
    order = epoch_order(rows, seed=3, epoch=epoch)
    seen: list[int] = []
    for first, last in batch_bounds(rows, batch):
        for rank in range(world):
            mine, real = share_of(order[first:last], rank, world)
            seen += mine[real].tolist()
    assert sorted(seen) == list(range(rows))


@given(rows=st.integers(1, 500), batch=st.integers(1, 100), world=st.integers(1, 5))
def test_batches_are_alike_and_processes_equal(rows: int, batch: int, world: int) -> None:
    sizes = [last - first for first, last in batch_bounds(rows, batch)]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    shares = {len(share_of(np.arange(sizes[0]), rank, world)[0]) for rank in range(world)}
    assert len(shares) == 1


@given(rows=st.integers(2, 200), epoch=st.integers(0, 12))
def test_a_curriculum_shows_every_row_and_begins_with_the_easy_ones(rows: int, epoch: int) -> None:
    difficulty = np.random.default_rng(rows).permutation(rows).astype(np.float32)
    order = epoch_order(rows, seed=1, epoch=epoch, difficulty_N=difficulty, curriculum_epochs=6)
    assert sorted(order) == list(range(rows))
    if epoch == 0:
        assert (np.diff(difficulty[order]) > 0).all()
    if epoch >= 6:
        assert (order == epoch_order(rows, seed=1, epoch=epoch)).all()


@given(
    present=np_arrays(np.float32, (6, 3), elements=st.sampled_from([0.0, 1.0])),
    draws=np_arrays(np.float32, (6, 3), elements=st.floats(0, 0.9375, width=32)),
    probability=st.floats(0, 0.99),
)
def test_modality_dropout_adds_nothing_and_never_takes_all_that_the_head_sees(
    present: np.ndarray, draws: np.ndarray, probability: float
) -> None:
    for seen in ([True, True, True], [True, False, True], [False, True, False]):
        kept = drop_modalities(present, draws, probability, seen_M=np.array(seen))
        assert (kept <= present).all()
        assert (kept[:, seen].any(axis=1) == present[:, seen].any(axis=1)).all()


def test_a_row_that_fills_a_share_up_has_no_modality_and_no_target(split: Arrays) -> None:
    rows, real = share_of(np.arange(5), 1, 2)
    batch = take(split, rows, choose_contents(split, seed=0, epoch=0), real_B=real)
    assert real.tolist() == [True, True, False]
    assert batch.present_BM[2].tolist() == [0.0, 0.0]
    assert batch.class_B[2] == -1
    assert np.isnan(batch.labels_BK[2]).all()
    assert np.isnan(batch.value_B[2])
    assert len({int(key) for key in batch.keys["image"]}) == 3


def test_absent_contents_are_marked_and_no_ones_positive(split: Arrays) -> None:
    batch = take(split, np.arange(len(split)), choose_contents(split, seed=0, epoch=0))
    without_image = batch.present_BM[:, 0] == 0
    assert without_image.sum() == 24 // 5
    assert (batch.raw["image"][without_image] == 0).all()
    keys = batch.keys["image"]
    assert len(np.unique(keys[without_image])) == without_image.sum()
    assert not np.isin(keys[without_image], keys[~without_image]).any()


def test_equal_captions_share_a_key_and_positives_may_be_a_class(split: Arrays) -> None:
    chosen = choose_contents(split, seed=0, epoch=0)
    batch = take(split, np.arange(len(split)), chosen)
    texts = [tuple(row) for row in batch.raw["text"]]
    there = batch.present_BM[:, 1] > 0
    for one in np.flatnonzero(there):
        for other in np.flatnonzero(there):
            assert (batch.keys["text"][one] == batch.keys["text"][other]) == (texts[one] == texts[other])
    labelled = take(split, np.arange(len(split)), chosen, positives="label")
    assert set(labelled.keys["text"][there]) == {0, 1}


def test_content_that_cannot_be_read_names_its_sample_and_the_way_out(tmp_path: Path) -> None:
    prepared = small.prepare(tmp_path)
    _, context = small.built(prepared)
    broken = small.sample(0)
    broken.media["image"] = broken.media["image"][:40]
    read: list[str] = []
    with pytest.raises(DataError, match=r"sample 'row-0', image: .*dvc repro validate"):
        to_arrays([broken], context.readers, [], read.append)
    assert read == ["row-0"]


@pytest.mark.parametrize("name", MODALITIES)
def test_a_split_without_a_modality_is_fed_in_the_form_of_one_that_has_it(tmp_path: Path, name: str) -> None:
    encoders = {
        **{"image": small.IMAGE, "text": small.TEXT_TOWER, "audio": small.AUDIO},
        **{"video": small.VIDEO, "graph": small.GRAPH},
    }
    section = {**small.DUAL_TOWER, "family": "trimodal", "encoders": encoders}
    _, context = small.built(small.prepare(tmp_path), section)
    fed = {}
    for without in ((), (name,)):
        rows = [small.sample(number, without=without) for number in range(3)]
        arrays = to_arrays(rows, context.readers, small.LABELS)
        batch = take(arrays, np.arange(3), choose_contents(arrays, seed=0, epoch=None))
        fed[without] = Feed(context.readers, torch.device("cpu")).inputs(batch)
    column, there, absent = list(context.readers).index(name), fed[()][name], fed[name,][name]
    assert batch.present_BM.sum(axis=0).tolist() == [0.0 if m == column else 3.0 for m in range(5)]
    assert (absent.dtype, len(absent)) == (there.dtype, 3)
    assert absent.isfinite().all()
    for axis, size in enumerate(context.readers[name].shape, start=1):
        assert absent.shape[axis] == there.shape[axis] or size < 0
