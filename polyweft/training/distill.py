"""Distillation: a larger trained model's answers as a further target (`train.distill`)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from polyweft.errors import ConfigError
from polyweft.losses.distillation import distil_logits, distil_similarities
from polyweft.losses.gather import Rows
from polyweft.losses.targets import Targets
from polyweft.models.build import load_trained
from polyweft.models.family import Family, ModelParams
from polyweft.training.params import DistillParams
from polyweft.workspace import workspace

MARK = "teacher."


class DistillationTeacher:
    """A trained model of the same inputs; what both it and the student give is compared."""

    def __init__(self, params: DistillParams, module: Family) -> None:
        self.params, self.module = params, module.eval().requires_grad_(False)

    @classmethod
    def of(
        cls, params: DistillParams | None, student: ModelParams, device: torch.device
    ) -> DistillationTeacher | None:
        """Load `params.teacher`; None without a section.

        Raises
        ------
        ConfigError
            The teacher reads its inputs in another way than the student.
        DataError
            It cannot be loaded.
        """
        if params is None:
            return None
        teacher = load_trained(workspace() / params.teacher, threads=torch.get_num_threads())
        if teacher.params.reader_specs() != student.reader_specs():
            raise ConfigError(
                f"train.distill.teacher {params.teacher} reads its inputs in another way than this model: "
                f"{teacher.params.reader_specs()}, not {student.reader_specs()}. Both need the same "
                "modalities, sizes and normalisation."
            )
        return cls(params, teacher.module.to(device))

    def outputs(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """The teacher's outputs, each under its name with `teacher.` before it."""
        with torch.no_grad():
            return {f"{MARK}{name}": value for name, value in self.module(inputs, present_BM).items()}

    def losses(self, outputs: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`distillation`: over each two modalities' similarities, and the classes' logits."""
        parts: list[Tensor] = []
        if f"{MARK}scale" in outputs and "scale" in outputs:
            for pair in itertools.combinations(targets.modalities, 2):
                mine, its = (
                    tuple(
                        Rows.gather(outputs[f"{mark}{name}_embedding"], targets.keys[name], targets.has(name))
                        for name in pair
                    )
                    for mark in ("", MARK)
                )
                scales = outputs["scale"][0], outputs[f"{MARK}scale"][0]
                parts.append(distil_similarities((mine[0], mine[1]), (its[0], its[1]), *scales))
        if f"{MARK}head.single_label" in outputs and "head.single_label" in outputs:
            student, teacher = outputs["head.single_label"], outputs[f"{MARK}head.single_label"]
            there_B = targets.present_BM.any(dim=1)
            parts.append(distil_logits(student, teacher, there_B, temperature=self.params.temperature))
        if not parts:
            raise ConfigError(
                "train.distill: teacher and student share neither a joint space nor classes; there is "
                "nothing to learn. Choose a teacher of a kin family."
            )
        return {"distillation": self.params.weight * torch.stack(parts).sum()}
