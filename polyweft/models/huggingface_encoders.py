"""Encoders of transformers in the project's form, and the part of them that is trained.

Shape suffixes: B rows, L positions, T tokens, W the encoder's width, F feature size, D embedding size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.errors import ConfigError
from polyweft.models.transformer import first_position

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pool = Literal["pooler", "first", "mean"]


class LastLayers(Section):
    """`tuning: {last_layers: n}`: the last n blocks and what follows them are trained."""

    last_layers: int = Field(ge=1, le=1000)


Tuning = Literal["frozen", "full"] | LastLayers


class HuggingFaceEncoder(nn.Module):
    """A model that gives `last_hidden_state`, for images or, with `end_id`, for text.

    Parameters
    ----------
    pool
        `pooler`: the model's own (a tanh layer over the first position); `first`: the first position, a class
        token; `mean`: over the positions that are not padding.
    end_id
        Text's end token; positions after a row's first one are padding.
    """

    def __init__(
        self, model: PreTrainedModel, pool: Pool, tuning: Tuning, where: str, end_id: int | None = None
    ) -> None:
        super().__init__()
        self.pool, self.end_id = pool, end_id
        self.model: Any = model
        has_pooler = getattr(model, "pooler", None) is not None
        if pool == "pooler" and not has_pooler:
            raise ConfigError(
                f"{where}.pool is pooler, but {type(model).__name__} has none; take first or mean."
            )
        if pool != "pooler" and has_pooler:
            model.register_module("pooler", None)  # nothing would train it
        self.out_features = int(model.config.hidden_size)
        self.frozen = tuning == "frozen"
        freeze(model, tuning, where)

    @property
    def checkpointing(self) -> bool:
        """Whether activations are computed anew in the backward pass; the trainer sets it."""
        return bool(self.model.is_gradient_checkpointing)

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        if on and not self.frozen:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> HuggingFaceEncoder:
        """As `nn.Module.train`; a frozen model stays without dropout."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) or token ids int64 (B, T) to (B, W)."""
        return self.both(x)[0]

    def tokens(self, x: Tensor) -> Tensor:
        """The same input to (B, L, W), padding all zero."""
        return self.both(x)[1]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (B, W) and by position (B, L, W)."""
        if self.end_id is None:
            out = self.model(pixel_values=x)
            states_BLW: Tensor = out.last_hidden_state
            mean_BW = states_BLW.mean(dim=1)
        else:
            end_B1 = first_position(x, self.end_id)[:, None]
            there_BL = torch.arange(x.shape[1], device=x.device)[None] <= end_B1
            out = self.model(input_ids=x, attention_mask=there_BL.long())
            states_BLW = out.last_hidden_state * there_BL[:, :, None]
            mean_BW = states_BLW.sum(dim=1) / (end_B1 + 1)
        if self.pool == "pooler":
            return out.pooler_output, states_BLW
        return (states_BLW[:, 0] if self.pool == "first" else mean_BW), states_BLW


class HuggingFaceTower(nn.Module):
    """An encoder, a Linear layer to the head's features, and a projection straight into the joint space.

    The projection reads the encoder's pooled output, as that of VisionTextDualEncoder does.
    """

    def __init__(
        self,
        encoder: HuggingFaceEncoder,
        feature_size: int,
        projection: nn.Module | None,
        *,
        tokens: bool = False,
    ) -> None:
        super().__init__()
        self.encoder, self.projection, self.gives_tokens = encoder, projection, tokens
        size = encoder.out_features
        self.features = nn.Identity() if size == feature_size else nn.Linear(size, feature_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's input to a unit-length embedding (B, D) and features (B, F) or (B, L, F), float32."""
        pooled_BW, states_BLW = self.encoder.both(x)
        if self.gives_tokens:
            features = self.features(states_BLW).float() * (states_BLW != 0).any(dim=2, keepdim=True)
        else:
            features = self.features(pooled_BW).float()
        if self.projection is None:
            return pooled_BW[:, :0].float(), features
        return nn.functional.normalize(self.projection(pooled_BW).float(), dim=1), features


def freeze(model: nn.Module, tuning: Tuning, where: str) -> None:
    """Take what `tuning` leaves alone out of training.

    Raises
    ------
    ConfigError
        More layers are asked for than there are.
    """
    if tuning == "full":
        return
    if tuning == "frozen":
        model.requires_grad_(False)
        return
    name, blocks = _blocks(model)
    if tuning.last_layers > len(blocks):
        raise ConfigError(
            f"{where}.tuning asks for the last {tuning.last_layers} layers, but there are {len(blocks)}; "
            "take fewer, or `full`."
        )
    first = f"{name}.{len(blocks) - tuning.last_layers}."
    trained = False
    for parameter_name, parameter in model.named_parameters():
        trained = trained or parameter_name.startswith(first)
        parameter.requires_grad_(trained)


def _blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=lambda item: len(item[1]), default=("", nn.ModuleList()))
