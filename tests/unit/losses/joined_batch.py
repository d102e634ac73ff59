"""Every loss on one joined batch, or on one process's part of it: `python -m ... RANK WORLD FOLDER`.

A process of several leaves the mean over the processes of each loss and of its gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.nn import functional

from polyweft.losses.contrastive import ContrastParams, contrast
from polyweft.losses.distillation import distil_logits, distil_similarities
from polyweft.losses.gather import Rows
from polyweft.losses.targets import Targets
from polyweft.losses.tasks import balance_by_uncertainty, task_loss
from tests.group import joined

ROWS = 8
MODALITIES = ["image", "text", "audio"]
INFONCE = ContrastParams(loss="infonce")
TRICKS = ContrastParams(loss="infonce", soft_targets=0.3, hard_negatives=0.5, within_weight=0.7)
SIGLIP = ContrastParams(loss="siglip", within_weight=0.4, chunk=3)
TASKS = {"single_label": 3, "binary": 1, "multi_label": 4, "regression": 1}


def outcome(rank: int, world: int) -> dict[str, Tensor]:
    """Loss and gradients of every case, by name, of this process's rows."""
    mine = slice(rank * ROWS // world, (rank + 1) * ROWS // world)
    cases: dict[str, Callable[[dict[str, Tensor], Targets], Tensor]] = {
        "infonce": lambda p, t: _contrast(p, t, INFONCE, 2),
        "tricks": lambda p, t: _contrast(p, t, TRICKS, 2),
        "siglip": lambda p, t: _contrast(p, t, SIGLIP, 2),
        "trimodal infonce": lambda p, t: _contrast(p, t, TRICKS, 3),
        "trimodal siglip": lambda p, t: _contrast(p, t, SIGLIP, 3),
        "tasks": _tasks,
        "distillation": _distillation,
    }
    out = {}
    for name, case in cases.items():
        parameters = _parameters()
        inputs = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(1))[mine]
        outputs = {key: inputs @ value for key, value in parameters.items() if value.ndim == 2}
        loss = case(parameters | outputs, _targets(mine))
        loss.backward()
        out[name] = loss.detach().reshape(1)
        out |= {f"{name} {key}": value.grad for key, value in parameters.items() if value.grad is not None}
    return out


def _parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = dict.fromkeys(MODALITIES, 5) | TASKS
    weights = {name: torch.randn(6, size, generator=generator) for name, size in sizes.items()}
    scalars = {"log_variance": torch.tensor([0.1, -0.2, 0.3, 0.4]), "scale": torch.tensor(7.0)}
    every = weights | scalars | {"bias": torch.tensor(-3.0)}
    return {name: value.requires_grad_() for name, value in every.items()}


def _targets(mine: slice) -> Targets:
    present = torch.ones(ROWS, 3)
    present[4, 0] = present[7, 1] = present[1, 2] = present[6, 2] = 0
    keys = {
        "image": torch.arange(ROWS),
        "text": torch.tensor([0, 1, 2, 0, 4, 5, 2, 7]),
        "audio": torch.tensor([0, 1, 2, 3, 4, 3, 6, 7]),
    }
    labels = torch.tensor([[1.0, 0.0, 1.0, 0.0]]).repeat(ROWS, 1)
    labels[2] = labels[5] = torch.nan
    value = torch.linspace(-3, 3, ROWS)
    value[1] = torch.nan
    return Targets(
        class_B=torch.tensor([0, 1, 2, -1, 1, 0, -1, 2])[mine],
        labels_BK=labels[mine],
        value_B=value[mine],
        keys={name: key[mine] for name, key in keys.items()},
        present_BM=present[mine],
        modalities=MODALITIES,
        ids_BT=torch.zeros(ROWS, 2, dtype=torch.int64)[mine],
    )


def _contrast(p: dict[str, Tensor], targets: Targets, params: ContrastParams, count: int) -> Tensor:
    modalities = MODALITIES[:count]
    outputs = {f"{name}_embedding": functional.normalize(p[name], dim=1) for name in modalities}
    rows = len(targets.class_B)
    outputs["scale"] = p["scale"].expand(rows)
    if params.loss == "siglip":
        outputs["bias"] = p["bias"].expand(rows)
    return torch.stack(list(contrast(outputs, targets, modalities, params).values())).sum()


def _tasks(p: dict[str, Tensor], targets: Targets) -> Tensor:
    losses = {
        task: task_loss(
            task,
            p[task],
            targets if task != "binary" else _two_classes(targets),
            smoothing=0.1,
            huber=1.0,
            class_weights_C=torch.tensor([1.0, 2.0, 0.5]) if task == "single_label" else None,
            label_weights_K=torch.tensor([1.0, 3.0, 1.0, 1.0]),
            mean=torch.tensor(0.5),
            deviation=torch.tensor(2.0),
        )
        for task in TASKS
    }
    variances = dict(zip(TASKS, p["log_variance"].unbind(), strict=True))
    return torch.stack(list(balance_by_uncertainty(losses, variances).values())).sum()


def _two_classes(targets: Targets) -> Targets:
    return Targets(**vars(targets) | {"class_B": targets.class_B.clamp(max=1)})


def _distillation(p: dict[str, Tensor], targets: Targets) -> Tensor:
    def rows(x_BD: Tensor, name: str) -> Rows:
        return Rows.gather(functional.normalize(x_BD, dim=1), targets.keys[name], targets.has(name))

    student = rows(p["image"], "image"), rows(p["text"], "text")
    teacher = rows(p["image"].detach().sin(), "image"), rows(p["text"].detach().cos(), "text")
    scores = p["single_label"]
    return distil_similarities(student, teacher, p["scale"], torch.tensor(9.0)) + distil_logits(
        scores, scores.detach().cos(), targets.class_B >= 0, temperature=2.0
    )


def main() -> None:
    """Join the group, compute, average over the processes, write."""
    from safetensors.torch import save_file

    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    with joined(folder / "port", rank, world):
        out = outcome(rank, world)
        for tensor in out.values():
            distributed.all_reduce(tensor)
            tensor /= world
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in out.items()}, folder / "out.safetensors")


if __name__ == "__main__":
    main()
