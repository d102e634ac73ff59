"""A student that agrees with its teacher pays nothing; the teacher learns nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from polyweft.losses.distillation import distil_logits, distil_similarities
from polyweft.losses.gather import Rows

SCALE = torch.tensor(10.0)


def _rows(seed: int, size: int = 6, there: int = 5) -> Rows:
    x_BD = torch.randn(5, size, generator=torch.Generator().manual_seed(seed))
    leaf = functional.normalize(x_BD, dim=1).requires_grad_()
    return Rows.gather(leaf, torch.arange(5), torch.arange(5) < there)


def test_a_student_like_its_teacher_pays_nothing_and_another_pays() -> None:
    teacher = (_rows(0), _rows(1))
    assert distil_similarities(teacher, teacher, SCALE, SCALE).item() == pytest.approx(0.0, abs=1e-6)
    assert distil_similarities((_rows(2), _rows(3)), teacher, SCALE, SCALE) > 0.1
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    there = torch.ones(1, dtype=torch.bool)
    assert distil_logits(logits + 3.0, logits, there, temperature=2.0) == pytest.approx(0.0, abs=1e-6)
    assert distil_logits(-logits, logits, there, temperature=2.0) > 0.1


def test_the_teacher_may_be_wider_and_gets_no_gradient() -> None:
    student, teacher = (_rows(0, 4), _rows(1, 4)), (_rows(2, 16), _rows(3, 16))
    distil_similarities(student, teacher, SCALE, torch.tensor(20.0)).backward()
    assert student[0].x_BD.grad is not None
    assert student[0].x_BD.grad.abs().sum() > 0
    assert teacher[0].x_BD.grad is None


def test_rows_without_both_modalities_do_not_count() -> None:
    student, teacher = (_rows(0), _rows(1, there=3)), (_rows(2), _rows(3, there=3))
    whole = distil_similarities(student, teacher, SCALE, SCALE)
    cut = [
        tuple(Rows.gather(r.x_BD[:3], r.key_B[:3], r.there_B[:3]) for r in pair)
        for pair in (student, teacher)
    ]
    torch.testing.assert_close(whole, distil_similarities(cut[0], cut[1], SCALE, SCALE))


def test_logits_are_softened_as_hinton_says() -> None:
    logits, teacher = torch.tensor([[1.0, 0.0], [3.0, -1.0]]), torch.tensor([[0.0, 2.0], [9.0, 9.0]])
    soft = (teacher[:1] / 4).softmax(dim=1)
    expected = 16 * (soft * (soft.log() - (logits[:1] / 4).log_softmax(dim=1))).sum()
    ours = distil_logits(logits, teacher, torch.tensor([True, False]), temperature=4.0)
    torch.testing.assert_close(ours, expected)
