"""Family `huggingface_late_fusion`: a ViT and a BERT of transformers, joined by their pooled outputs.

Takes an image, a text, or both. Each model comes from a folder or a hub name with its trained weights, or
from a configuration with random ones; it stays frozen, or its last layers or all of it are trained. With
`head` the pooled outputs are fused (`late`: one decision a modality) to classes, labels or a number; with
`contrast` it is transformers' VisionTextDualEncoder (Zhai et al., 2022, LiT, where the image side is frozen).
Served: image bytes and text to the head's answers, and to embeddings where there is a joint space.

The tokenizer must be the text model's own: `prepare.tokenizer: folder`. Shape suffixes: B rows, M modalities,
D embedding size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from polyweft.config import Section, parse_section
from polyweft.errors import ConfigError
from polyweft.losses.contrastive import ContrastParams, Scale, contrast
from polyweft.losses.targets import Targets
from polyweft.models.family import BuildContext, Family, ModelParams
from polyweft.models.head import Head, HeadParams, build_head
from polyweft.models.huggingface_encoders import HuggingFaceEncoder, HuggingFaceTower, Pool, Tuning
from polyweft.models.huggingface_weights import (
    configured,
    pretrained,
    random_model,
    settings_of,
    transformers,
)
from polyweft.models.image import reader_spec as pixel_spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

TYPES = {"image": "vit", "text": "bert"}


class EncoderParams(Section):
    """What both encoders are given."""

    source: str | None = Field(description="a folder from the workspace's root or a hub name; null: random")
    config: dict[str, Any] = Field(default={}, description="for random weights: keys of the configuration")
    tuning: Tuning
    pool: Pool


class ImageParams(EncoderParams):
    """`model.encoders.image`; see also `models.image.Params`."""

    size: int = Field(ge=8, le=1024, description="pixels a side")
    resize: Literal["squash", "crop", "pad"]
    normalization: Literal["imagenet", "clip", "half"]
    background: list[int] = Field(min_length=3, max_length=3)
    max_pixels: int = Field(ge=1, le=10**9)


class TextParams(EncoderParams):
    """`model.encoders.text`."""


SECTIONS: dict[str, type[EncoderParams]] = {"image": ImageParams, "text": TextParams}


class Params(ModelParams):
    """Section `model` of this family."""

    dual_encoder: str | None = Field(
        default=None,
        description="a VisionTextDualEncoder whose models, projections and temperature are taken",
    )
    contrast: ContrastParams | None = None
    head: HeadParams | None = None

    @model_validator(mode="after")
    def _fits(self) -> Params:
        if not set(self.modalities) <= set(TYPES):
            raise ValueError(f"encoders are {self.modalities}; this family takes image and text")
        if self.contrast is None and self.head is None:
            raise ValueError("give a head, a contrast, or both: there is nothing to learn otherwise")
        if (self.contrast is None) != (self.embedding_size == 0):
            raise ValueError(
                f"embedding_size is {self.embedding_size}; a joint space comes with `contrast`, and "
                "without it embedding_size is 0"
            )
        if self.contrast is not None and len(self.modalities) < 2:
            raise ValueError("contrast needs both image and text")
        if self.dual_encoder is not None and self.contrast is None:
            raise ValueError("dual_encoder needs the section contrast")
        return self

    def encoder_params(self, modality: str) -> Any:
        """The modality's section, checked; raises `ConfigError`."""
        return parse_section(
            SECTIONS[modality], f"model.encoders.{modality}", self.encoders[modality], where="params.yaml"
        )

    def reader_specs(self) -> dict[str, dict[str, Any]]:
        """See `ModelParams.reader_specs`."""
        specs: dict[str, dict[str, Any]] = {}
        for name in self.modalities:
            params = self.encoder_params(name)
            specs[name] = pixel_spec(params) if name == "image" else {}
        return specs


class LateFusion(Family):
    """The towers, a temperature with `contrast`, a head where there are tasks.

    Attributes
    ----------
    portable
        Parameters that build the same module without the folders that its weights came from.
    """

    head: Head | None

    def __init__(
        self,
        towers: dict[str, nn.Module],
        head: Head | None,
        contrast: ContrastParams | None,
        portable: Params,
    ) -> None:
        super().__init__()
        self.towers, self.head = nn.ModuleDict(towers), head
        self.contrast, self.portable = contrast, portable
        self.scale = None if contrast is None else Scale(contrast.loss)

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """With `contrast` `<modality>_embedding` (B, D) and `scale` (B,); `head.<task>`."""
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name, tower in self.towers.items():
            embedding_BD, features[name] = tower(inputs[name])
            if self.scale is not None:
                outputs[f"{name}_embedding"] = embedding_BD
        if self.scale is not None:
            outputs |= self.scale(len(present_BM))
        if self.head is not None:
            raw = self.head(features, present_BM)
            outputs |= {f"head.{task}": values for task, values in raw.items()}
        return outputs

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`contrastive` with `contrast`, and one loss a task."""
        losses: dict[str, Tensor] = {}
        if self.contrast is not None:
            losses |= contrast(outputs, targets, list(self.towers), self.contrast)
        if self.head is not None:
            raw = {name.removeprefix("head."): v for name, v in outputs.items() if name.startswith("head.")}
            losses |= self.head.losses(raw, targets)
        return losses

    def after_step(self) -> None:
        """CLIP's clamp of the temperature."""
        if self.scale is not None:
            self.scale.clamp()

    def facts(self) -> dict[str, float]:
        """The temperature, where there is one, and the tasks' noise where their losses are balanced by it."""
        scale = {} if self.scale is None else self.scale.facts()
        return scale | ({} if self.head is None else self.head.facts())


def build(params: Params, context: BuildContext) -> LateFusion:
    """Trained weights where a source is named, fresh ones from torch's generator elsewhere.

    Raises
    ------
    ConfigError
        A source cannot be read, or does not fit the images' size, their normalisation or the tokenizer.
    """
    sections = {name: params.encoder_params(name) for name in params.modalities}
    pools = {section.pool for section in sections.values()}
    dual = None if params.dual_encoder is None else _dual(params, pools)
    models: dict[str, PreTrainedModel] = {}
    for name, section in sections.items():
        if dual is None:
            models[name] = _model(name, section, context)
        else:
            models[name] = dual.vision_model if name == "image" else dual.text_model
        _check(name, models[name].config, section, context)
    if dual is None and params.contrast is not None:
        dual = _joined(models["image"], models["text"], params.embedding_size)
    head = build_head(params.head, params.modalities, params.feature_size, context)
    tokens = head is not None and head.takes_tokens
    towers: dict[str, nn.Module] = {}
    portable = {}
    for name, section in sections.items():
        config = settings_of(models[name].config)
        portable[name] = section.model_copy(update={"source": None, "config": config}).model_dump()
        encoder = HuggingFaceEncoder(
            models[name],
            section.pool,
            section.tuning,
            f"model.encoders.{name}",
            end_id=context.text["end_id"] if name == "text" else None,
        )
        projection = None
        if dual is not None:
            projection = dual.visual_projection if name == "image" else dual.text_projection
        towers[name] = HuggingFaceTower(encoder, params.feature_size, projection, tokens=tokens)
    module = LateFusion(
        towers, head, params.contrast, params.model_copy(update={"encoders": portable, "dual_encoder": None})
    )
    if dual is not None and module.scale is not None and params.dual_encoder is not None:
        with torch.no_grad():
            module.scale.logit_scale.copy_(dual.logit_scale)
    return module


def _model(name: str, section: EncoderParams, context: BuildContext) -> PreTrainedModel:
    where = f"model.encoders.{name}"
    if section.source is None:
        return random_model(_config(name, section, context), f"{where}.config")
    model, lacking = pretrained(section.source, f"{where}.source")
    lacking = {n for n in lacking if section.pool == "pooler" or not n.startswith("pooler.")}
    if lacking:
        raise ConfigError(
            f"{where}.source {section.source} lacks weights of its model: {', '.join(sorted(lacking)[:3])}. "
            "Name another; where only the pooler is lacking, set pool to first or mean."
        )
    return model


def _config(name: str, section: EncoderParams, context: BuildContext) -> PretrainedConfig:
    """A random model's configuration; what image and tokenizer say is not asked for twice."""
    if name == "image":
        assert isinstance(section, ImageParams)
        given: dict[str, Any] = {"image_size": section.size}
    else:
        text = context.text
        given = {"vocab_size": text["vocabulary_size"], "pad_token_id": text["pad_id"]}
        given["max_position_embeddings"] = max(8, text["max_tokens"])
    return configured(TYPES[name], given | section.config, f"model.encoders.{name}.config")


def _check(name: str, config: PretrainedConfig, section: EncoderParams, context: BuildContext) -> None:
    """Hold a model against what it will be fed."""
    wanted = {"image": ("image_size", "patch_size"), "text": ("vocab_size", "max_position_embeddings")}[name]
    if not all(hasattr(config, key) for key in (*wanted, "hidden_size")):
        raise ConfigError(f"model.encoders.{name}: {config.model_type} is no {name} model of one tower.")
    if name == "image":
        assert isinstance(section, ImageParams)
        size, patch = config.image_size, config.patch_size
        if size != section.size or size % patch:
            raise ConfigError(
                f"model.encoders.image.size is {section.size}, but the model takes {size} in patches of "
                f"{patch}, which must divide it. Set size to {size // patch * patch}."
            )
        return
    text = context.text
    if config.vocab_size != text["vocabulary_size"] or config.max_position_embeddings < text["max_tokens"]:
        raise ConfigError(
            f"the text model knows {config.vocab_size} tokens at {config.max_position_embeddings} positions, "
            f"the data's tokenizer has {text['vocabulary_size']} and texts of {text['max_tokens']}. Prepare "
            "the data with the model's own tokenizer (prepare.tokenizer: folder) and fewer max_tokens."
        )


def _joined(image: PreTrainedModel, text: PreTrainedModel, embedding_size: int) -> Any:
    """transformers' VisionTextDualEncoder of two models, with fresh projections."""
    package = transformers()
    config = package.VisionTextDualEncoderConfig.from_vision_text_configs(
        image.config, text.config, projection_dim=embedding_size
    )
    return package.VisionTextDualEncoderModel(config, vision_model=image, text_model=text)


def _dual(params: Params, pools: set[str]) -> Any:
    assert params.dual_encoder is not None
    dual: Any
    dual, lacking = pretrained(params.dual_encoder, "model.dual_encoder", "VisionTextDualEncoderModel")
    if lacking or dual.config.projection_dim != params.embedding_size or pools != {"pooler"}:
        raise ConfigError(
            f"model.dual_encoder {params.dual_encoder} projects poolers' outputs to "
            f"{dual.config.projection_dim} and lacks {len(lacking)} of its tensors; embedding_size is "
            f"{params.embedding_size} and pool {sorted(pools)}. Set embedding_size to "
            f"{dual.config.projection_dim} and both encoders' pool to pooler; take one with all weights."
        )
    return dual
