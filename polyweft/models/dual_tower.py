"""Family `dual_tower`: CLIP's form (Radford et al., 2021), with a head on the towers' features.

It is `trimodal`'s model with two modalities: image and text, or two others. Served: raw bytes of each to
`<modality>_embedding` (D), and, with a head, `probabilities` (C), `label_probabilities` (K) and `value` (1),
as its tasks say.

Shape suffixes: C classes, K labels, D embedding size.
"""

from __future__ import annotations

from pydantic import model_validator

from polyweft.models import trimodal
from polyweft.models.family import BuildContext


class Params(trimodal.Params):
    """Section `model` of this family."""

    @model_validator(mode="after")
    def _two_modalities(self) -> Params:
        if len(self.encoders) != 2:
            raise ValueError(
                f"dual_tower joins two modalities; encoders are {list(self.encoders)}. trimodal takes more"
            )
        return self


def build(params: Params, context: BuildContext) -> trimodal.Trimodal:
    """Fresh weights from torch's generator."""
    return trimodal.build(params, context)
