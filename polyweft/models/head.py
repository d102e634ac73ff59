"""The head: features of the modalities that are there to the answers of one or more tasks.

Tasks and what they give: `single_label` and `binary` probabilities of exclusive classes, `multi_label` a
probability a label, `regression` a value. An absent modality is a learnt vector, or is reconstructed from
those present. Shape suffixes: B rows, M modalities that the head sees, L positions, F feature size,
C classes, K labels, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.errors import ConfigError
from polyweft.losses.gather import mean_of_rows
from polyweft.losses.targets import Targets
from polyweft.losses.tasks import Task, balance_by_uncertainty, balanced_weights, task_loss
from polyweft.models.family import BuildContext
from polyweft.models.fusion import TOKEN_FUSIONS, FusionName, build_fusion, pooled
from polyweft.models.imputation import Imputer, fill

MAX_LABEL_WEIGHT = 100.0


class HeadParams(Section):
    """`model.head`: what it looks at, how it joins them, and which tasks it answers."""

    sees: list[str] = Field(min_length=1, description="modalities")
    fusion: FusionName
    hidden: int = Field(ge=8, le=8192, description="width of the layer before the answers")
    dropout: float = Field(ge=0.0, lt=1.0)
    missing: Literal["learned", "impute"] = Field(description="what stands in for an absent modality")
    tasks: dict[Task, float] = Field(min_length=1, description="weight of each task's loss")
    balance: Literal["fixed", "uncertainty"] = "fixed"
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: rare classes, or labels, weigh more"
    )
    huber: float | None = Field(
        default=1.0,
        gt=0.0,
        description="standard deviations up to which a regression's error is squared; null: all",
    )
    heads: int = Field(default=4, ge=1, le=64, description="of the fusions attention and mid")
    layers: int = Field(default=1, ge=1, le=12, description="of the fusions attention and mid")
    decisions: Literal["averaged", "weighted"] = Field(default="averaged", description="of the fusion late")
    impute_weight: float = Field(
        default=1.0, ge=0.0, le=100.0, description="weight of the reconstruction's loss"
    )

    @field_validator("tasks")
    @classmethod
    def _weights_and_one_class(cls, tasks: dict[Task, float]) -> dict[Task, float]:
        if any(weight < 0 for weight in tasks.values()):
            raise ValueError("a task's weight is 0 or more")
        if "single_label" in tasks and "binary" in tasks:
            raise ValueError("single_label and binary both answer with the class; keep one of them")
        # In one order: the outputs are laid out by it, and a saved configuration has its keys sorted.
        return {task: tasks[task] for task in get_args(Task) if task in tasks}


class Head(nn.Module):
    """See the module.

    Parameters
    ----------
    modalities
        What the model takes, in the order of `present`'s columns.
    classes, labels
        C and K.

    Attributes
    ----------
    sees
        The modalities it looks at, in that order.
    takes_tokens
        Whether its fusion attends to positions: towers should then give (B, L, F).
    """

    class_weights: Tensor
    label_weights: Tensor
    value_mean: Tensor
    value_deviation: Tensor

    def __init__(
        self, params: HeadParams, modalities: Sequence[str], feature_size: int, *, classes: int, labels: int
    ) -> None:
        super().__init__()
        self.params, self.feature_size = params, feature_size
        self.sees = [name for name in modalities if name in params.sees]
        self.columns = [list(modalities).index(name) for name in self.sees]
        self.takes_tokens = params.fusion in TOKEN_FUSIONS
        widths = {"single_label": classes, "binary": 1, "multi_label": labels, "regression": 1}
        self.tasks: dict[str, int] = {task: widths[task] for task in params.tasks}
        count, total = len(self.sees), sum(self.tasks.values())
        self.norms = nn.ModuleList(nn.LayerNorm(feature_size) for _ in self.sees)
        self.absent = nn.Parameter(torch.empty(count, feature_size).normal_(std=0.02))
        self.imputer = Imputer(count, feature_size) if params.missing == "impute" else None
        self.fusion = build_fusion(
            params.fusion, count, feature_size,
            heads=params.heads, layers=params.layers, dropout=params.dropout,
            decide=lambda: _network(feature_size, params, total),
            outputs=total, weighted=params.decisions == "weighted",
        )  # fmt: skip
        width = int(self.fusion.width)  # type: ignore[arg-type]
        self.decide = nn.Identity() if params.fusion == "late" else _network(width, params, total)
        uncertain = params.balance == "uncertainty"
        self.log_variance = nn.Parameter(torch.zeros(len(self.tasks))) if uncertain else None
        self.register_buffer("class_weights", torch.ones(max(classes, 2)))
        self.register_buffer("label_weights", torch.ones(labels))
        self.register_buffer("value_mean", torch.zeros(()))
        self.register_buffer("value_deviation", torch.ones(()))

    def prepare(self, class_N: Tensor, labels_NK: Tensor, value_N: Tensor) -> None:
        """Take class weights and the values' mean and standard deviation from the training split.

        As in `Targets`: -1 and NaN where a row has none. Call it once, before training.

        Raises
        ------
        ConfigError
            It is to answer `regression`, and no row has a value.
        """
        known_N = value_N[~value_N.isnan()].double()
        if "regression" in self.tasks and not len(known_N):
            raise ConfigError(
                f"model.head.tasks has regression, but none of the {len(value_N)} rows of train has a number "
                "to learn; it needs the column `target`. Take the task out, or bring its targets."
            )
        if len(known_N):
            self.value_mean.fill_(known_N.mean())
            deviation = known_N.std(correction=0)
            self.value_deviation.fill_(deviation if deviation > 0 else 1.0)
        if self.params.class_weights == "balanced":
            counts_C = torch.bincount(class_N[class_N >= 0], minlength=len(self.class_weights))
            self.class_weights.copy_(balanced_weights(counts_C))
            with_K, without_K = (labels_NK == 1).sum(dim=0), (labels_NK == 0).sum(dim=0)
            self.label_weights.copy_(
                (without_K / with_K.clamp(min=1)).clamp(1 / MAX_LABEL_WEIGHT, MAX_LABEL_WEIGHT)
            )

    def forward(
        self, features: Mapping[str, Tensor], present_BM: Tensor, impute: bool | None = None
    ) -> dict[str, Tensor]:
        """Raw outputs by task, float32: logits, and the regression's value in standard deviations.

        In training there are more, for `losses`: with `missing: impute`, each task's outputs with learnt
        vectors in place of reconstructions (`<task>.learned`), and the reconstructions' errors.

        Parameters
        ----------
        features
            By modality (B, F) or (B, L, F), padding all zero; those that it does not see are not looked at.
        present_BM
            1 where the row has the modality, over all that the model takes. A row that has none of those
            seen is answered from the learnt vectors alone.
        impute
            Reconstruct absent modalities; None does so where the head has learnt to.
        """
        parts = [self._normed(norm, features[name]) for name, norm in zip(self.sees, self.norms, strict=True)]
        seen_BM = present_BM[:, self.columns]
        none_B1 = (seen_BM.sum(dim=1, keepdim=True) == 0).to(seen_BM.dtype)
        learned_BMF = self.absent.expand(seen_BM.shape[0], -1, -1)
        if self.imputer is None or impute is False:
            return self._answer(parts, learned_BMF, seen_BM, seen_BM + none_B1)
        # Towers must not learn features that are easy to guess: no gradient flows to them from here.
        pooled_BMF = torch.stack([pooled(part) for part in parts], dim=1).detach()
        made_BMF = self.imputer(pooled_BMF, seen_BM)
        filled_BMF = torch.where(none_B1[:, :, None] > 0, learned_BMF, made_BMF)
        outputs = self._answer(parts, filled_BMF, seen_BM, torch.ones_like(seen_BM))
        if self.training:
            plain = self._answer(parts, learned_BMF, seen_BM, seen_BM + none_B1)
            outputs |= {f"{task}.learned": plain[task] for task in self.tasks}
            outputs["reconstruction"] = (made_BMF - pooled_BMF).square().mean(dim=2).float()
            others_BM = seen_BM.sum(dim=1, keepdim=True) - seen_BM
            outputs["reconstructible"] = (others_BM > 0).float()
        return outputs

    def losses(self, outputs: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """The weighted loss of each task by name, and `imputation`; over the rows of all processes."""
        losses = {task: self._loss(task, outputs, targets) for task in self.tasks}
        if self.log_variance is not None:
            numbers = outputs["log_variance"][0].unbind()
            losses = balance_by_uncertainty(losses, dict(zip(self.tasks, numbers, strict=True)))
        weights = {str(task): weight for task, weight in self.params.tasks.items()}
        losses = {task: weights[task] * loss for task, loss in losses.items()}
        if "reconstruction" in outputs:
            losses["imputation"] = self.params.impute_weight * self.imputation_loss(outputs, targets)
        return losses

    def imputation_loss(self, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        """Mean squared error of the reconstructions of what rows have, dropped modalities included."""
        there_BM = torch.stack([targets.has(name) for name in self.sees], dim=1)
        return mean_of_rows(outputs["reconstruction"], there_BM * outputs["reconstructible"])

    def facts(self) -> dict[str, float]:
        """The standard deviation found for each task's noise, where losses are balanced by it."""
        if self.log_variance is None:
            return {}
        deviations = (self.log_variance.detach() / 2).exp().tolist()
        return {f"noise_{task}": value for task, value in zip(self.tasks, deviations, strict=True)}

    def answers(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is served, from `forward`'s outputs: see `outputs` for names and shapes."""
        out: dict[str, Tensor] = {}
        if "single_label" in self.tasks:
            out["probabilities"] = raw["single_label"].softmax(dim=1)
        if "binary" in self.tasks:
            yes_B1 = raw["binary"].sigmoid()
            out["probabilities"] = torch.cat([1 - yes_B1, yes_B1], dim=1)
        if "multi_label" in self.tasks:
            out["label_probabilities"] = raw["multi_label"].sigmoid()
        if "regression" in self.tasks:
            out["value"] = raw["regression"] * self.value_deviation + self.value_mean
        return out

    def outputs(self) -> dict[str, list[int]]:
        """The served outputs' names and the shape of one row."""
        out = {}
        if "single_label" in self.tasks or "binary" in self.tasks:
            out["probabilities"] = [self.tasks.get("single_label", 2)]
        if "multi_label" in self.tasks:
            out["label_probabilities"] = [self.tasks["multi_label"]]
        if "regression" in self.tasks:
            out["value"] = [1]
        return out

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = norm(x)
        return out if x.ndim == 2 else out * (x != 0).any(dim=2, keepdim=True)

    def _answer(
        self, parts: Sequence[Tensor], stand_in_BMF: Tensor, seen_BM: Tensor, present_BM: Tensor
    ) -> dict[str, Tensor]:
        filled = [fill(part, stand_in_BMF[:, m], seen_BM[:, m : m + 1]) for m, part in enumerate(parts)]
        decided_BO = self.decide(self.fusion(filled, present_BM)).float()
        outputs: dict[str, Tensor] = dict(
            zip(self.tasks, decided_BO.split(list(self.tasks.values()), dim=1), strict=True)
        )
        if self.log_variance is not None:
            # A copy: a view of a parameter asks for gradients even where they are off.
            outputs["log_variance"] = self.log_variance.expand(decided_BO.shape[0], -1).clone()
        return outputs

    def _loss(self, task: str, outputs: Mapping[str, Tensor], targets: Targets) -> Tensor:
        balanced = self.params.class_weights == "balanced"
        terms = [
            task_loss(
                task,
                outputs[name],
                targets,
                smoothing=self.params.label_smoothing,
                huber=self.params.huber,
                class_weights_C=self.class_weights if balanced else None,
                label_weights_K=self.label_weights if balanced else None,
                mean=self.value_mean,
                deviation=self.value_deviation,
            )
            for name in (task, f"{task}.learned")
            if name in outputs
        ]
        return torch.stack(terms).mean()


def build_head(
    params: HeadParams | None, modalities: Sequence[str], feature_size: int, context: BuildContext
) -> Head | None:
    """A head with fresh weights; None without a section, and without classes for a sole `single_label`.

    Raises
    ------
    ConfigError
        It sees a modality that the model does not take, or a task does not fit the data.
    """
    if params is None:
        return None
    unknown = sorted(set(params.sees) - set(modalities))
    if unknown:
        raise ConfigError(
            f"model.head.sees names {unknown[0]!r}, which the model does not take; it takes "
            f"{', '.join(modalities)}. Add it to model.encoders, or do not look at it."
        )
    if params.missing == "impute" and len(params.sees) < 2:
        raise ConfigError(
            f"model.head.missing is impute, but the head sees {params.sees[0]} alone: there is nothing to "
            "reconstruct it from. Let it see another modality, or set missing to learned."
        )
    if params.fusion in TOKEN_FUSIONS and feature_size % params.heads:
        raise ConfigError(
            f"model.head.heads {params.heads} does not divide model.feature_size {feature_size}; choose "
            "heads that divide it."
        )
    classes, labels = len(context.classes), len(context.labels)
    if classes < 2 and set(params.tasks) == {"single_label"}:
        return None
    _check_tasks(params, context)
    return Head(params, modalities, feature_size, classes=classes, labels=labels)


def _check_tasks(params: HeadParams, context: BuildContext) -> None:
    faults = {
        "single_label": (len(context.classes) < 2, f"classes {context.classes}; it needs two or more"),
        "binary": (len(context.classes) != 2, f"{len(context.classes)} classes; it needs exactly two"),
        "multi_label": (not context.labels, "no labels; it needs the column `labels`"),
    }
    for task, (wrong, data) in faults.items():
        if task in params.tasks and wrong:
            raise ConfigError(
                f"model.head.tasks has {task}, but the data have {data}. Take the task out, or bring its "
                "targets."
            )


def _network(inner: int, params: HeadParams, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(inner),
        nn.Dropout(params.dropout),
        nn.Linear(inner, params.hidden),
        nn.GELU(),
        nn.Dropout(params.dropout),
        nn.Linear(params.hidden, outputs),
    )
