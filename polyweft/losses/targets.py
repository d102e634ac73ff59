"""What a batch's losses compare a model's outputs with.

Shape suffixes: B rows of this process, M modalities, T tokens, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Targets:
    """The targets of one process's rows.

    Attributes
    ----------
    class_B
        int64 class index; -1 where the row has none.
    labels_BK
        float32, 1 where the row bears the label; NaN in rows without labels.
    value_B
        float32, the number to regress; NaN where the row has none.
    keys
        By modality: int64 (B,); rows with equal keys hold equal content, and are positives of each other.
    present_BM
        float32, 1 where the row has modality m: that of the data, before modality dropout.
    modalities
        The columns of `present_BM`.
    ids_BT
        int64 token ids of the row's caption, for captioning; padding alone where there is none.
    """

    class_B: Tensor
    labels_BK: Tensor
    value_B: Tensor
    keys: dict[str, Tensor]
    present_BM: Tensor
    modalities: list[str]
    ids_BT: Tensor

    def has(self, modality: str) -> Tensor:
        """Boolean (B,): the rows that hold `modality`."""
        return self.present_BM[:, self.modalities.index(modality)] > 0
