"""Section `train`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polyweft.config import Section
from polyweft.training.augment import AugmentParams


class TrainParams(Section):
    """How the joint model is trained."""

    processes: int = Field(ge=1, le=64, description="workers that torchrun starts on this machine")
    strategy: Literal["ddp"]
    epochs: int = Field(ge=0, le=10_000, description="0 leaves the initial weights")
    batch_size: int = Field(ge=2, le=2**20, description="rows over all processes")
    lr: float = Field(gt=0.0, le=1.0)
    weight_decay: float = Field(ge=0.0, le=1.0)
    betas: list[float] = Field(min_length=2, max_length=2)
    warmup_steps: int = Field(ge=0)
    clip_norm: float = Field(gt=0.0)
    precision: Literal["fp32", "bf16"]
    contrastive_weight: float = Field(ge=0.0)
    classification_weight: float = Field(ge=0.0)
    label_smoothing: float = Field(ge=0.0, lt=1.0)
    positives: Literal["caption", "group"] = Field(description="what makes two rows' texts the same")
    augment: AugmentParams
    early_stopping_epochs: int = Field(ge=1, description="epochs without a better validation score")
    validate_every: int = Field(ge=1, description="epochs between two validations")
    checkpoint_steps: int = Field(ge=1, description="steps between two checkpoints")
