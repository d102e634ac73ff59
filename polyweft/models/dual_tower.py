"""Family `dual_tower`: CLIP's form (Radford et al., 2021), with a head on the towers' features.

Takes two modalities (image and text, or others); returns their unit-length embeddings in one space and, with
a head, its tasks' answers. Served: raw bytes of each to `<modality>_embedding`, and `probabilities` where
there are classes. Shape suffixes: B rows, M modalities, D embedding size, F feature size.
"""

from __future__ import annotations

from pydantic import model_validator
from torch import Tensor, nn

from polyweft.losses.contrastive import ContrastParams, Scale, contrast
from polyweft.losses.targets import Targets
from polyweft.models.family import BuildContext, Family, ModelParams, build_encoders
from polyweft.models.head import Head, HeadParams, build_head
from polyweft.models.tower import Tower


class Params(ModelParams):
    """Section `model` of this family."""

    contrast: ContrastParams
    head: HeadParams | None = None

    @model_validator(mode="after")
    def _two_modalities(self) -> Params:
        if len(self.encoders) != 2 or not self.embedding_size:
            raise ValueError(
                f"dual_tower joins two modalities in a space of embedding_size 1 or more; encoders are "
                f"{list(self.encoders)} and embedding_size is {self.embedding_size}"
            )
        return self


class DualTower(Family):
    """Two towers, a learnable temperature (and SigLIP's bias), and a head where there are tasks."""

    def __init__(self, towers: dict[str, nn.Module], params: ContrastParams, head: Head | None) -> None:
        super().__init__()
        self.towers, self.contrast, self.head = nn.ModuleDict(towers), params, head
        self.scale = Scale(params.loss)

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """`<modality>_embedding` (B, D), `scale` and `bias` (B,), and `head.<task>` logits."""
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name, tower in self.towers.items():
            outputs[f"{name}_embedding"], features[name] = tower(inputs[name])
        outputs |= self.scale(len(present_BM))
        if self.head is not None:
            outputs |= {f"head.{task}": values for task, values in self.head(features, present_BM).items()}
        return outputs

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`contrastive`, and one loss a task."""
        losses = contrast(outputs, targets, list(self.towers), self.contrast)
        if isinstance(self.head, Head):
            raw = {name.removeprefix("head."): v for name, v in outputs.items() if name.startswith("head.")}
            losses |= self.head.losses(raw, targets)
        return losses

    def after_step(self) -> None:
        """CLIP's clamp of the temperature."""
        self.scale.clamp()

    def facts(self) -> dict[str, float]:
        """The temperature."""
        return self.scale.facts()


def build(params: Params, context: BuildContext) -> DualTower:
    """Fresh weights from torch's generator."""
    head = build_head(params.head, params.modalities, params.feature_size, context)
    tokens = head is not None and head.takes_tokens
    towers: dict[str, nn.Module] = {
        name: Tower(encoder, params.feature_size, params.embedding_size, tokens=tokens)
        for name, encoder in build_encoders(params, context).items()
    }
    return DualTower(towers, params.contrast, head)
