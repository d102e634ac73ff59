"""A student is drawn to its teacher's answers; a teacher that reads its inputs in another way is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyweft.data.batches import choose_contents, take
from polyweft.errors import ConfigError
from polyweft.models.build import save_trained
from polyweft.progress import Bar
from polyweft.training.distill import DistillationTeacher
from polyweft.training.distributed import ALONE
from polyweft.training.feed import Feed
from polyweft.training.learner import Surroundings
from polyweft.training.loop import fit
from polyweft.training.params import DistillParams
from tests import small

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.prepare(tmp_path_factory.mktemp("distill"))


@pytest.fixture
def teacher(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DistillParams:
    """A saved model, named from the workspace's root."""
    monkeypatch.setenv("POLYWEFT_WORKSPACE", str(tmp_path))
    torch.manual_seed(1)
    model, context = small.built(prepared)
    save_trained(tmp_path / "teacher", model, small.model_params(), context)
    for name in ("text.json", "tokenizer.json"):
        (tmp_path / "teacher" / name).write_bytes((prepared / name).read_bytes())
    return DistillParams(teacher="teacher", weight=2.0, temperature=2.0)


def _loss(prepared: Path, teacher: DistillParams, seed: int) -> float:
    torch.manual_seed(seed)
    model, context = small.built(prepared)
    arrays = small.arrays(prepared, context)
    batch = take(arrays, torch.arange(12).numpy(), choose_contents(arrays, seed=0, epoch=0))
    feed = Feed(context.readers, CPU)
    inputs, targets = feed.inputs(batch), feed.targets(batch)
    source = DistillationTeacher.of(teacher, small.model_params(), CPU)
    assert source is not None
    outputs = model.eval()(inputs, targets.present_BM) | source.outputs(inputs, targets.present_BM)
    return float(source.losses(outputs, targets)["distillation"])


def test_a_student_that_answers_as_its_teacher_has_nothing_to_learn(
    prepared: Path, teacher: DistillParams
) -> None:
    assert _loss(prepared, teacher, seed=1) == pytest.approx(0.0, abs=1e-5)
    assert _loss(prepared, teacher, seed=2) > 0.01


def test_training_draws_the_student_to_its_teacher_in_micro_batches_too(
    prepared: Path, teacher: DistillParams, tmp_path: Path
) -> None:
    curves = []
    for micro_batch in (None, 3):
        torch.manual_seed(5)
        model, context = small.built(prepared)
        rows = small.arrays(prepared, context)
        with Bar("test", shown=False) as bar:
            around = Surroundings(
                ALONE, tmp_path / str(micro_batch), lambda row, step: None, bar,
                teacher=DistillationTeacher.of(teacher, small.model_params(), CPU),
            )  # fmt: skip
            params = small.train_params(epochs=6, lr=1e-2, micro_batch=micro_batch, distill=teacher)
            result = fit(model, params, context.readers, rows, rows, around, seed=3)
        column = result.progress.names.index("distillation")
        curves.append([row[column] for row in result.curve])
    for curve in curves:
        assert sum(curve[-3:]) < 0.7 * sum(curve[:3])


def test_a_teacher_of_other_pictures_is_refused(teacher: DistillParams) -> None:
    larger = {**small.IMAGE, "size": 32}
    student = {**small.DUAL_TOWER, "encoders": {"image": larger, "text": small.TEXT_TOWER}}
    with pytest.raises(ConfigError, match=r"reads its inputs in another way .*same modalities"):
        DistillationTeacher.of(teacher, small.model_params(student), CPU)


def test_without_a_section_there_is_no_teacher() -> None:
    assert DistillationTeacher.of(None, small.model_params(), CPU) is None
