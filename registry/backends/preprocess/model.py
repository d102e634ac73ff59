"""One modality's raw bytes to the model's input on the server, by the version's own copy of its reader.

The input named after the modality, [rows, 1], holds encoded bytes (text: UTF-8); an empty string means that
the row lacks it. Answers the model's input (padding where absent; a free axis is filled up to its greatest
length, so that requests batch), `present` float32 [rows, 1], and `model_version`, the export's hash,
[rows, 1]. The optional input `after` is not read: an ensemble passes it so that this step begins after
another's.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

os.environ["TOKENIZERS_PARALLELISM"] = "false"


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args):
        """Import this version's reader and give it what its model.json says."""
        folder = Path(args["model_repository"], args["model_version"])
        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        parameters = json.loads(args["model_config"])["parameters"]
        self.modality = parameters["modality"]["string_value"]
        given = model["inputs"][self.modality]
        self.reader = _module(folder / given["module"]).Reader(given["spec"], folder)
        self.shape = given["largest"]
        self.version = model["export_hash"].encode()

    def execute(self, requests):
        """Answer each request on its own: one with a row that cannot be read fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        contents = pb_utils.get_input_tensor_by_name(request, self.modality).as_numpy().reshape(-1)
        inputs = np.full((len(contents), *self.shape), self.reader.pad, self.reader.dtype)
        present = np.zeros((len(contents), 1), np.float32)
        for row, content in enumerate(contents):
            if content:
                try:
                    array = self.reader.read([content])[0]
                except ValueError as error:
                    fault = pb_utils.TritonError(f"{self.modality} in row {row}: {error}")
                    return pb_utils.InferenceResponse(error=fault)
                inputs[(row, *map(slice, array.shape))] = array
                present[row] = 1
        version = np.full((len(contents), 1), self.version, dtype=object)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor(self.reader.tensor, inputs),
                pb_utils.Tensor("present", present),
                pb_utils.Tensor("model_version", version),
            ]
        )


def _module(path):
    """Import a file under a name of its own: `text` or `graph` may stand for something else on the path."""
    specification = importlib.util.spec_from_file_location(f"polyweft_served_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their own module up while they are made
    specification.loader.exec_module(module)
    return module
