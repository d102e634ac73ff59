"""A family of the plainest kind, for tests of what comes after training: any modalities, head or decoder.

Importing it makes it known as `tiny`. Nothing in export, registry or serving may need more than its form.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.models.family import FAMILIES, BuildContext, Family, ModelParams, build_encoders
from polyweft.models.tower import Tower

FAMILIES["tiny"] = __name__


class Params(ModelParams):
    """`sees`: what the head looks at; `tokens`: towers that give them; `generation`: writes captions."""

    sees: list[str]
    tokens: list[str] = Field(default_factory=list)
    generation: dict[str, Any] | None = None


class TinyHead(nn.Module):
    """One layer over the features that are there."""

    def __init__(self, params: Params, context: BuildContext) -> None:
        super().__init__()
        self.sees, self.modalities = params.sees, params.modalities
        sizes = {"probabilities": len(context.classes), "label_probabilities": len(context.labels)}
        self.sizes = {name: size for name, size in sizes.items() if size}
        self.layers = nn.ModuleDict({n: nn.Linear(params.feature_size, s) for n, s in self.sizes.items()})

    def outputs(self) -> dict[str, list[int]]:
        return {name: [size] for name, size in self.sizes.items()}

    def forward(
        self, features: dict[str, Tensor], present_BM: Tensor, impute: bool | None = None
    ) -> dict[str, Tensor]:
        parts = []
        for column, name in enumerate(self.modalities):
            if name in self.sees:
                part = features[name] if features[name].ndim == 2 else features[name].sum(dim=1)
                parts.append(part * present_BM[:, column : column + 1])
        return {name: layer(torch.stack(parts).sum(dim=0)) for name, layer in self.layers.items()}

    def answers(self, raw: dict[str, Tensor]) -> dict[str, Tensor]:
        turned = {"probabilities": lambda x: x.softmax(dim=1), "label_probabilities": torch.sigmoid}
        return {name: turned[name](values) for name, values in raw.items()}


class TinyDecoder(nn.Module):
    """The next token by the last one and the image."""

    def __init__(self, vocabulary: int, size: int) -> None:
        super().__init__()
        self.tokens, self.out = nn.Embedding(vocabulary, size), nn.Linear(size, vocabulary)

    def forward(self, ids_BT: Tensor, image_BLF: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.tokens(ids_BT) + 9 * image_BLF.mean(dim=1, keepdim=True)))
        return out


class Tiny(Family):
    """Towers, and what `params` asks for."""

    def __init__(self, params: Params, context: BuildContext) -> None:
        super().__init__()
        sizes, tokens = (params.feature_size, params.embedding_size), params.tokens
        self.towers = nn.ModuleDict(
            {
                name: Tower(e, *sizes, tokens=name in tokens)
                for name, e in build_encoders(params, context).items()
            }
        )
        head = TinyHead(params, context)
        self.head = head if params.sees and head.sizes else None
        vocabulary = int(context.text.get("vocabulary_size", 0))
        self.decoder = TinyDecoder(vocabulary, params.feature_size) if params.generation else None


def build(params: Params, context: BuildContext) -> Tiny:
    return Tiny(params, context)
