"""From a batch of raw arrays to what a model and its losses take, on the device.

Shape suffixes: B rows, S pixels a side, M modalities.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from polyweft.data.batches import Batch, Floats
from polyweft.data.decode import ImageSpec
from polyweft.data.reader import Reader
from polyweft.losses.targets import Targets
from polyweft.training.audio_augment import AudioAugmentParams, augment_audio
from polyweft.training.augment import AugmentParams, augment


class Feed:
    """Turns batches into tensors; images and sound are augmented, where draws are given, on the device."""

    def __init__(self, readers: Mapping[str, Reader], device: torch.device) -> None:
        self.readers, self.device = readers, device

    def inputs(
        self,
        batch: Batch,
        *,
        draws_BX: Floats | None = None,
        params: AugmentParams | None = None,
        audio_draws_BX: Floats | None = None,
        audio_params: AudioAugmentParams | None = None,
        size: int | None = None,
    ) -> dict[str, Tensor]:
        """By modality the model's input.

        Parameters
        ----------
        draws_BX
            A row of draws a sample, as `augment.draws` gives them; None leaves images as they are.
        audio_draws_BX
            The same for sound, from `audio_augment.audio_draws`.
        size
            Images' side in pixels; None keeps that of the reader.
        """
        inputs: dict[str, Tensor] = {}
        for name, raw in batch.raw.items():
            if name == "image":
                inputs[name] = self._image(raw, draws_BX, params, size)
            else:
                inputs[name] = torch.from_numpy(self.readers[name].finish(raw)).to(self.device)
            if name == "audio" and audio_draws_BX is not None and audio_params is not None:
                numbers = torch.from_numpy(audio_draws_BX).to(self.device)
                inputs[name] = augment_audio(inputs[name], numbers, audio_params)
        return inputs

    def targets(self, batch: Batch) -> Targets:
        """What the losses compare with; `present_BM` is that of the data, before any dropout."""
        keys = {name: torch.from_numpy(key).to(self.device) for name, key in batch.keys.items()}
        ids = batch.raw.get("text", np.zeros((len(batch.rows_B), 0), np.int64))
        return Targets(
            class_B=torch.from_numpy(batch.class_B).to(self.device),
            labels_BK=torch.from_numpy(batch.labels_BK).to(self.device),
            value_B=torch.from_numpy(batch.value_B).to(self.device),
            keys=keys,
            present_BM=torch.from_numpy(batch.present_BM).to(self.device),
            modalities=list(batch.raw),
            ids_BT=torch.from_numpy(ids).to(self.device),
        )

    def _image(
        self,
        raw_BSS3: npt.NDArray[np.uint8],
        draws_BX: Floats | None,
        params: AugmentParams | None,
        size: int | None,
    ) -> Tensor:
        spec: ImageSpec = self.readers["image"].spec  # type: ignore[attr-defined]
        pixels = torch.from_numpy(raw_BSS3).to(self.device).permute(0, 3, 1, 2)
        unit_B3SS = pixels.float().div(255.0)
        size = size or spec.size
        if draws_BX is not None and params is not None:
            fill_3 = torch.tensor(spec.background, device=self.device) / 255.0
            unit_B3SS = augment(unit_B3SS, torch.from_numpy(draws_BX).to(self.device), params, fill_3, size)
        elif size != spec.size:
            unit_B3SS = functional.interpolate(unit_B3SS, size=size, mode="area")
        mean_131, std_131 = (
            torch.tensor(values, device=self.device)[None, :, None, None] for values in (spec.mean, spec.std)
        )
        return ((unit_B3SS - mean_131) / std_131).contiguous(memory_format=torch.channels_last)
