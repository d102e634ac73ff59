"""Bring the image side and the text side together, with zeros where a modality is absent.

Every input is optional: an ensemble of one side passes that side's three. Answers, for each side, the
embedding and the features multiplied by `present` (what PyTorch's expected outputs hold too), and
`present` float32 [rows, 2]: column 0 the image, column 1 the text. Sizes come from the version's model.json.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

SIDES = ("image", "text")


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args):
        """Read the sizes from this version's model.json."""
        folder = Path(args["model_repository"], args["model_version"])
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.sizes = {"embedding": int(model["embedding_size"]), "features": int(model["feature_size"])}

    def execute(self, requests):
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if not given:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("neither image nor text came"))
        rows = len(next(iter(given.values())))
        absent = np.zeros((rows, 1), np.float32)
        present = {side: given.get(f"{side}_present", absent) for side in SIDES}
        answers = {"present": np.concatenate([present[side] for side in SIDES], axis=1)}
        for side in SIDES:
            for kind, size in self.sizes.items():
                array = given.get(f"{side}_{kind}")
                # where, not a product: NaN times zero is NaN
                answers[f"{side}_{kind}"] = (
                    np.zeros((rows, size), np.float32)
                    if array is None
                    else np.where(present[side] > 0, array, np.float32(0))
                )
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in answers.items() if name in wanted]
        )
