"""Family `dual_tower`: CLIP's form (Radford et al., 2021) with a class head on the joint features.

Takes pixels and token ids; returns unit-length embeddings of each in one space, and class logits from the
features of the modalities that the head sees. Served: image bytes and text to embeddings and class
probabilities. Shape suffixes: B rows, T tokens, D embedding size, F feature size, C classes.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section

MAX_LOGIT_SCALE = math.log(100.0)
"""CLIP clamps the logit scale here, so that similarities are multiplied by 100 at most."""


class HeadParams(Section):
    """`model.head`: what the class head sees, its hidden width, dropout before it."""

    sees: Literal["image", "text", "both"]
    hidden: int = Field(ge=8, le=8192)
    dropout: float = Field(ge=0.0, lt=1.0)


class Tower(nn.Module):
    """A modality's encoder, brought to `feature_size`, and its projection into the joint space."""

    def __init__(self, encoder: nn.Module, encoder_size: int, feature_size: int, embedding_size: int) -> None:
        super().__init__()
        self.encoder = encoder
        same = encoder_size == feature_size
        self.features = nn.Identity() if same else nn.Linear(encoder_size, feature_size)
        self.projection = nn.Linear(feature_size, embedding_size, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's input to a unit-length embedding (B, D) and features (B, F), both float32."""
        features_BF = self.features(self.encoder(x)).float()
        embedding_BD = self.projection(features_BF).float()
        return nn.functional.normalize(embedding_BD, dim=1), features_BF


class ClassHead(nn.Module):
    """Features of the modalities it sees to class logits; an absent modality is a learned vector."""

    def __init__(self, params: HeadParams, feature_size: int, classes: int) -> None:
        super().__init__()
        self.columns = {"image": (0,), "text": (1,), "both": (0, 1)}[params.sees]
        self.absent = nn.Parameter(torch.zeros(2, feature_size))
        self.layers = nn.Sequential(
            nn.LayerNorm(feature_size * len(self.columns)),
            nn.Dropout(params.dropout),
            nn.Linear(feature_size * len(self.columns), params.hidden),
            nn.GELU(),
            nn.Dropout(params.dropout),
            nn.Linear(params.hidden, classes),
        )

    def forward(self, image_features_BF: Tensor, text_features_BF: Tensor, present_B2: Tensor) -> Tensor:
        """Features (B, F) and presence (B, 2; 1 where image, text is there) to logits (B, C)."""
        parts = []
        for column in self.columns:
            features_BF = (image_features_BF, text_features_BF)[column]
            there_B1 = present_B2[:, column : column + 1]
            parts.append(there_B1 * features_BF + (1.0 - there_B1) * self.absent[column])
        logits: Tensor = self.layers(torch.cat(parts, dim=1))
        return logits.float()


class DualTower(nn.Module):
    """An image tower, a text tower, a learnable temperature, and a class head where there are classes."""

    def __init__(self, image: Tower, text: Tower, head: ClassHead | None) -> None:
        super().__init__()
        self.image, self.text, self.head = image, text, head
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / 0.07)))

    def forward(
        self, pixels_B3HW: Tensor, ids_BT: Tensor, present_B2: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Image embeddings (B, D), text embeddings (B, D), class logits (B, C) or None."""
        image_BD, image_features_BF = self.image(pixels_B3HW)
        text_BD, text_features_BF = self.text(ids_BT)
        logits_BC = None
        if self.head is not None:
            logits_BC = self.head(image_features_BF, text_features_BF, present_B2)
        return image_BD, text_BD, logits_BC
