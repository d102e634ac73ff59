"""Section `train`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from polyweft.config import Section
from polyweft.data.batches import Positives
from polyweft.training.audio_augment import AudioAugmentParams
from polyweft.training.augment import AugmentParams
from polyweft.training.muon import MuonParams


class DistillParams(Section):
    """`train.distill`: learn from a larger trained model as well as from the data."""

    teacher: str = Field(description="a folder that `train` left, from the workspace's root")
    weight: float = Field(ge=0.0, le=100.0)
    temperature: float = Field(gt=0.0, le=100.0)


class TrainParams(Section):
    """How the model is trained."""

    processes: int = Field(ge=1, le=64, description="workers on this machine, over all agents")
    agents: int = Field(default=1, ge=1, le=64, description="torchrun agents here; training outlives each")
    strategy: Literal["ddp", "fsdp"]
    epochs: int = Field(ge=0, le=10_000, description="0 leaves the initial weights")
    batch_size: int = Field(ge=2, le=2**20, description="rows over all processes, at most")
    micro_batch: int | None = Field(
        default=None, ge=1, description="rows that a process holds activations of at once; null: all"
    )
    lr: float = Field(gt=0.0, le=1.0)
    weight_decay: float = Field(ge=0.0, le=1.0)
    betas: list[float] = Field(min_length=2, max_length=2)
    warmup_steps: int = Field(ge=0)
    clip_norm: float = Field(gt=0.0)
    muon: MuonParams | None = Field(default=None, description="for matrices; AdamW keeps the rest")
    layer_decay: float = Field(default=1.0, gt=0.0, le=1.0, description="lr factor a layer towards the input")
    freeze: list[str] = Field(default=[], description="names of parameters to leave, `*` for any part")
    precision: Literal["fp32", "bf16", "fp16"]
    gradient_checkpointing: bool = False
    compile: bool = Field(default=False, description="torch.compile; other bytes than without")
    ema_decay: float = Field(default=0.0, ge=0.0, lt=1.0, description="0: no average of the weights")
    positives: Positives = Field(description="what makes two rows each other's positives")
    captions: Literal["drawn", "first"] = Field(
        default="drawn", description="of several, which an epoch shows"
    )
    order: Literal["shuffled", "groups"] = Field(
        default="shuffled", description="groups: a group's rows together"
    )
    modality_dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="for the head, a modality")
    augment: AugmentParams
    augment_audio: AudioAugmentParams = AudioAugmentParams()
    image_sizes: list[Annotated[int, Field(ge=8, le=1024)]] = Field(
        default=[], description="pixels a side over equal parts of the epochs; empty: the model's own"
    )
    curriculum: Literal["none", "difficulty"] = "none"
    curriculum_epochs: int = Field(default=0, ge=0)
    distill: DistillParams | None = None
    init_from: str | None = Field(
        default=None, description="a trained folder, weights or a transformers folder"
    )
    early_stopping_epochs: int = Field(ge=1, description="epochs without a better validation score")
    validate_every: int = Field(ge=1, description="epochs between two validations")
    checkpoint_steps: int = Field(ge=1, description="steps between two checkpoints")
    profile_steps: int = Field(default=0, ge=0, le=100, description="steps that torch.profiler traces")
