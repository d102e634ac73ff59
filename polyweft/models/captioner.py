"""Family `captioner`: BLIP's form (Li et al., 2022): contrast, matching and captioning of images and texts.

Takes an image and a text. The towers' embeddings are drawn together (contrast); a text encoder that looks
at the image tells true pairs from near ones (matching, with hard negatives of the global batch); a causal
decoder that shares its weights, self-attention aside, writes the text (captioning). Served: image bytes to a
caption and an embedding, text to an embedding, and, with a head, its tasks' answers.

Shape suffixes: B rows of this process, G rows of all processes, L image positions, T tokens, D embedding
size, F feature size.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, distributed, nn
from torch.nn import functional

from polyweft.config import Section
from polyweft.data.generation import GenerationSpec
from polyweft.errors import ConfigError
from polyweft.losses.contrastive import ContrastParams, Scale, contrast
from polyweft.losses.gather import Rows, gather_rows, mean_of_rows, world_size
from polyweft.losses.matching import hard_negatives
from polyweft.losses.targets import Targets
from polyweft.models.caption_decoder import CaptionDecoder, DecoderParams
from polyweft.models.family import BuildContext, Family, ModelParams, build_encoders
from polyweft.models.head import Head, HeadParams, build_head
from polyweft.models.tower import Tower


class MatchingParams(Section):
    """`model.matching`: does this text belong to this image?"""

    weight: float = Field(ge=0.0, le=1000.0)
    negatives: Literal["drawn", "nearest"] = Field(
        description="wrong partners: drawn by similarity as in BLIP, or the nearest"
    )


class CaptioningParams(Section):
    """`model.captioning`: the weight of the language model's loss, and its label smoothing (BLIP: 0.1)."""

    weight: float = Field(ge=0.0, le=1000.0)
    label_smoothing: float = Field(ge=0.0, lt=1.0)


class GenerationParams(Section):
    """`model.generation`: how captions are decoded; see `data.generation.GenerationSpec`."""

    strategy: Literal["greedy", "beam", "top_k", "top_p"]
    beams: int = Field(default=3, ge=1, le=64)
    k: int = Field(default=10, ge=1, le=1_000_000)
    p: float = Field(default=0.9, gt=0.0, le=1.0)
    temperature: float = Field(default=1.0, gt=0.0, le=100.0)
    max_tokens: int = Field(default=20, ge=1, le=1000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    length_penalty: float = Field(default=0.0, ge=0.0, le=10.0)

    def spec(self) -> GenerationSpec:
        """The same, as it is saved with the model."""
        return GenerationSpec.from_dict(self.model_dump())


class Params(ModelParams):
    """Section `model` of this family."""

    contrast: ContrastParams
    matching: MatchingParams
    captioning: CaptioningParams
    decoder: DecoderParams
    generation: GenerationParams
    head: HeadParams | None = None

    @model_validator(mode="after")
    def _image_and_text(self) -> Params:
        if self.modalities != ["image", "text"] or not self.embedding_size:
            raise ValueError(
                "captioner takes the encoders image and text and an embedding_size of 1 or more (hard "
                f"negatives are found in that space); encoders are {self.modalities} and embedding_size is "
                f"{self.embedding_size}"
            )
        return self


class Captioner(Family):
    """An image tower that gives a vector a position, a text tower, the decoder, a head where there are tasks.

    Attributes
    ----------
    generation
        How captions are decoded.
    """

    decoder: CaptionDecoder
    head: Head | None

    def __init__(
        self, towers: dict[str, nn.Module], decoder: CaptionDecoder, head: Head | None, params: Params
    ):
        super().__init__()
        self.towers, self.decoder, self.head = nn.ModuleDict(towers), decoder, head
        self.scale = Scale(params.contrast.loss)
        self.params = params
        self.generation = params.generation.spec()

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """Outputs by row.

        Returns
        -------
        dict
            `image_embedding`, `text_embedding` (B, D), `scale` (B,); `image_tokens` (B, L, F) for matching;
            `caption_loss`, the sum over a row's tokens, and `caption_tokens`, their number, both (B,); and
            `head.<task>`.
        """
        image_BD, image_BLF = self.towers["image"](inputs["image"])
        text_BD, text_BF = self.towers["text"](inputs["text"])
        outputs = {"image_embedding": image_BD, "text_embedding": text_BD, **self.scale(len(present_BM))}
        if self.params.matching.weight:
            outputs["image_tokens"] = image_BLF
        if self.params.captioning.weight:
            smoothing = self.params.captioning.label_smoothing
            loss_B, tokens_B = self.decoder.caption_loss(inputs["text"], image_BLF, smoothing)
            outputs |= {"caption_loss": loss_B, "caption_tokens": tokens_B}
        if self.head is not None:
            raw = self.head({"image": image_BLF, "text": text_BF}, present_BM)
            outputs |= {f"head.{task}": values for task, values in raw.items()}
        return outputs

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`contrastive`, `matching`, `captioning` where they have a weight, and one loss a task."""
        losses: dict[str, Tensor] = {}
        if self.params.contrast.weight:
            losses |= contrast(outputs, targets, ("image", "text"), self.params.contrast)
        if self.params.matching.weight:
            losses["matching"] = self.params.matching.weight * self._matching(outputs, targets)
        if self.params.captioning.weight:
            tokens_B = outputs["caption_tokens"].detach()
            weights_B = tokens_B * targets.has("image") * targets.has("text")
            terms_B = outputs["caption_loss"] / tokens_B.clamp(min=1)
            losses["captioning"] = self.params.captioning.weight * mean_of_rows(terms_B, weights_B)
        if self.head is not None:
            raw = {name.removeprefix("head."): v for name, v in outputs.items() if name.startswith("head.")}
            losses |= self.head.losses(raw, targets)
        return losses

    def after_step(self) -> None:
        """CLIP's clamp of the temperature."""
        self.scale.clamp()

    def facts(self) -> dict[str, float]:
        """The temperature, and the tasks' noise where their losses are balanced by it."""
        return self.scale.facts() | ({} if self.head is None else self.head.facts())

    def _matching(self, outputs: dict[str, Tensor], targets: Targets) -> Tensor:
        """Binary cross-entropy over true pairs, images with a wrong text, and texts with a wrong image."""
        image, text = (
            Rows.gather(outputs[f"{name}_embedding"], targets.keys[name], targets.has(name))
            for name in ("image", "text")
        )
        wrong_text_B, wrong_image_B = hard_negatives(
            image, text, outputs["scale"][0].detach().float(), generator=self._generator(image.x_BD.device)
        )
        image_BLF, ids_BT = outputs["image_tokens"], _widest(targets.ids_BT)
        image_GLF, ids_GT = gather_rows(image_BLF), gather_rows(ids_BT)
        logits_3B = self.decoder.match(
            torch.cat([ids_BT, ids_GT[wrong_text_B.clamp(min=0)], ids_BT]),
            torch.cat([image_BLF, image_BLF, image_GLF[wrong_image_B.clamp(min=0)]]),
        )
        paired_B = image.there_B & text.there_B
        counted_3B = torch.cat([paired_B, paired_B & (wrong_text_B >= 0), paired_B & (wrong_image_B >= 0)])
        true_3B = torch.arange(3, device=logits_3B.device).repeat_interleave(len(paired_B)) == 0
        terms_3B = functional.binary_cross_entropy_with_logits(logits_3B, true_3B.float(), reduction="none")
        return mean_of_rows(terms_3B, counted_3B)

    def _generator(self, device: torch.device) -> torch.Generator | None:
        if self.params.matching.negatives == "nearest":
            return None
        seed = int(torch.randint(2**62, ()))  # of torch's own generator, which the trainer seeds each step
        return torch.Generator(device).manual_seed(seed)


def _widest(ids_BT: Tensor) -> Tensor:
    """The rows, filled up with zeros behind their end to the longest of any process."""
    if world_size() == 1:
        return ids_BT
    longest = torch.tensor(ids_BT.shape[1], device=ids_BT.device)
    distributed.all_reduce(longest, op=distributed.ReduceOp.MAX)
    return functional.pad(ids_BT, (0, int(longest) - ids_BT.shape[1]))


def build(params: Params, context: BuildContext) -> Captioner:
    """Fresh weights from torch's generator.

    Raises
    ------
    ConfigError
        Captions may become longer than the texts of the data.
    """
    longest = int(context.text["max_tokens"])
    if params.generation.max_tokens > longest - 1:
        raise ConfigError(
            f"model.generation.max_tokens is {params.generation.max_tokens}, but the decoder learns "
            f"prepare.max_tokens {longest} positions, one of them the start's. Choose at most {longest - 1}."
        )
    encoders = build_encoders(params, context)
    towers: dict[str, nn.Module] = {
        name: Tower(encoder, params.feature_size, params.embedding_size, tokens=name == "image")
        for name, encoder in encoders.items()
    }
    decoder = CaptionDecoder(
        params.decoder,
        feature_size=params.feature_size,
        vocabulary_size=int(context.text["vocabulary_size"]),
        max_tokens=longest,
        end_id=int(context.text["end_id"]),
    )
    head = build_head(params.head, params.modalities, params.feature_size, context)
    return Captioner(towers, decoder, head, params)
