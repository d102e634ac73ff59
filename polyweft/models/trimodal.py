"""Family `trimodal`: a joint space of two or more modalities, and a classifier of them together.

AudioCLIP's form (Guzhov et al., 2022): image, text and audio towers, contrast between all pairs of modalities
that rows hold (ImageBind, Girdhar et al., 2023, shows that not all need be there), and a head on the fused
features. Any modalities may be named, two at least.

Takes each modality's input; returns a unit-length embedding of each, all in one space, so that any can be
searched by any other, and the answers of the head's tasks. Served: raw bytes of each modality, any of which
may be absent, to `<modality>_embedding` (D), and, with a head, `probabilities` (C), `label_probabilities` (K)
and `value` (1), as its tasks say.

Shape suffixes: B rows, M modalities, D embedding size, F feature size.
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
    def _a_joint_space(self) -> Params:
        if len(self.encoders) < 2 or not self.embedding_size:
            raise ValueError(
                f"{self.family} joins two modalities or more in a space of embedding_size 1 or more; "
                f"encoders are {list(self.encoders)} and embedding_size is {self.embedding_size}"
            )
        return self


class Trimodal(Family):
    """Towers, a learnable temperature (and SigLIP's bias), and a head where there are tasks."""

    head: Head | None

    def __init__(self, towers: dict[str, nn.Module], params: ContrastParams, head: Head | None) -> None:
        super().__init__()
        self.towers, self.contrast, self.head = nn.ModuleDict(towers), params, head
        self.scale = Scale(params.loss)

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """`<modality>_embedding` (B, D), `scale` and `bias` (B,), and `head.<output>` of the head's."""
        outputs: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for name, tower in self.towers.items():
            outputs[f"{name}_embedding"], features[name] = tower(inputs[name])
        outputs |= self.scale(len(present_BM))
        if self.head is not None:
            outputs |= {f"head.{name}": value for name, value in self.head(features, present_BM).items()}
        return outputs

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """`contrastive`, the mean over pairs of modalities, `within` if it has a weight, one a task."""
        losses = contrast(outputs, targets, list(self.towers), self.contrast)
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


def build(params: Params, context: BuildContext) -> Trimodal:
    """Fresh weights from torch's generator."""
    head = build_head(params.head, params.modalities, params.feature_size, context)
    tokens = head is not None and head.takes_tokens
    towers: dict[str, nn.Module] = {
        name: Tower(encoder, params.feature_size, params.embedding_size, tokens=tokens)
        for name, encoder in build_encoders(params, context).items()
    }
    return Trimodal(towers, params.contrast, head)
