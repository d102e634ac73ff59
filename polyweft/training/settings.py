"""Settings that contradict each other, the model or the data are refused before the first step."""

from __future__ import annotations

import numpy as np

from polyweft.data.batches import Arrays
from polyweft.errors import TrainingError
from polyweft.models.family import Family
from polyweft.training.distributed import World
from polyweft.training.params import TrainParams


def check_settings(params: TrainParams, model: Family, train: Arrays, world: World) -> None:
    """Refuse what would fail later, or do nothing without a word.

    Raises
    ------
    TrainingError
        It says what came, what was expected and what to do.
    """
    if params.batch_size < world.size:
        raise TrainingError(
            f"train.batch_size {params.batch_size} is smaller than the {world.size} processes; choose at "
            "least one row for each, better 64."
        )
    if params.epochs and len(train) < params.batch_size:
        raise TrainingError(
            f"train.batch_size is {params.batch_size} but the train split has {len(train)} samples; "
            "lower train.batch_size or bring more data."
        )
    if params.strategy == "fsdp" and params.precision == "fp16":
        raise TrainingError(
            "train.precision fp16 does not go with train.strategy fsdp: each process would look for overflow "
            "in its own part alone. Choose bf16, or ddp."
        )
    if params.strategy == "fsdp" and params.muon is not None:
        raise TrainingError(
            "train.muon does not go with train.strategy fsdp: it needs whole matrices, of which each process "
            "then holds some rows. Choose ddp, or leave train.muon out."
        )
    if params.precision == "fp16" and params.muon is not None:
        raise TrainingError(
            "train.muon does not go with train.precision fp16: it would take a step that overflowed. Choose "
            "bf16 or fp32, or leave train.muon out."
        )
    if params.compile and params.micro_batch is not None:
        raise TrainingError(
            "train.compile does not go with train.micro_batch: micro-batches run the model's parts apart. "
            "Set one of them to its default."
        )
    if params.modality_dropout and model.head is None:
        raise TrainingError(
            f"train.modality_dropout {params.modality_dropout} hides modalities from the class head, and the "
            "model has none. Set it to 0.0, or give the model a model.head."
        )
    if params.curriculum == "difficulty":
        _check_curriculum(params, train)
    encoder = getattr(getattr(model.towers, "image", None), "encoder", None)
    if params.image_sizes and not getattr(encoder, "any_size", False):
        raise TrainingError(
            "train.image_sizes needs an image tower that takes any size: cnn or resnet. A ViT has a position "
            "for each patch of one size. Leave train.image_sizes out, or choose such a tower."
        )


def _check_curriculum(params: TrainParams, train: Arrays) -> None:
    if not params.curriculum_epochs:
        raise TrainingError(
            "train.curriculum difficulty orders the first train.curriculum_epochs epochs, which are 0. Set "
            "them to 1 or more, or train.curriculum to none."
        )
    if np.isnan(train.difficulty_N).all():
        raise TrainingError(
            "train.curriculum difficulty needs rows whose difficulty is known, and none is. Give the source "
            "a column `difficulty`, let align score the pairs, or set train.curriculum to none."
        )
