"""Bring the modalities together, with zeros where one is absent.

Every input is optional: an ensemble of one modality passes that one's. Answers, for each modality, the
embedding (where the model has a joint space) and the features with zeros in the rows that lack it (what
PyTorch's expected outputs hold too), and `present` float32 [rows, modalities]. Order and sizes come from the
version's model.json.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

ABSENT_LENGTH = 2
"""Positions of an absent modality's features whose number is free; zeros are padding."""


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args):
        """Read the sizes from this version's model.json."""
        folder = Path(args["model_repository"], args["model_version"])
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.modalities = model["modalities"]
        self.shapes = {}
        for name in self.modalities:
            shape = model["features"][name]
            self.shapes[name, "features"] = [ABSENT_LENGTH if size < 0 else size for size in shape]
            if model["embedding_size"]:
                self.shapes[name, "embedding"] = [model["embedding_size"]]

    def execute(self, requests):
        """Answer each request on its own."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        given = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if not given:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("no modality came"))
        rows = len(next(iter(given.values())))
        absent = np.zeros((rows, 1), np.float32)
        present = {name: given.get(f"{name}_present", absent) for name in self.modalities}
        answers = {"present": np.concatenate(list(present.values()), axis=1)}
        for (name, kind), shape in self.shapes.items():
            array = given.get(f"{name}_{kind}")
            there = present[name].reshape(rows, *[1] * len(shape)) > 0
            # where, not a product: NaN times zero is NaN
            answers[f"{name}_{kind}"] = (
                np.zeros((rows, *shape), np.float32)
                if array is None
                else np.where(there, array, np.float32(0))
            )
        wanted = request.requested_output_names()
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in answers.items() if name in wanted]
        )
