"""Image bytes to pixels on the server, by the version's own verbatim copy of `polyweft/data/decode.py`.

`image` [rows, 1] holds JPEG, PNG, ... bytes; an empty string means that the row has no image. Answers
`pixel_values` float32 [rows, 3, size, size] (zeros where absent), `present` float32 [rows, 1] and
`model_version`, the export's hash, [rows, 1].
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """One instance of one version."""

    def initialize(self, args):
        """Import this version's decode.py and read its model.json."""
        folder = Path(args["model_repository"], args["model_version"])
        sys.path.insert(0, str(folder))
        import decode

        model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        self.decode = decode
        self.spec = decode.ImageSpec.from_dict(model["image"])
        self.version = model["export_hash"].encode()

    def execute(self, requests):
        """Answer each request on its own: one with a broken image fails alone."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        size = self.spec.size
        pixels = np.zeros((len(images), 3, size, size), np.float32)
        present = np.zeros((len(images), 1), np.float32)
        for row, content in enumerate(images):
            if content:
                try:
                    pixels[row] = self.decode.decode_image(content, self.spec)
                except self.decode.MediaDecodeError as error:
                    fault = pb_utils.TritonError(f"image in row {row}: {error}")
                    return pb_utils.InferenceResponse(error=fault)
                present[row] = 1
        version = np.full((len(images), 1), self.version, dtype=object)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("pixel_values", pixels),
                pb_utils.Tensor("present", present),
                pb_utils.Tensor("model_version", version),
            ]
        )
