"""What every model family is: a section of parameters, a builder, and a module of one form.

A family's file defines `Params(ModelParams)`, the whole section `model`, and `build(params, context)`, which
returns a `Family`. `polyweft.models.build` names the families; nothing else knows one from another.

Shape suffixes: B rows, M modalities.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator
from torch import Tensor, nn

from polyweft.config import Section, parse_section
from polyweft.data.reader import Reader
from polyweft.losses.targets import Targets
from polyweft.modalities import MODALITIES, encoder_module

FAMILIES: dict[str, str] = {
    "dual_tower": "polyweft.models.dual_tower",
    "fusion_classifier": "polyweft.models.fusion_classifier",
    "huggingface_late_fusion": "polyweft.models.huggingface_late_fusion",
    "captioner": "polyweft.models.captioner",
    "trimodal": "polyweft.models.trimodal",
}
"""The module of each family."""


class ModelParams(Section):
    """Section `model`; each family adds its own keys."""

    family: str
    encoders: dict[str, dict[str, Any]] = Field(min_length=1, description="a section a modality")
    embedding_size: int = Field(ge=0, le=4096, description="of the joint space; 0: none")
    feature_size: int = Field(ge=8, le=8192, description="of what heads see")

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_family(cls, value: Any, handler: ModelWrapValidatorHandler[ModelParams]) -> ModelParams:
        """Read the section as the class of the family that it names."""
        if cls is not ModelParams or not isinstance(value, dict):
            return handler(value)
        family = value.get("family")
        if family not in FAMILIES:
            raise ValueError(f"model.family is {family!r}; there are {', '.join(FAMILIES)}")
        return cls.class_for(value).model_validate(value)

    @classmethod
    def class_for(cls, content: dict[str, Any]) -> type[ModelParams]:
        """The `Params` of the family that `content` names."""
        family = content.get("family")
        if cls is not ModelParams or family not in FAMILIES:
            return cls
        params: type[ModelParams] = importlib.import_module(FAMILIES[family]).Params
        return params

    @field_validator("encoders")
    @classmethod
    def _known_modalities(cls, encoders: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        unknown = sorted(set(encoders) - set(MODALITIES))
        if unknown:
            raise ValueError(f"no modality is called {unknown[0]!r}; there are {', '.join(MODALITIES)}")
        return {name: encoders[name] for name in MODALITIES if name in encoders}

    @property
    def modalities(self) -> list[str]:
        """What the model takes, in the order of `present`'s columns."""
        return list(self.encoders)

    def encoder_params(self, modality: str) -> Any:
        """The modality's section, checked; raises `ConfigError`."""
        cls = encoder_module(modality).Params
        section = self.encoders[modality]
        return parse_section(cls, f"model.encoders.{modality}", section, where="params.yaml")

    def reader_specs(self) -> dict[str, dict[str, Any]]:
        """What each modality's reader is made from; it is saved with the model."""
        return {name: encoder_module(name).reader_spec(self.encoder_params(name)) for name in self.modalities}


@dataclass(frozen=True)
class BuildContext:
    """What a family is built for: the data's class and label names, its readers, text.json's content.

    `text` is empty where the model takes no text.
    """

    classes: list[str]
    labels: list[str]
    readers: dict[str, Reader]
    text: dict[str, Any]


class Family(nn.Module):
    """A model of any family; see `docs/guide/extending.md`.

    Attributes
    ----------
    towers
        By modality, a module that gives the embedding (B, D) and the features (B, F) or (B, L, F).
    head
        Features and presence to the tasks' outputs, or None.
    decoder
        Token ids and image features to logits, for families that generate text, or None.
    """

    towers: nn.ModuleDict
    head: nn.Module | None
    decoder: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.head = self.decoder = None  # not in the class: a module of that name would be hidden behind it

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """Outputs of each row, each of which depends on that row alone: the losses are taken from these.

        What losses need of the parameters (a temperature) is given as an output too, once a row, so that
        one backward pass through the outputs reaches everything.
        """
        raise NotImplementedError

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """Named scalars whose sum is the loss; the mean over the processes is the joined batch's."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Bring parameters back into their bounds; called after each step of the optimiser."""

    def facts(self) -> dict[str, float]:
        """Numbers to log as curves, such as the temperature."""
        return {}


def build_encoders(params: ModelParams, context: BuildContext) -> dict[str, nn.Module]:
    """Each modality's encoder with fresh weights from torch's generator."""
    return {
        name: encoder_module(name).build(params.encoder_params(name), context.readers[name])
        for name in params.modalities
    }
