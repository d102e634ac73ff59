"""Modality `audio`: a residual CNN over log-mel spectrograms.

Takes log-mel energies (B, M, T) as `polyweft.data.audio.Reader` gives them; a token is a stretch of time.
Shape suffixes: B rows, M mel bands, T windows, C channels, L stretches of time, F features.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from polyweft.config import Section
from polyweft.data.audio import MelSpec
from polyweft.data.audio import Reader as AudioReader
from polyweft.models.image_cnn import CnnParams, ImageCnn


class Params(Section):
    """`model.encoders.audio`: how a clip becomes a spectrogram, and the CNN that reads it.

    `channels` and `blocks` are as in an image encoder's `cnn`.
    """

    rate: int = Field(default=16_000, ge=1_000, le=192_000, description="Hz; clips are resampled to it")
    seconds: float = Field(ge=0.05, le=600.0, description="of every clip: cut, or followed by silence")
    mels: int = Field(default=64, ge=8, le=256)
    window_ms: float = Field(default=25.0, ge=2.0, le=200.0)
    hop_ms: float = Field(default=10.0, ge=1.0, le=200.0)
    scale: Literal["slaney", "htk"] = "slaney"
    range_db: float = Field(
        default=80.0, ge=10.0, le=200.0, description="below the loudest; the rest is floor"
    )
    mean: float | None = Field(default=None, description="of log10 energies; null: each clip's own")
    std: float | None = Field(default=None, gt=0.0)
    max_seconds: float = Field(default=600.0, gt=0.0, le=3_600.0, description="a longer clip is refused")
    channels: list[Annotated[int, Field(ge=8, le=4096, multiple_of=8)]] = Field(min_length=1, max_length=6)
    blocks: list[Annotated[int, Field(ge=0, le=36)]] = Field(min_length=1, max_length=6)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @model_validator(mode="after")
    def _fits(self) -> Params:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.window_ms > 1000 * self.seconds:
            raise ValueError(f"window_ms {self.window_ms} is longer than a clip of {self.seconds} seconds")
        CnnParams(channels=self.channels, blocks=self.blocks)
        return self


def reader_spec(params: Params) -> dict[str, Any]:
    """The settings of the spectrogram that are saved with the model and that serving applies."""
    return MelSpec(
        rate=params.rate,
        seconds=params.seconds,
        mels=params.mels,
        window=round(params.rate * params.window_ms / 1000),
        hop=round(params.rate * params.hop_ms / 1000),
        scale=params.scale,
        range_db=params.range_db,
        mean=params.mean,
        std=params.std,
        max_seconds=params.max_seconds,
    ).to_dict()


def build(params: Params, reader: AudioReader) -> nn.Module:
    """The encoder; it takes spectrograms float32 (B, M, T)."""
    return AudioCnn(params)


class AudioCnn(nn.Module):
    """A spectrogram to one feature vector: the mean over time of the means over frequency."""

    def __init__(self, params: Params) -> None:
        super().__init__()
        self.cnn = ImageCnn(CnnParams(channels=params.channels, blocks=params.blocks), planes=1)
        self.dropout = nn.Dropout(params.dropout)
        self.out_features = self.cnn.out_features

    def tokens(self, log_mel_BMT: Tensor) -> Tensor:
        """Spectrograms (B, M, T) to a vector a stretch of time (B, L, F)."""
        x_BCML = self.cnn.positions(log_mel_BMT[:, None])
        out: Tensor = self.dropout(x_BCML.mean(dim=2).transpose(1, 2))
        return out

    def forward(self, log_mel_BMT: Tensor) -> Tensor:
        """Spectrograms (B, M, T) to features (B, F)."""
        return self.tokens(log_mel_BMT).mean(dim=1)
