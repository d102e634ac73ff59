"""A tower: one modality's encoder, brought to the features that heads see and to the joint space.

Shape suffixes: B rows, L positions, D embedding size, F feature size.
"""

from __future__ import annotations

from torch import Tensor, nn


class Tower(nn.Module):
    """Encoder, a Linear layer to `feature_size`, a projection to `embedding_size`.

    Parameters
    ----------
    encoder
        Has `out_features`, `forward(x) -> (B, out_features)` and `tokens(x) -> (B, L, out_features)`, whose
        padding positions are all zero.
    embedding_size
        0 for a family without a joint space: embeddings are then of size 0.
    tokens
        Give features a position (B, L, F), for a fusion that attends; otherwise (B, F).
    """

    def __init__(
        self, encoder: nn.Module, feature_size: int, embedding_size: int, *, tokens: bool = False
    ) -> None:
        super().__init__()
        self.encoder, self.gives_tokens = encoder, tokens
        size = int(encoder.out_features)  # type: ignore[arg-type]
        self.features = nn.Identity() if size == feature_size else nn.Linear(size, feature_size)
        self.projection = nn.Linear(feature_size, embedding_size, bias=False) if embedding_size else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's input to a unit-length embedding (B, D) and features (B, F) or (B, L, F), float32."""
        if self.gives_tokens:
            tokens_BLE = self.encoder.tokens(x)  # type: ignore[operator]
            there_BL1 = (tokens_BLE != 0).any(dim=2, keepdim=True)
            features = self.features(tokens_BLE).float() * there_BL1
            pooled_BF = features.sum(dim=1) / there_BL1.sum(dim=1).clamp(min=1)
        else:
            features = pooled_BF = self.features(self.encoder(x)).float()
        if self.projection is None:
            return pooled_BF[:, :0], features
        embedding_BD = self.projection(pooled_BF).float()
        return nn.functional.normalize(embedding_BD, dim=1), features
