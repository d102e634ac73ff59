"""Family `fusion_classifier` (SimpleCLIP): a tower a modality, a fusion of their features, a head.

Takes any number of modalities; returns the answers of its tasks: class probabilities of one class or two, a
probability a label, a value, or several of them at once. It has no joint space unless `embedding_size` is
above 0, and then no loss of its own forms it.

Served: raw bytes of each modality (image, audio, video and graph files, UTF-8 text), any of which may be
absent, to `probabilities` (C), `label_probabilities` (K) and `value` (1), as its tasks say.

Shape suffixes: B rows, M modalities, D embedding size, F feature size.
"""

from __future__ import annotations

from torch import Tensor, nn

from polyweft.errors import ConfigError
from polyweft.losses.targets import Targets
from polyweft.models.family import BuildContext, Family, ModelParams, build_encoders
from polyweft.models.head import Head, HeadParams, build_head
from polyweft.models.tower import Tower


class Params(ModelParams):
    """Section `model` of this family."""

    head: HeadParams


class FusionClassifier(Family):
    """Towers and a head."""

    head: Head

    def __init__(self, towers: dict[str, nn.Module], head: Head) -> None:
        super().__init__()
        self.towers, self.head = nn.ModuleDict(towers), head

    def forward(self, inputs: dict[str, Tensor], present_BM: Tensor) -> dict[str, Tensor]:
        """`head.<output>` of each of the head's outputs."""
        features = {name: tower(inputs[name])[1] for name, tower in self.towers.items()}
        return {f"head.{name}": value for name, value in self.head(features, present_BM).items()}

    def losses(self, outputs: dict[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """One loss a task, and `imputation` where the head reconstructs."""
        raw = {name.removeprefix("head."): value for name, value in outputs.items()}
        return self.head.losses(raw, targets)

    def facts(self) -> dict[str, float]:
        """The tasks' noise, where their losses are balanced by it."""
        return self.head.facts()


def build(params: Params, context: BuildContext) -> FusionClassifier:
    """Fresh weights from torch's generator.

    Raises
    ------
    ConfigError
        The data have no targets for the head's tasks.
    """
    head = build_head(params.head, params.modalities, params.feature_size, context)
    if head is None:
        raise ConfigError(
            f"model.head.tasks are {list(params.head.tasks)}, but the data have {len(context.classes)} "
            "classes. Bring labels, choose another task, or dual_tower, which learns from pairs alone."
        )
    towers: dict[str, nn.Module] = {
        name: Tower(encoder, params.feature_size, params.embedding_size, tokens=head.takes_tokens)
        for name, encoder in build_encoders(params, context).items()
    }
    return FusionClassifier(towers, head)
